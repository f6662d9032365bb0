"""Train several students side by side in one process, which share what their teacher says about each micro batch.

The students take turns: one micro batch of one after the other, those that are behind first. So students that continue
from checkpoints of different steps meet again, and one graph is alive at a time. Each has its own optimiser, metrics
and checkpoints, and becomes what it would have become alone.
"""

from collections.abc import Iterator, Sequence
from heapq import heapify, heappop, heappush

import torch
from torch import Tensor

from boomspec.core.errors import BoomspecError
from runners.training.distillation import Targets, TargetsOf
from runners.training.loop import MicroBatches, Turn
from runners.training.moment import Moment


class SharedTargets:
    """`targets_of` for students whose micro batches are the same: computed once for each turn."""

    def __init__(self, targets_of: TargetsOf) -> None:
        self._targets_of = targets_of
        self._turn: Turn | None = None
        self._found: Targets | None = None

    def turn_to(self, turn: Turn) -> None:
        if turn != self._turn:
            self._turn, self._found = turn, None

    def __call__(self, inputs_BT: Tensor, moment: Moment) -> Targets:
        if self._found is None:
            self._found = self._targets_of(inputs_BT, moment)
        return self._found


def taking_turns(
    trainings: Sequence[MicroBatches], shared: SharedTargets
) -> Iterator[tuple[int, BoomspecError | None]]:
    """Run the trainings to their ends. Yields the number of each when it has ended, or failed with an error of its own.

    An interrupt reaches all of them, so that each leaves a checkpoint.
    """
    waiting: list[tuple[Turn, int]] = [((-1, number), number) for number in range(len(trainings))]  # to be set up
    heapify(waiting)
    try:
        while waiting:
            turn, number = heappop(waiting)
            shared.turn_to(turn)
            try:
                heappush(waiting, (next(trainings[number]), number))
                if len(trainings) > 1:
                    torch.clear_autocast_cache()  # of a student that waits: casts of all would take much memory
            except StopIteration:
                yield number, None
            except BoomspecError as error:
                yield number, error
    except KeyboardInterrupt:
        for _, number in waiting:
            try:
                trainings[number].throw(KeyboardInterrupt)
            except (KeyboardInterrupt, StopIteration):
                continue
        raise
