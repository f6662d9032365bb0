"""The sections of the spec language: every field that may be written below the top level.

Every field here does something; unknown keys are errors. Docstrings and descriptions become the JSON
Schema that editors show. What a spec MEANS (layers as integers, steps, sources) is `boomspec.compile.resolve`.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from boomspec.core.layers import ORDERS, KeepRule, Singletons
from boomspec.core.types import Bytes, SizesField, Strict
from boomspec.spec.sections.searches import KeepChoice, OrderSearch
from boomspec.spec.sections.training import Positive, PretrainSpec
from boomspec.spec.validate import FieldError, only_one

Revision = Annotated[
    str | None, Field(description="Branch, tag or commit on the hub. Default: main.", examples=["main", "906bfd4"])
]
TrustRemoteCode = Annotated[
    bool,
    Field(
        description="Run the Python code that the model brings along: what auto_map in its config.json and "
        "tokenizer_config.json names. Default: transformers' own classes alone."
    ),
]


class TeacherSpec(Strict):
    """The large model: one that exists (`model`), or a small one to be trained first (`pretrain`)."""

    model: Annotated[
        str | None,
        Field(min_length=1, description="Hub id or folder.", examples=["Qwen/Qwen3-4B-Base", "./my-teacher"]),
    ] = None
    revision: Revision = None
    trust_remote_code: TrustRemoteCode = False
    rest: Annotated[
        Literal["keep", "drop"],
        Field(
            description="What becomes of the parts beside the text decoder (an image encoder, a projector): every size "
            "with layers of the teacher keeps them, or is a language model alone.",
            examples=["keep", "drop"],
        ),
    ] = "drop"
    pretrain: Annotated[
        PretrainSpec | None,
        Field(
            description="A small Llama that is trained by this experiment, on its data.",
            examples=[
                {
                    "layers": 8,
                    "hidden_size": 64,
                    "intermediate_size": 160,
                    "attention_heads": 4,
                    "tokenizer": {"vocabulary": 1024},
                    "tokens": "1.5M",
                    "batch_tokens": 1024,
                }
            ],
        ),
    ] = None

    @model_validator(mode="after")
    def _one_teacher(self) -> Self:
        only_one(self, "model", "pretrain")
        if self.revision is not None and self.model is None:
            raise FieldError("revision goes with model, not with pretrain", at=("revision",))
        if self.trust_remote_code and self.model is None:
            raise FieldError("trust_remote_code goes with model, not with pretrain", at=("trust_remote_code",))
        if "rest" in self.model_fields_set and self.model is None:
            raise FieldError("rest goes with model, not with pretrain", at=("rest",))
        return self

    @property
    def keeps_rest(self) -> bool:
        return self.rest == "keep"


def _keep_form(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "list"
    if isinstance(value, KeepChoice) or (isinstance(value, dict) and value.keys() & KeepChoice.model_fields.keys()):
        return "choice"
    return "rule" if isinstance(value, (dict, KeepRule)) else "count"


Keep = Annotated[
    Annotated[Annotated[int, Field(ge=1)], Tag("count")]
    | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Tag("list")]
    | Annotated[KeepRule, Tag("rule")]
    | Annotated[KeepChoice, Tag("choice")],
    Discriminator(_keep_form),
]


class StudentSpec(Strict):
    """The small model: made from some of the teacher's layers, or one that exists (`model`)."""

    keep: Annotated[
        Keep | None,
        Field(
            description="The teacher's layers that the student starts from: a rule, how many (evenly spaced), a list, "
            "or how many by a score on calibration text.",
            examples=[{"every": 2, "first": 1, "last": 2}, 19, [0, 2, 4, 6], {"block_influence": 19}],
        ),
    ] = None
    model: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Hub id or folder of a distilled student. Its layer mapping is in its student_config.json, "
            "or given as `keep`. Nothing is distilled.",
            examples=["Harvard-DCML/boomerang-qwen3-2.3B"],
        ),
    ] = None
    revision: Revision = None
    trust_remote_code: TrustRemoteCode = False
    train_embedding: Annotated[
        bool, Field(description="false freezes the embedding (and a head tied to it), so that every size stays tied.")
    ] = True

    @model_validator(mode="after")
    def _made_or_found(self) -> Self:
        if self.keep is None and self.model is None:
            raise FieldError("keep is missing: which layers does the student start from?", hint="or name a `model`")
        if self.model is None and self.revision is not None:
            raise FieldError("revision goes with model", at=("revision",))
        if self.model is None and self.trust_remote_code:
            raise FieldError("trust_remote_code goes with model", at=("trust_remote_code",))
        if self.model is not None and isinstance(self.keep, KeepChoice):
            raise FieldError("the mapping of a model that exists cannot be searched", at=("keep",))
        if self.model is not None and "train_embedding" in self.model_fields_set:
            raise FieldError("train_embedding goes with a student that is distilled here", at=("train_embedding",))
        return self


def _order_form(value: Any) -> str:
    return "search" if isinstance(value, (dict, OrderSearch)) else _name_or_list(value)


def _name_or_list(value: Any) -> str:
    return "list" if isinstance(value, (list, tuple)) else "name"


class BudgetSpec(Strict):
    """The model of most layers whose weights and KV cache fit into so much memory."""

    fits: Annotated[Bytes, Field(gt=0, description="Bytes for weights and KV cache.")]
    context: Annotated[Positive, Field(description="Tokens of each sequence in the cache.")]
    batch: Annotated[Positive, Field(description="Sequences in the cache.")] = 1


def _size_form(value: Any) -> str:
    return "budget" if isinstance(value, (dict, BudgetSpec)) else "size"


SizeItem = Annotated[
    Annotated[SizesField, Tag("size")] | Annotated[BudgetSpec, Tag("budget")], Discriminator(_size_form)
]


def _sizes_form(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "list"
    name = value is None or (isinstance(value, str) and not any(c.isdecimal() for c in value))
    return "name" if name else _size_form(value)


class InterpolateSpec(Strict):
    """Which sizes between student and teacher are built, and in which order blocks are patched."""

    order: Annotated[
        Annotated[Literal["first_to_last", "last_to_first"], Tag("name")]
        | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Tag("list")]
        | Annotated[OrderSearch, Tag("search")],
        Discriminator(_order_form),
        Field(
            description="Patch order: a name, the student layers (blocks) in the order of patching, or a search.",
            examples=["last_to_first", [3, 2, 1, 0], {"search": "klpatch"}],
        ),
    ] = "last_to_first"
    singletons: Annotated[
        Singletons,
        Field(description="Whose the blocks of one layer are: the student's, or by the rule of the published code."),
    ] = "student"
    sizes: Annotated[
        Annotated[Literal["all"], Tag("name")]
        | Annotated[SizesField, Tag("size")]
        | Annotated[BudgetSpec, Tag("budget")]
        | Annotated[tuple[SizeItem, ...], Tag("list")],
        Discriminator(_sizes_form),
        Field(
            description="all, a size, a range, a budget, or a list of these. Student and teacher are always built.",
            examples=["all", "2.5B..3.5B step 0.25B", ["80%", "24 layers"], {"fits": "8GiB", "context": 4096}],
        ),
    ] = "all"
    choose: Annotated[
        Literal["not_above", "nearest"],
        Field(description="Which model answers a size between two models. A budget is never exceeded."),
    ] = "not_above"

    @field_validator("sizes", mode="after")
    @classmethod
    def _some_size(cls, sizes: Any) -> Any:
        # A length on the tuple would be measured without the items that are wrong themselves.
        if sizes == ():
            raise FieldError("must have at least 1 item, not 0")
        return sizes

    @model_validator(mode="after")
    def _reference_needs_direction(self) -> Self:
        if self.singletons == "reference" and self.order not in ORDERS:
            message = "reference is defined for the orders first_to_last and last_to_first only"
            raise FieldError(message, at=("singletons",))
        if "choose" in self.model_fields_set and self.sizes == "all":
            raise FieldError("all sizes are built: there is nothing to choose", at=("choose",))
        return self
