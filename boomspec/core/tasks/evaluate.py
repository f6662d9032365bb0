"""The kind `evaluate`: one model is measured in one way."""

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator

from boomspec.core.tasks.recipe import Determinism, Precision
from boomspec.core.tasks.record import Record
from boomspec.core.types import Strict


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

    kind: ClassVar[str] = "evaluate"
    version: ClassVar[int] = 2
    usual_work: ClassVar[int] = 10

    measure: Annotated[HeldOut | LmEval, Discriminator("type")]
    precision: Precision
    determinism: Determinism | None = None
