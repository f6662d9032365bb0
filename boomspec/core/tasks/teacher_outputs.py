"""The kind `teacher_outputs`: what a teacher says about the text of a training is stored once, for all its students."""

from typing import Annotated, Literal

from pydantic import Discriminator

from boomspec.core.tasks.record import Cost, Determinism, Precision, Prices, Record, TextCounts
from boomspec.core.tasks.tokenize import token_bytes
from boomspec.core.types import Strict
from boomspec.core.work_sizes import CHUNK_LOGITS, LEAST_CHUNK, TILE_LOGITS

_LOG = 2  # bytes of a log-probability, or of a log-weight: fp16
_ENTROPY = 4  # bytes: fp32
# Bytes of each logit of a tile, beside the chunk's: log-probabilities and the rest's; sums in whole numbers of 8 bytes.
_OF_TILE = {"top_k": 12, "samples": 40}


class TopTokens(Strict):
    """The `k` likeliest tokens of each position with their log-probabilities, and that of all others together."""

    type: Literal["top_k"] = "top_k"
    k: int

    def bytes(self, vocabulary: int) -> int:
        """Of one position."""
        kept = min(self.k, vocabulary)
        return kept * (token_bytes(vocabulary) + _LOG) + (_LOG if kept < vocabulary else 0)


class Samples(Strict):
    """So many tokens of each position, drawn from softmax(logits / temperature) (RS-KD, arXiv 2503.16870).

    With them their importance weights, unless all are 1, as at temperature 1, and the entropy.
    """

    type: Literal["samples"] = "samples"
    count: int
    temperature: float

    @property
    def weighted(self) -> bool:
        return self.temperature != 1

    def bytes(self, vocabulary: int) -> int:
        """Of one position."""
        return self.count * (token_bytes(vocabulary) + (_LOG if self.weighted else 0)) + _ENTROPY


Stored = Annotated[TopTokens | Samples, Discriminator("type")]


class TeacherOutputs(Record):
    """Inputs: `teacher`, `tokens`.

    Of the first `rows` windows of the text in the order of `seed`, or of all where there are fewer: a training of this
    seed reads these and no others, whatever its losses, its learning rate or its student are.
    """

    kind, version = "teacher_outputs", 1
    usual_work = 500

    stored: Stored
    seed: int
    rows: int
    sequence_length: int
    isolate: Literal[True] | None = None  # documents of a row do not see each other
    precision: Precision
    determinism: Determinism | None = None

    def cost(self, prices: Prices) -> Cost:
        teacher, length = prices.models["teacher"], self.sequence_length
        tokens, batch = self.rows * length, min(prices.batch_size, self.rows) * length
        rate = teacher.forward(length) + teacher.head()
        memory = teacher.measuring(bf16=self.precision == "bf16", tokens=batch)
        place, vocabulary = "cuda" if prices.on_gpu else "cpu", teacher.vocabulary
        chunk = min(batch, max(LEAST_CHUNK[place], CHUNK_LOGITS // vocabulary))
        tile = min(chunk, max(1, TILE_LOGITS[place] // vocabulary))
        head = vocabulary * (4 * chunk + _OF_TILE[self.stored.type] * tile)
        return Cost(
            flops=rate * tokens,
            memory=memory | {"head": max(memory.get("head", 0), head)},
            disk=tokens * self.stored.bytes(teacher.vocabulary),
            read=teacher.bytes,
            tokens=tokens,
            real_tokens=tokens,
            flops_per_real_token=rate,
        )

    def counted(self, cost: Cost, text: TextCounts) -> Cost:
        real = min(self.rows, text.windows(self.sequence_length)) * self.sequence_length
        return cost.counted(real, tokens=real, disk=cost.disk // cost.tokens * real)

    def pace(self) -> tuple[str, ...]:
        return (self.precision,)
