"""The section `student`: layers of the teacher, or a model that exists."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from boomspec.core.layers import KeepRule
from boomspec.core.types import Strict
from boomspec.spec.sections.data import Calibration, CalibrationSpec
from boomspec.spec.sections.models import Revision, TransferSpec, TrustRemoteCode
from boomspec.spec.validate import FieldError, goes_with, only_one


class KeepChoice(Strict):
    """Layers chosen by a score on calibration text; the key is the method, its value how many are kept."""

    block_influence: int | None = Field(None, examples=[19], ge=1)
    """Those with the highest 1 - cos(input, output) (ShortGPT, arXiv 2403.03853)."""
    cosine_greedy: int | None = Field(None, examples=[19], ge=1)
    """Drops layers one by one, each time the one that changes the last state least."""
    calibration: Calibration = CalibrationSpec()

    def model_post_init(self, _: object) -> None:
        only_one(self, "block_influence", "cosine_greedy")

    @property
    def method(self) -> Literal["block_influence", "cosine_greedy"]:
        return "cosine_greedy" if self.block_influence is None else "block_influence"

    @property
    def count(self) -> int:
        return self.block_influence or self.cosine_greedy or 0


def _keep_form(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "list"
    if isinstance(value, KeepChoice) or (isinstance(value, dict) and value.keys() & KeepChoice.model_fields.keys()):
        return "KeepChoice"
    return "KeepRule" if isinstance(value, (dict, KeepRule)) else "count"


Keep = Annotated[
    Annotated[Annotated[int, Field(ge=1)], Tag("count")]
    | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Tag("list")]
    | Annotated[KeepRule, Tag("KeepRule")]
    | Annotated[KeepChoice, Tag("KeepChoice")],
    Discriminator(_keep_form),
]


class StudentSpec(Strict):
    """The small model: made from some of the teacher's layers, or one that exists (`model`)."""

    keep: Keep | None = Field(
        None, examples=[{"every": 2, "first": 1, "last": 2}, 19, [0, 2, 4, 6], {"block_influence": 19}]
    )
    """The teacher's layers that the student starts from: a rule, how many (evenly spaced), a list, or how many by a
    score on calibration text."""
    model: str | None = Field(None, examples=["Harvard-DCML/boomerang-qwen3-2.3B"], min_length=1)
    """Hub id or folder of a distilled student. Its layer mapping is in its student_config.json, or given as `keep`.
    Nothing is distilled."""
    revision: Revision = None
    trust_remote_code: TrustRemoteCode = False
    transfer: TransferSpec | None = Field(
        None, examples=[{"from": "qwen3-4b.yaml"}, {"from": "./distilled", "base": "Qwen/Qwen3-4B-Base"}]
    )
    """Made by weight-delta transfer (arXiv 2608.22854) from a student of the model that the teacher is a variant of.
    Nothing is distilled."""
    train_embedding: bool = True
    """false freezes the embedding (and a head tied to it), so that every size stays tied."""

    def model_post_init(self, _: object) -> None:
        if self.keep is None and self.model is None and self.transfer is None:
            raise FieldError("keep is missing: which layers does the student start from?", hint="or name a `model`")
        if self.model is not None and self.transfer is not None:
            raise FieldError("a student that exists is not made by a transfer", at=("transfer",), hint="remove one")
        goes_with(self, "model", "revision", "trust_remote_code")
        if self.is_made and isinstance(self.keep, KeepChoice):
            raise FieldError("the mapping of a model that exists cannot be searched", at=("keep",))
        if self.is_made and "train_embedding" in self.model_fields_set:
            raise FieldError("train_embedding goes with a student that is distilled here", at=("train_embedding",))

    @property
    def is_made(self) -> bool:
        """Whether nothing is distilled: it exists, or is made by a transfer."""
        return self.model is not None or self.transfer is not None
