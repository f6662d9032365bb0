"""The kind `tokenize`: documents become a stream of tokens."""

from typing import ClassVar, Literal

from boomspec.core.tasks.record import Record
from boomspec.core.types import Strict


class TrainTokenizer(Strict):
    """A byte-level BPE tokenizer of `vocabulary` entries, trained on the first `bytes` bytes of the text."""

    vocabulary: int
    bytes: int


class Tokenize(Record):
    """Sources: `text`, `tokenizer` (not with `train_tokenizer`), `held_out` (only where it has files of its own)."""

    kind: ClassVar[str] = "tokenize"
    version: ClassVar[int] = 2
    reads_models: ClassVar[bool] = False
    usual_work: ClassVar[int] = 10

    text_field: str
    train_tokenizer: TrainTokenizer | None = None
    skip: int  # documents passed over at the start
    max_tokens: int | None = None  # training tokens; None takes every document
    held_out_every: int  # every n-th document is held out; 0 holds out none
    held_out_offset: int
    bos: bool | None = None  # whether a document begins with the token for that; None: as the tokenizer itself does it
    on_bad_row: Literal["skip"] | None = None  # None: a row without text is an error
