"""The kind `tokenize`: documents become a stream of tokens."""

from typing import Literal

from boomspec.core.tasks.record import AFTER_TOKENIZE, Cost, Prices, Record
from boomspec.core.types import Strict


class TrainTokenizer(Strict):
    """A byte-level BPE tokenizer of `vocabulary` entries, trained on the first `bytes` bytes of the text."""

    vocabulary: int
    bytes: int


class Conversations(Strict):
    """Rows that hold conversations, by the names of their fields, and how they are rendered."""

    messages: str | None = None
    tools: str | None = None
    prompt: str | None = None  # with `response`, in the place of messages
    response: str | None = None
    loss_on: Literal["responses"] | None = None  # None: every token is a label
    template: str | None = None  # a chat template, in the place of the tokenizer's


class Tokenize(Record):
    """Inputs: `text`, `tokenizer` (not with `train_tokenizer`), `held_out` (only where it has files of its own).

    The tokenizer is a source, or the token artifact of another text, for which it was trained.
    """

    kind, version = "tokenize", 2
    reads_models = False
    usual_work = 10
    bytes_a_second = 3e6

    text_field: str
    train_tokenizer: TrainTokenizer | None = None
    skip: int  # documents passed over at the start
    max_tokens: int | None = None  # training tokens; None takes every document
    held_out_every: int  # every n-th document is held out; 0 holds out none
    held_out_offset: int
    bos: bool | None = None  # whether a document begins with the token for that; None: as the tokenizer itself does it
    on_bad_row: Literal["skip"] | None = None  # None: a row without text is an error
    chat: Conversations | None = None  # None: rows hold texts

    def cost(self, prices: Prices) -> Cost:
        if self.max_tokens is None:
            return Cost(read=prices.text_bytes, unknown=AFTER_TOKENIZE)
        width = token_bytes(self.train_tokenizer.vocabulary) if self.train_tokenizer else prices.token_bytes
        held_out = self.max_tokens // (self.held_out_every - 1) if self.held_out_every > 1 else 0
        return Cost(read=prices.text_bytes, disk=width * (self.max_tokens + held_out))


def token_bytes(vocabulary: int) -> int:
    """Bytes of a token id in a stream."""
    return 2 if vocabulary <= 1 << 16 else 4
