"""Fields that name a model which exists, and the teachers that a distillation has beside the family's own."""

from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from boomspec.core.types import AlsoText, Number, Strict, about
from boomspec.spec.validate import FieldError, goes_with, only_one

Revision = Annotated[str | None, about("Branch, tag or commit on the hub. Default: main.", ["main", "906bfd4"])]
TrustRemoteCode = Annotated[
    bool,
    about(
        "Run the Python code that the model brings along: what auto_map in its config.json and "
        "tokenizer_config.json names. Default: transformers' own classes alone."
    ),
]
_WHOLE = 1e-9  # how near to 1 weights may come, that the own teacher has some


class TransferModelSpec(Strict):
    """A model that a transfer reads; its weights alone, so none of its code runs."""

    trust_remote_code: ClassVar[bool] = False

    model: str = about("Hub id or folder.", ["Qwen/Qwen3-4B-Base", "./base"], min_length=1)
    revision: Revision = None


class TransferSpec(Strict):
    """The student of a variant, without training: its layers, and what distilling a student of its base changed."""

    model_config = ConfigDict(serialize_by_alias=True)

    from_: Annotated[TransferModelSpec, AlsoText(lambda name: {"model": name})] = about(
        "A distilled student: a folder or hub id of one, the folder of a run, or a spec (spec.yaml or spec.yaml#label),"
        " whose tasks then belong to this one's.",
        ["qwen3-4b.yaml", "base.yaml#no-kl", "store/runs/qwen3-4b-1a2b3c4d", "Harvard-DCML/boomerang-qwen3-2.3B"],
        alias="from",
    )
    base: Annotated[TransferModelSpec, AlsoText(lambda name: {"model": name})] | None = about(
        "The teacher that it was distilled from. Default: that of the spec or the run; of a model it has to be given.",
        ["Qwen/Qwen3-4B-Base", {"model": "Qwen/Qwen3-4B-Base", "revision": "906bfd4"}],
        default=None,
    )


class OtherTeacherSpec(Strict):
    """A teacher beside the family's own, of the same tokenizer."""

    model: str | None = about("Hub id or folder.", ["gpt2-large", "./other"], default=None, min_length=1)
    revision: Revision = None
    trust_remote_code: TrustRemoteCode = False
    seed: int | None = Field(None, examples=[1], ge=0, le=2**32 - 1)
    """`teacher.pretrain` once more, with this seed: an ensemble."""
    weight: Number = about("Its share of the losses, or of the mixture.", [0.3], gt=0, lt=1)

    def model_post_init(self, _: object) -> None:
        only_one(self, "model", "seed")
        goes_with(self, "model", "revision", "trust_remote_code", not_with="seed")


class TeachersSpec(Strict):
    """Several teachers of one tokenizer. The family's own has the weight that the others leave of 1."""

    others: tuple[OtherTeacherSpec, ...] = about("The teachers beside the own.", [[{"seed": 1, "weight": 0.5}]])
    combine: Literal["losses", "mixture"] = "losses"
    """losses: each loss that reads the teacher's logits is the weighted sum of that loss against each teacher. mixture:
    it is computed once, against the mixture of their distributions."""

    def model_post_init(self, _: object) -> None:
        if not self.others:
            raise FieldError("must have at least 1 item, not 0", at=("others",))
        seeds = [other.seed for other in self.others]
        for number, seed in enumerate(seeds):
            if seed is not None and seed in seeds[:number]:
                raise FieldError("this teacher is there already", at=("others", number, "seed"), hint="name it once")
        if (total := sum(other.weight for other in self.others)) > 1 - _WHOLE:
            message = (
                f"the weights of the other teachers add up to {total:.6g}: the own teacher has what they leave of 1"
            )
            raise FieldError(message, at=("others",))
