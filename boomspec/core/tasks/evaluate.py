"""The kind `evaluate`: one model is measured in one way."""

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator

from boomspec.core.tasks.cost import AFTER_TOKENIZE, Cost, PricedModel, Prices, TextCounts
from boomspec.core.tasks.recipe import Determinism, Precision
from boomspec.core.tasks.record import Record
from boomspec.core.types import Strict

REQUESTS = "how many requests lm-eval makes, and of what length"


class HeldOut(Strict):
    """Loss per token, perplexity and bits per byte of the held-out text, in windows of `sequence_length`."""

    type: Literal["held_out"] = "held_out"
    sequence_length: int
    max_tokens: int | None = None

    def cost(self, model: PricedModel, bf16: bool, batch_size: int) -> Cost:
        rate = model.forward(self.sequence_length) + model.head()
        tokens = 0 if self.max_tokens is None else self.max_tokens - 1  # the first is no label
        return Cost(
            flops=rate * tokens,
            memory=model.measuring(bf16=bf16, tokens=batch_size * self.sequence_length),
            read=model.bytes,
            tokens=tokens,
            real_tokens=tokens or None,
            flops_per_real_token=rate,
            unknown="" if tokens else AFTER_TOKENIZE,
        )


class LmEval(Strict):
    """One lm-eval task. What cannot change its numbers is left out (see `boomspec.compile.lm_eval.randomness`)."""

    type: Literal["lm_eval"] = "lm_eval"
    task: str
    num_fewshot: int | None = None  # None: what the task says
    limit: int | None = None  # first n documents; None takes all
    seed: int | None = None  # None: nothing is drawn at random
    bootstrap_iters: int | None = None  # None: no standard error is bootstrapped; 0: there are none at all

    def cost(self, model: PricedModel, bf16: bool, batch_size: int) -> Cost:
        return Cost(
            memory={"weights": model.parameters * (2 if bf16 else 4)},
            read=model.bytes,
            real_tokens=None,
            flops_per_real_token=model.forward(0) + model.head(),
            unknown=REQUESTS,
        )


class Evaluate(Record):
    """Inputs: `model`; `tokens` for held-out text, `tasks` (source) for lm-eval."""

    kind: ClassVar[str] = "evaluate"
    version: ClassVar[int] = 2
    usual_work: ClassVar[int] = 10

    measure: Annotated[HeldOut | LmEval, Discriminator("type")]
    precision: Precision
    determinism: Determinism | None = None

    def cost(self, prices: Prices) -> Cost:
        rows = prices.batch_size
        return self.measure.cost(prices.models["model"], self.precision == "bf16", rows)

    def counted(self, cost: Cost, text: TextCounts) -> Cost:
        if isinstance(self.measure, LmEval):
            return cost
        limit = self.measure.max_tokens
        real = max(0, (text.held_out() if limit is None else min(limit, text.held_out())) - 1)
        return cost.counted(real, tokens=real, unknown="")

    def work(self, cost: Cost) -> float | None:
        return float(cost.flops_per_real_token) or None if isinstance(self.measure, LmEval) else super().work(cost)

    def pace(self) -> tuple[str, ...]:
        if isinstance(self.measure, HeldOut):
            return "", self.precision
        return self.measure.task, str(self.measure.num_fewshot), str(self.measure.limit), self.precision
