"""The kind `evaluate`: one model is measured in one way."""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Discriminator

from boomspec.core.tasks.asking import Chat, Generation, Thinking
from boomspec.core.tasks.record import AFTER_TOKENIZE, Cost, Determinism, Precision, Prices, Record, TextCounts
from boomspec.core.types import Strict

REQUESTS = "how many requests lm-eval makes, and of what length"


class HeldOut(Strict):
    """Loss per token, perplexity and bits per byte of the held-out text, in windows of `sequence_length`."""

    type: Literal["held_out"] = "held_out"
    sequence_length: int
    max_tokens: int | None = None
    isolate: Literal[True] | None = None  # documents of a row do not see each other


class LmEval(Strict):
    """One lm-eval task. What cannot change its numbers is left out (see `boomspec.compile.lm_eval.randomness`)."""

    type: Literal["lm_eval"] = "lm_eval"
    task: str
    num_fewshot: int | None = None  # None: what the task says
    limit: int | None = None  # first n documents; None takes all
    seed: int | None = None  # None: nothing is drawn at random
    bootstrap_iters: int | None = None  # None: no standard error is bootstrapped; 0: there are none at all
    chat: Chat | None = None  # None: prompts are plain text
    generation: Generation | None = None  # over what the task says; what it has drawn is drawn as `Generation` says
    thinking: Thinking | None = None  # None: all of a text is the answer
    samples: int | None = None  # texts for each document, whose numbers are averaged; None: one

    @property
    def drawn(self) -> bool:
        """Whether text that is drawn has random numbers of its own for each document, and not lm-eval's."""
        return self.generation is not None or self.samples is not None

    def longest(self) -> str:
        """What is known of how much text is generated, behind what is not."""
        tokens, texts = None if self.generation is None else self.generation.max_tokens, self.samples or 1
        if tokens is None:
            return ""
        each = f"{texts} texts of {tokens:,} tokens" if texts > 1 else f"{tokens:,} tokens"
        if self.limit is None:
            return f"; at most {each} are generated for a document"
        whole = self.limit * texts * tokens
        return f"; at most {self.limit:,} x {each} are generated for each task and model: {whole:,} tokens"


class Evaluate(Record):
    """Inputs: `model`; `tokens` for held-out text; for lm-eval `tasks`, and `tokenizer` if not the model's own."""

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
            if measure.generation is not None and (written := measure.generation.max_tokens) is not None:
                # Of the texts alone: prompts are not known yet.
                memory["cache"] = prices.batch_size * written * model.cache_elements * (2 if bf16 else 4)
            what = REQUESTS + measure.longest()
            return Cost(memory=memory, read=model.bytes, real_tokens=None, flops_per_real_token=rate, unknown=what)
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
        measure = self.measure
        more = () if measure.samples is None else (f"{measure.samples} texts",)
        if measure.generation is not None and measure.generation.max_tokens is not None:
            more = (*more, f"of {measure.generation.max_tokens} tokens")
        return measure.task, str(measure.num_fewshot), str(measure.limit), self.precision, *more
