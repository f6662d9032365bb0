"""Compute the states in front of a block and behind it when they are needed, from the tokens, with one layer at a time.

Nothing is stored: each block runs the layers below it again, over some steps of its training at once. The states of a
step are computed batch by batch of its own rows, so where a training begins or goes on changes no bit of them.

Shapes: B sequences, T positions, D hidden size.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from boomspec.core.tasks import Precision
from boomspec.core.work_sizes import STREAMED_STATES
from runners.blockwise.layer import embedding, lone_layer
from runners.modeling.models import Code
from runners.runtime.device import autocast, frozen_dtype

Tokens = Callable[[int], Tensor]  # step -> inputs_BT


class StreamedStates:
    """`of(step)`: what layer `block.start` reads and what layer `block.stop - 1` gives, on the tokens of a step."""

    def __init__(
        self,
        model: Path,
        block: range,
        *,
        tokens: Tokens,
        steps: int,
        precision: Precision,
        batch_size: int,
        code: Code = (),
        apart: bool = False,
    ) -> None:
        self._apart = apart  # the documents of a row, which the tokens say
        self._model, self._block, self._code = model, block, code
        self._tokens, self._steps, self._precision, self._batch_size = tokens, steps, precision, batch_size
        self._held: dict[int, tuple[list[Tensor], list[Tensor]]] = {}

    def of(self, step: int) -> tuple[Tensor, Tensor]:
        """input_BTD and target_BTD on the CPU."""
        if step not in self._held:
            self._held = self._computed(step)
        inputs, targets = self._held[step]
        return torch.cat(inputs), torch.cat(targets)

    @torch.no_grad()
    def _computed(self, first: int) -> dict[int, tuple[list[Tensor], list[Tensor]]]:
        self._held = {}  # before others take its place
        dtype = frozen_dtype(self._precision)
        states: dict[int, list[Tensor]] = {}
        with autocast(self._precision), embedding(self._model, dtype=dtype, code=self._code) as embed:
            step = first
            while step < self._steps:
                batches = self._tokens(step).split(self._batch_size)  # type: ignore[no-untyped-call]
                states[step] = [embed(tokens_BT.to(embed.device)).cpu() for tokens_BT in batches]
                step += 1
                held = sum(state.nbytes for each in states.values() for state in each)
                if 2 * held * (len(states) + 1) / len(states) > STREAMED_STATES:
                    break
        given = {step: self._tokens(step) for step in states} if self._apart else {}
        inputs = dict(states)
        for index in range(self._block.stop):
            with autocast(self._precision), lone_layer(self._model, index, dtype=dtype, code=self._code) as layer:
                place = layer.model.device
                for step, each in states.items():
                    rows = given[step].split(self._batch_size) if given else (None,) * len(each)  # type: ignore[no-untyped-call]
                    states[step] = [
                        layer(hidden_BTD.to(place), tokens_BT).cpu()
                        for hidden_BTD, tokens_BT in zip(each, rows, strict=True)
                    ]
            if index + 1 == self._block.start:
                inputs = dict(states)
        return {step: (inputs[step], targets) for step, targets in states.items()}
