"""Run a causal language model in parts: what comes before its decoder layers, each layer, what comes after them.

No family is named here. For a batch of tokens the model is run once with hollow layers, which note how they are called
(masks, positions, whatever the family hands to its layers) and pass their input on. From then on every layer can be run
alone, on any hidden state of that batch; what comes after the layers is the model run once more with hollow layers, of
which the last one gives the hidden state that is to be finished. Does NOT work for models whose layers share state
beside the hidden one (a layer that reads another's keys): `take_apart` raises for those.

Shapes: B sequences, T positions, D hidden size.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from boomspec.core.errors import BoomspecError
from runners.modeling.hidden_states import LMHead, check_head, decoder_layers, same_result, trunk

_CHECKED_TOKENS = 32

_Call = tuple[tuple[Any, ...], dict[str, Any]]  # what a layer is given beside the hidden state
_Hollow = Callable[[int, Tensor, _Call], Tensor]


class Parts:
    """The parts of one model, sharing its parameters; `Batch` opens them for a batch. Made by `take_apart`."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.layers = decoder_layers(model)
        self.head = LMHead(model)
        self.in_tuples: set[int] = set()  # layers that return (hidden state, ...) instead of the hidden state

    @contextmanager
    def hollow(self, forward: _Hollow) -> Iterator[None]:
        """Within the context layer i does `forward(i, its input, what else it is given)` instead of its own work."""

        def stand_in(index: int, *positional: Any, **named: Any) -> Any:
            hidden_BTD = positional[0] if positional else named.pop("hidden_states")
            output_BTD = forward(index, hidden_BTD, (positional[1:], named))
            return (output_BTD, None) if index in self.in_tuples else output_BTD

        try:
            for index, layer in enumerate(self.layers):
                vars(layer)["forward"] = partial(stand_in, index)
            yield
        finally:
            for layer in self.layers:
                vars(layer).pop("forward", None)


class Batch:
    """One model's parts for one batch of tokens_BT.

    `arguments`: what the model is called with beside the tokens, such as a mask and positions.
    """

    def __init__(self, parts: Parts, tokens_BT: Tensor, arguments: Mapping[str, Any] = MappingProxyType({})) -> None:
        self._parts, self._tokens_BT, self._arguments = parts, tokens_BT, arguments
        self._calls: dict[int, _Call] = {}
        inputs: dict[int, Tensor] = {}

        def note(index: int, hidden_BTD: Tensor, call: _Call) -> Tensor:
            self._calls[index], inputs[index] = call, hidden_BTD
            return hidden_BTD

        with parts.hollow(note):
            trunk(parts.model, tokens_BT, **arguments)
        self.embedding_BTD = inputs[0]

    def layer(self, index: int, hidden_BTD: Tensor, *, module: nn.Module | None = None) -> Tensor:
        """The output of layer `index` for a hidden state; of `module` in its place, where one is given."""
        positional, named = self._calls[index]
        output = (module or self._parts.layers[index])(hidden_BTD, *positional, **named)
        state_BTD: Tensor = output if isinstance(output, Tensor) else output[0]
        return state_BTD

    def finish(self, hidden_BTD: Tensor) -> Tensor:
        """What the head reads (for most families: after the final norm), from the last layer's output."""
        last = len(self._parts.layers) - 1
        with self._parts.hollow(lambda index, passed_BTD, _call: hidden_BTD if index == last else passed_BTD):
            return trunk(self._parts.model, self._tokens_BT, **self._arguments)


@torch.no_grad()
def take_apart(model: Any, tokens_BT: Tensor) -> Parts:
    """The parts of `model`; BoomspecError unless its layers, run one by one on some tokens, give its own result."""
    check_head(model)
    parts = Parts(model)
    tokens_BT = tokens_BT[:1, :_CHECKED_TOKENS]

    def note_form(index: int, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            parts.in_tuples.add(index)

    with ExitStack() as hooks:
        for index, layer in enumerate(parts.layers):
            hooks.callback(layer.register_forward_hook(partial(note_form, index)).remove)
        expected_BTD = trunk(model, tokens_BT)
    batch = Batch(parts, tokens_BT)
    hidden_BTD = batch.embedding_BTD
    other_BTD = hidden_BTD.flip(1)
    for index in range(len(parts.layers)):
        hidden_BTD = batch.layer(index, hidden_BTD)
        # What a layer leaves for a later one is then another state's.
        other_BTD = batch.layer(index, other_BTD)
    actual_BTD = batch.finish(hidden_BTD)
    if not same_result(actual_BTD, expected_BTD, model.dtype):
        raise BoomspecError(
            f"model type '{model.config.model_type}': its decoder layers, run one by one, do not give its own result",
            hint="its layers share more than the hidden state; searches and LaCo cannot be done for this family",
        )
    return parts
