"""Mend the seams of one size, where a layer of one owner follows one of the other, by its weights alone.

Behind a seam the stream is not what the next layer was trained on. Some weights of a size are fitted to that, in closed
form and on training text, and it stays an ordinary model of its family. Layers of a pre-norm model add to the stream
(here "writes": the outputs of attention and of the MLP), and nothing multiplies it. So this can be folded into weights:

    scale      one number c for each seam: the stream behind it counts c times as much, so that its mean log length is
               that in the next layer's own model. The norms in front of each layer and of the head take a factor away,
               so all writes behind the seam are divided by c
    channels   one number for each channel of the last write of a layer
    matrix     a D x D matrix in front of that write, W := M W. (LinearPatch, arXiv 2505.24680, has such a product
               between two layers, of the whole stream; no weight of theirs could hold that)
    refit      the matrix W of that write itself

The last three are least squares with a ridge that pulls towards the weights as they are. Fitted are the student's
layers next to a seam: the last ones in front of a teacher's layer, the first ones behind one. Each is fitted so that
the stream behind it is what the teacher has there (student layer i: at the end of block i), in the order of the plan,
so that a later one sees what the earlier ones have become. Errors are relative to the length of the teacher's state,
because the states of a few tokens are a hundred times as long as the others'.

Shapes: B sequences, T positions, N positions of any sequence, D hidden size, F inputs of a layer's last write.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import TEACHER, Layer, Owner, blocks
from boomspec.core.tasks import Seam
from runners.assembly.least_squares import LeastSquares
from runners.modeling.layerwise import Batch, Parts, take_apart

Report = Callable[[float, float], None]  # so much is done, of so much
Stored = Callable[[Layer, str], Tensor]  # a layer's weight of this name ("mlp.down_proj.weight"), as its files have it
_ADDED = {torch.float32: 1e-3, torch.bfloat16: 5e-2}  # relative errors of a stream that is computed in two ways


@dataclass
class Mended:
    """`tensors`: by their names in the layer stack ("3.mlp.down_proj.weight"). `rows`: what was done at each place."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)


@torch.no_grad()
def mend(
    record: Seam,
    models: Mapping[Owner, Any],
    batches: Sequence[Tensor],
    report: Report = lambda *_: None,
    stored: Stored | None = None,
) -> Mended:
    """The weights of a size that are changed. `models`: teacher and student, frozen; `batches`: tokens_BT.

    `stored`: the weights that are changed, where the models compute in fewer bits than their files have.
    Raises BoomspecError for models whose layers do not add to the stream as their family's row says.
    """
    parts = {owner: take_apart(model, batches[0]) for owner, model in models.items()}
    stream = _Streams(parts, batches, stored)
    return _scaled(record, stream, report) if record.fit == "scale" else _fitted(record, stream, report)


class _Streams:
    """Hidden states of all batches, layer by layer, in one model after the other."""

    def __init__(self, parts: Mapping[Owner, Parts], batches: Sequence[Tensor], stored: Stored | None) -> None:
        self.parts, self._stored = parts, stored
        self._opened = [{owner: Batch(one, tokens_BT) for owner, one in parts.items()} for tokens_BT in batches]

    def start(self, owner: Owner) -> list[Tensor]:
        return [opened[owner].embedding_BTD for opened in self._opened]

    def layer(self, layer: Layer, states: Sequence[Tensor]) -> list[Tensor]:
        """What is behind a layer, for what is in front of it, in all batches or the first of them."""
        pairs = zip(self._opened, states, strict=False)
        return [opened[layer.owner].layer(layer.index, state_BTD) for opened, state_BTD in pairs]

    def module(self, layer: Layer, name: str) -> Any:
        return self.parts[layer.owner].layers[layer.index].get_submodule(name)

    def weights(self, layer: Layer, name: str) -> dict[str, Tensor]:
        """Weight and bias of a module of the layer, in fp32, by their own names."""
        found = dict(self.module(layer, name).named_parameters())
        if self._stored is not None:
            of_files = {kind: self._stored(layer, f"{name}.{kind}") for kind in found}
            found = {kind: tensor.to(found[kind].device) for kind, tensor in of_files.items()}
        return {kind: tensor.detach().float() for kind, tensor in found.items()}

    def with_inputs(self, layer: Layer, name: str, states: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The same, and the inputs_BTF of a module of the layer."""
        inputs: list[Tensor] = []
        hook = self.module(layer, name).register_forward_pre_hook(lambda _module, given: inputs.append(given[0]))
        try:
            return self.layer(layer, states), inputs
        finally:
            hook.remove()


def _fitted(record: Seam, stream: _Streams, report: Report) -> Mended:
    found, name = Mended(), record.writes[1]
    ends = [block[-1] for block in blocks(record.kept, len(stream.parts[TEACHER].layers))]
    places = record.places
    states, targets, reached = stream.start(record.plan[0].owner), stream.start(TEACHER), 0
    for place, layer in enumerate(record.plan[: places[-1] + 1]):
        report(place, places[-1] + 1)
        if place not in places:
            states = stream.layer(layer, states)
            continue
        end = ends[layer.index]
        for index in range(reached, end + 1):
            targets = stream.layer(Layer(TEACHER, index), targets)
        reached = end + 1
        fit = _Fit(record, stream.module(layer, name), stream.weights(layer, name)["weight"])
        before, inputs = stream.with_inputs(layer, name, states)
        fit.add(before, targets, inputs)
        change_DF = fit.change()
        after = [_added(state_BTD, input_BTF, change_DF) for state_BTD, input_BTF in zip(before, inputs, strict=True)]
        with _changed(fit.module, fit.stored(change_DF)):
            again = stream.layer(layer, states[:1])
        _check_added(again[0], after[0], type(stream.parts[layer.owner].model).__name__, name)
        found.tensors[f"{place}.{name}.weight"] = fit.stored(change_DF).contiguous()
        errors = {"before": _error(before, targets), "after": _error(after, targets)}
        found.rows.append({"place": place, "layer": str(layer), **errors})
        states = after
    return found


class _Fit:
    """The fit of one write."""

    def __init__(self, record: Seam, module: Any, weight: Tensor) -> None:
        self.record, self.module = record, module
        # A product of GPT-2 stores its matrix the other way round.
        self.turned = not isinstance(module, nn.Linear)
        self.weight_DF = weight.T if self.turned else weight
        outputs, inputs = self.weight_DF.shape
        width = inputs if record.fit == "refit" else outputs
        self.squares = LeastSquares(width, outputs, diagonal=record.fit == "channels", device=weight.device)

    def add(self, states: Sequence[Tensor], targets: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        """Batches of the stream behind the layer, of what it should be, and of the write's inputs."""
        for state_BTD, target_BTD, input_BTF in zip(states, targets, inputs, strict=True):
            target_ND = target_BTD.flatten(0, 1).float()
            features_NF = input_BTF.flatten(0, 1).float()
            if self.record.fit != "refit":
                features_NF = features_NF @ self.weight_DF.T
            length_N = target_ND.square().sum(-1).clamp(min=torch.finfo(torch.float32).tiny)
            self.squares.add(features_NF, target_ND - state_BTD.flatten(0, 1).float(), 1 / length_N)

    def change(self) -> Tensor:
        """What is added to the weight_DF."""
        found = self.squares.solve(self.record.ridge or 0.0).float()
        match self.record.fit:
            case "channels":
                return found[:, None] * self.weight_DF
            case "matrix":
                return found @ self.weight_DF
            case _:
                return found

    def stored(self, change_DF: Tensor) -> Tensor:
        weight_DF = self.weight_DF + change_DF
        return weight_DF.T if self.turned else weight_DF


def _scaled(record: Seam, stream: _Streams, report: Report) -> Mended:
    found, plan, factor = Mended(), record.plan, 1.0
    states = stream.start(plan[0].owner)
    own = {owner: stream.start(owner) for owner in stream.parts}
    done = dict.fromkeys(stream.parts, 0)
    for place, layer in enumerate(plan):
        report(place, len(plan))
        if place in record.seams:
            for index in range(done[layer.owner], layer.index):
                own[layer.owner] = stream.layer(Layer(layer.owner, index), own[layer.owner])
            done[layer.owner] = layer.index
            ratio = float((_log_length(own[layer.owner]) - _log_length(states)).exp())
            states = [state_BTD * ratio for state_BTD in states]
            factor *= ratio
            found.rows.append({"place": place, "layer": str(layer), "scale": ratio})
        if factor != 1.0:
            for name in record.writes:
                for kind, tensor in stream.weights(layer, name).items():
                    found.tensors[f"{place}.{name}.{kind}"] = tensor / factor
        states = stream.layer(layer, states)
    return found


def _log_length(states: Sequence[Tensor]) -> Tensor:
    """The mean log of the states' lengths over all positions."""
    squares = torch.cat([state_BTD.flatten(0, 1).double().square().sum(-1) for state_BTD in states])
    return squares.clamp(min=torch.finfo(torch.float32).tiny).log().mean() / 2


def _error(states: Sequence[Tensor], targets: Sequence[Tensor]) -> float:
    """The mean of |state - target|^2 / |target|^2 over all positions."""
    total, count = 0.0, 0
    for state_BTD, target_BTD in zip(states, targets, strict=True):
        squares_BT = (state_BTD.float() - target_BTD.float()).square().sum(-1)
        lengths_BT = target_BTD.float().square().sum(-1).clamp(min=torch.finfo(torch.float32).tiny)
        total, count = total + float((squares_BT / lengths_BT).double().sum()), count + squares_BT.numel()
    return total / count


def _added(state_BTD: Tensor, input_BTF: Tensor, change_DF: Tensor) -> Tensor:
    return (state_BTD.float() + input_BTF.float() @ change_DF.T).to(state_BTD.dtype)


class _changed:  # noqa: N801 - used as a function
    """Within the context a module has another weight."""

    def __init__(self, module: Any, weight: Tensor) -> None:
        self._module, self._weight, self._own = module, weight, module.weight.data

    def __enter__(self) -> None:
        self._module.weight.data = self._weight.to(self._own)

    def __exit__(self, *_: object) -> None:
        self._module.weight.data = self._own


def _check_added(actual_BTD: Tensor, expected_BTD: Tensor, model: str, name: str) -> None:
    difference = float((actual_BTD.float() - expected_BTD.float()).norm() / expected_BTD.float().norm())
    if not difference <= _ADDED.get(actual_BTD.dtype, 5e-2):
        message = f"{model}: the output of {name} is not added to the stream as it is (relative error {difference:.2g})"
        raise BoomspecError(message, hint="seams of this family cannot be mended: take out interpolate.seam")
