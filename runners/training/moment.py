"""Where a training stands when it computes the loss of a micro batch: what a loss may depend on beside its tokens.

All of it is a function of the recipe and of the rows that the metrics have so far (`weighting.py`). So a training that
was interrupted goes on to the same bits, and how a batch is cut into micro batches, or over workers, changes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from boomspec.core.losses import Loss


@dataclass(frozen=True)
class Moment:
    step: int = 0
    steps: int = 1  # of the whole training
    first_row: int = 0  # of the micro batch: the number of its first sequence in the effective batch
    weights: Mapping[str, float] = field(default_factory=dict)  # by kind, of the terms that do not have their own
    numbers: Mapping[str, float] = field(default_factory=dict)  # by kind, of the terms that read `t`

    def weight(self, term: Loss) -> float:
        """The factor of a term in the total loss."""
        return self.weights[term.kind] if term.kind in self.weights else term.weight_at(self.step, self.steps)

    def t(self, term: Loss) -> float:
        """What a term reads as `t`; without any number of its own that of its first step, and 0 where it reads none."""
        if term.kind not in self.numbers and (course := term.course(self.steps)) is not None:
            return next(course)
        return self.numbers.get(term.kind, 0.0)


START = Moment()
