"""The kind `evaluate`: one model is measured in one way."""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Discriminator

from boomspec.core.tasks.record import AFTER_TOKENIZE, Cost, Determinism, Precision, Prices, Record, TextCounts
from boomspec.core.types import Strict

REQUESTS = "how many requests lm-eval makes, and of what length"


class HeldOut(Strict):
    """Loss per token, perplexity and bits per byte of the held-out text, in windows of `sequence_length`."""

    type: Literal["held_out"] = "held_out"
    sequence_length: int
    max_tokens: int | None = None


class LmEval(Strict):
    """One lm-eval task. What cannot change its numbers is left out (see `boomspec.compile.lm_eval.randomness`)."""

    type: Literal["lm_eval"] = "lm_eval"
    task: str
    num_fewshot: int | None = None  # None: what the task says
    limit: int | None = None  # first n documents; None takes all
    seed: int | None = None  # None: nothing is drawn at random
    bootstrap_iters: int | None = None  # None: no standard error is bootstrapped; 0: there are none at all


class Evaluate(Record):
    """Inputs: `model`; `tokens` for held-out text, `tasks` (source) for lm-eval."""

    kind, version = "evaluate", 3
    usual_work = 10

    measure: Annotated[HeldOut | LmEval, Discriminator("type")]
    precision: Precision
    determinism: Determinism | None = None
    backend: Literal["vllm"] | None = None  # of text that the model generates; None: transformers

    def cost(self, prices: Prices) -> Cost:
        model, measure, bf16 = prices.models["model"], self.measure, self.precision == "bf16"
        if isinstance(measure, LmEval):
            memory, rate = {"weights": model.parameters * (2 if bf16 else 4)}, model.forward(0) + model.head()
            return Cost(memory=memory, read=model.bytes, real_tokens=None, flops_per_real_token=rate, unknown=REQUESTS)
        length, tokens = measure.sequence_length, (measure.max_tokens or 1) - 1  # the first is no label
        rate = model.forward(length) + model.head()
        memory = model.measuring(bf16=bf16, tokens=prices.batch_size * length)
        cost = Cost(flops=rate * tokens, memory=memory, read=model.bytes, tokens=tokens, flops_per_real_token=rate)
        return replace(cost, real_tokens=tokens or None, unknown="" if tokens else AFTER_TOKENIZE)

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
