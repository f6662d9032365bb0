"""Where a training stands when it computes the loss of a micro batch: what a loss may depend on beside its tokens.

All of it is a function of the recipe and of the rows that the metrics have so far. So a training that was interrupted
goes on to the same bits, and how a batch is cut into micro batches, or over workers, changes nothing.
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

    def weight(self, term: Loss) -> float:
        """The factor of a term in the total loss."""
        return self.weights.get(term.kind, term.weight)


START = Moment()
