"""The section `teacher`: a model that exists, or a small one that the experiment pretrains."""

from typing import Literal

from pydantic import Field

from boomspec.core.types import Bytes, Number, Strict, about
from boomspec.spec.sections.models import Revision, TrustRemoteCode
from boomspec.spec.sections.training import Positive, Training
from boomspec.spec.validate import FieldError, goes_with, only_one


class TokenizerSpec(Strict):
    """A byte-level BPE tokenizer trained on the data."""

    vocabulary: int = about("Entries, the end-of-text token included.", [1024], ge=257, le=1_000_000)
    train_on: Bytes = about("So many bytes at the start of the text.", default=10_000_000, gt=0)


class PretrainSpec(Training):
    """A small Llama that the experiment trains itself, so that it needs no download."""

    tokens: Positive = about("Training tokens in all.")
    layers: int = about("Decoder layers.", [8], ge=2)
    hidden_size: int = about("Width of the residual stream.", [64], ge=2)
    intermediate_size: int = about("Width inside the MLP.", [160], ge=1)
    attention_heads: int = about("Query heads.", [4], ge=1)
    key_value_heads: int | None = about("Default: as many as attention heads.", [2], default=None, ge=1)
    positions: int | None = Field(None, examples=[4096], ge=8)
    """Positions that the model has. Default: data.sequence_length."""
    tied_embeddings: bool = about("Embedding and head are one matrix.", default=True)
    initializer_range: Number = Field(0.02, gt=0)
    """Standard deviation of the initial weights; narrow deep models want more."""
    tokenizer: TokenizerSpec = about("Learned from the data.", [{"vocabulary": 1024, "train_on": "2MB"}])

    def model_post_init(self, _: object) -> None:
        if self.hidden_size % (2 * self.attention_heads):
            twice = 2 * self.attention_heads
            message = f"must be a multiple of {twice} (twice the attention_heads), not {self.hidden_size}"
            raise FieldError(message, at=("hidden_size",))
        if self.key_value_heads is not None and self.attention_heads % self.key_value_heads:
            message = f"must divide the attention_heads ({self.attention_heads}), not {self.key_value_heads}"
            raise FieldError(message, at=("key_value_heads",))


class TeacherSpec(Strict):
    """The large model: one that exists (`model`), or a small one to be trained first (`pretrain`)."""

    model: str | None = about("Hub id or folder.", ["Qwen/Qwen3-4B-Base", "./my-teacher"], default=None, min_length=1)
    revision: Revision = None
    trust_remote_code: TrustRemoteCode = False
    rest: Literal["keep", "drop"] = Field("drop", examples=["keep", "drop"])
    """What becomes of the parts beside the text decoder (an image encoder, a projector): every size with layers of
    the teacher keeps them, or is a language model alone."""
    pretrain: PretrainSpec | None = Field(
        None,
        examples=[
            {"layers": 8, "hidden_size": 64, "intermediate_size": 160, "attention_heads": 4}
            | {"tokenizer": {"vocabulary": 1024}, "tokens": "1.5M", "batch_tokens": 1024}
        ],
    )
    """A small Llama that is trained by this experiment, on its data."""

    def model_post_init(self, _: object) -> None:
        only_one(self, "model", "pretrain")
        goes_with(self, "model", "revision", "trust_remote_code", "rest", not_with="pretrain")

    @property
    def keeps_rest(self) -> bool:
        return self.rest == "keep"
