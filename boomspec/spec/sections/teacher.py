"""The section `teacher`: a model that exists, or a small one that the experiment pretrains."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from boomspec.core.types import Bytes, Number, Strict
from boomspec.spec.sections.training import Training
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


class TokenizerSpec(Strict):
    """A byte-level BPE tokenizer trained on the data."""

    vocabulary: Annotated[
        int, Field(ge=257, le=1_000_000, description="Entries, the end-of-text token included.", examples=[1024])
    ]
    train_on: Annotated[Bytes, Field(gt=0, description="So many bytes at the start of the text.")] = 10_000_000


class PretrainSpec(Training):
    """A small Llama that the experiment trains itself, so that it needs no download."""

    layers: Annotated[int, Field(ge=2, description="Decoder layers.", examples=[8])]
    hidden_size: Annotated[int, Field(ge=2, description="Width of the residual stream.", examples=[64])]
    intermediate_size: Annotated[int, Field(ge=1, description="Width inside the MLP.", examples=[160])]
    attention_heads: Annotated[int, Field(ge=1, description="Query heads.", examples=[4])]
    key_value_heads: Annotated[
        int | None, Field(ge=1, description="Default: as many as attention heads.", examples=[2])
    ] = None
    positions: Annotated[
        int | None,
        Field(ge=8, description="Positions that the model has. Default: data.sequence_length.", examples=[4096]),
    ] = None
    tied_embeddings: Annotated[bool, Field(description="Embedding and head are one matrix.")] = True
    initializer_range: Annotated[
        Number, Field(gt=0, description="Standard deviation of the initial weights; narrow deep models want more.")
    ] = 0.02
    tokenizer: Annotated[
        TokenizerSpec,
        Field(description="Learned from the data.", examples=[{"vocabulary": 1024, "train_on": "2MB"}]),
    ]

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % (2 * self.attention_heads):
            twice = 2 * self.attention_heads
            message = f"must be a multiple of {twice} (twice the attention_heads), not {self.hidden_size}"
            raise FieldError(message, at=("hidden_size",))
        if self.key_value_heads is not None and self.attention_heads % self.key_value_heads:
            message = f"must divide the attention_heads ({self.attention_heads}), not {self.key_value_heads}"
            raise FieldError(message, at=("key_value_heads",))
        return self


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
