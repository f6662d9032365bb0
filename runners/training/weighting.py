"""The weights of the terms at each step, and the numbers that terms read as `t`: a fold over the rows of the metrics.

    weight of a term at a step = its own (a number, or a course over the steps)
                                 * size of the first term / its own size     with `balance`

The sizes of the terms, without weights, are those at step 0 (`start`), or a running mean of the steps that are done
(`running`). Those of step 0 itself are measured in front of it. Then all terms whose own weights are equal count alike,
and the first term keeps its own weight.

Everything follows from the rows that are done: a training that was interrupted goes on with the same bits.
"""

from collections.abc import Generator, Mapping
from typing import Any

from boomspec.core.errors import BoomspecError
from boomspec.core.losses import Losses
from boomspec.core.losses.weight import COLUMN, Weight, WeightCourse, weight_at
from boomspec.core.tasks.record import Balance
from runners.training.moment import Moment

_DECAY = 0.95  # of the running mean: it remembers about twenty steps
_NUMBER = "t."  # of a column of the metrics


class Weighting:
    """Weights by kind of term; where nothing changes them, the given ones."""

    def __init__(
        self,
        weights: Mapping[str, Weight],
        steps: int,
        *,
        balance: Balance | None = None,
        courses: Mapping[str, Generator[float, float, None]] | None = None,
    ) -> None:
        self.own, self.steps, self.balance = dict(weights), steps, balance
        self._courses = dict(courses or {})
        self._numbers = {kind: next(course) for kind, course in self._courses.items()}
        self._sizes: dict[str, float] | None = None
        self._rows = 0

    @property
    def needs_sizes(self) -> bool:
        """Whether the sizes at step 0 have to be measured in front of it."""
        return self.balance is not None and self._sizes is None

    def measured(self, terms: Mapping[str, float]) -> None:
        """The values of the terms in front of step 0."""
        self._sizes = {kind: abs(terms[kind]) for kind in self.own}
        if empty := [kind for kind, size in self._sizes.items() if not size]:
            message = (
                f"distill.balance: {', '.join(empty)} is 0 at step 0, so no weight makes it as large as the others"
            )
            raise BoomspecError(message, hint="leave the term out, or give the weights without balance")

    def see(self, row: Mapping[str, Any]) -> None:
        """The row of a step that is done; rows come in their order, and each once."""
        if self.balance is not None and self._rows == 0:
            self._sizes = {kind: abs(row[kind]) for kind in self.own}
        elif self.balance == "running" and self._sizes is not None:
            for kind, size in self._sizes.items():
                self._sizes[kind] = _DECAY * size + (1 - _DECAY) * abs(row[kind])
        self._numbers = {kind: course.send(row[kind]) for kind, course in self._courses.items()}
        self._rows += 1

    def weights(self, step: int) -> dict[str, float]:
        found = {kind: weight_at(weight, step, self.steps) for kind, weight in self.own.items()}
        if self._sizes is not None:
            first = next(iter(self._sizes.values()))
            # A term that has become 0 needs no weight: none makes it larger.
            found = {kind: weight * first / (self._sizes[kind] or first) for kind, weight in found.items()}
        return found

    def moment(self, step: int, first_row: int) -> Moment:
        return Moment(step, self.steps, first_row, self.weights(step), self._numbers)

    def columns(self, step: int) -> dict[str, float]:
        """For the row of a step: the weights that are no plain numbers of the spec, and what terms read as `t`."""
        changing = {
            f"{COLUMN}{kind}": weight
            for kind, weight in self.weights(step).items()
            if self.balance is not None or isinstance(self.own[kind], WeightCourse)
        }
        return changing | {f"{_NUMBER}{kind}": number for kind, number in self._numbers.items()}


def weighting(losses: Losses, steps: int, *, balance: Balance | None = None) -> Weighting:
    """Of the terms of a distillation of so many steps."""
    terms = losses.terms()
    courses = {kind: course for kind, term in terms.items() if (course := term.course(steps)) is not None}
    return Weighting({kind: term.weight for kind, term in terms.items()}, steps, balance=balance, courses=courses)
