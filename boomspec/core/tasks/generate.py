"""The kind `generate`: the teacher writes text, as tokens, which students are then trained on."""

from typing import Literal

from boomspec.core.tasks.record import Cost, Determinism, Precision, Prices, Record
from boomspec.core.tasks.tokenize import token_bytes
from boomspec.core.types import Strict


class Sampling(Strict):
    """How the next token is drawn from a model's distribution."""

    temperature: float = 1.0
    top_k: int | None = None  # of the most probable tokens only; None: of all
    top_p: float | None = None  # of the fewest most probable ones that have this much of the probability; None: of all


class Generate(Record):
    """Writes what `tokenize` writes, without held-out text. Inputs: `teacher`; `tokens`, where prompts come from."""

    kind, version = "generate", 1
    usual_work = 500

    rows: int  # sequences that are written, each of `sequence_length` tokens
    sequence_length: int
    prompt_tokens: int  # that each row has from the text; 0: it has what every text begins with, and nothing more
    label_prompts: Literal[True] | None = None  # students learn to predict the text's tokens, too
    sampling: Sampling
    seed: int
    precision: Precision
    determinism: Determinism | None = None

    @property
    def tokens(self) -> int:
        return self.rows * self.sequence_length

    def cost(self, prices: Prices) -> Cost:
        teacher, bf16 = prices.models["teacher"], self.precision == "bf16"
        written = self.rows * (self.sequence_length + 1 - max(1, self.prompt_tokens))
        batch, width = min(prices.batch_size, self.rows), 2 if bf16 else 4
        memory = teacher.measuring(bf16=bf16, tokens=batch * max(1, self.prompt_tokens))
        memory["head"] = max(memory.get("head", 0), SAMPLED_BYTES * batch * teacher.vocabulary)
        memory["cache"] = batch * self.sequence_length * teacher.cache_elements * width
        return Cost(
            flops=self.tokens * teacher.forward(self.sequence_length) + written * teacher.head(),
            memory=memory,
            disk=self.tokens * token_bytes(teacher.vocabulary),
            read=teacher.bytes,
            tokens=self.tokens,
            real_tokens=self.tokens,
        )

    def pace(self) -> tuple[str, ...]:
        return (self.precision,)


# Of a number of the vocabulary while a token is drawn: logits, probabilities and their like in fp32, counts and their
# sums in 64 bits.
SAMPLED_BYTES = 3 * 4 + 2 * 8
