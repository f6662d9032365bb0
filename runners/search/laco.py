"""LaCo: collapse consecutive layers of a teacher into one, without training (arXiv 2402.11187).

`merge` layers l, l+1, ... become one in the place, and with the config attributes, of layer l. Each of its parameters
(norms and biases, too) is

    W_l + sum_k (W_{l+k} - W_l)        k = 1 .. merge - 1

so a collapsed layer, and one that is collapsed again, is a sum of teacher layers with whole-number weights: all that
the search keeps. (With merge = 2 the sum is W_{l+1} alone.)

A pointer l slides down from the highest place. A merge is kept where the mean cosine, over all positions of the
calibration text, of the last hidden state (which the head reads) to the teacher's is above `threshold`; then the
pointer moves down by `interval`, else by one. The merged layers always lie within what is left of the teacher's
layers [lowest, highest). The last merge collapses fewer layers where `merge` would leave less than `layers`.
"""

import copy
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from boomspec.core.errors import BoomspecError
from boomspec.core.json_text import computed_json
from boomspec.core.layers import TEACHER, teacher_layers
from boomspec.core.losses.hidden_cosine import cosine
from boomspec.core.tasks import Baseline, LaCo
from boomspec.models.facts import read_facts
from boomspec.models.plan_config import check_one_kind
from runners.assembly.assemble import assemble
from runners.modeling.hidden_states import decoder_layers
from runners.modeling.layerwise import Batch, take_apart
from runners.modeling.model_config import complete
from runners.modeling.models import Code, load, load_frozen, save_weights, stored_dtype
from runners.runtime.context import Context
from runners.runtime.device import MASTER_DTYPE, deterministic_mode, frozen_dtype
from runners.search.calibration import calibration_batches


@dataclass(frozen=True)
class Collapsed:
    """A layer as a sum of teacher layers: index -> whole-number weight. `base`: whose place it has."""

    base: int
    weights: Mapping[int, int]

    @property
    def is_merged(self) -> bool:
        return self.weights != {self.base: 1}


Stack = Sequence[Collapsed]  # from the first layer to the last
Similarity = Callable[[Stack], float]


@dataclass(frozen=True)
class Attempt:
    """One merge that was tried: layers [at, at + size) of the stack of that moment."""

    at: int
    size: int
    similarity: float
    kept: bool


def build_laco(record: LaCo, context: Context[Baseline], teacher: Path, target: Path) -> None:
    """Write the collapsed model into `target`, merges into laco.json; BoomspecError where `layers` is not reached."""
    check_one_kind(read_facts(teacher), complete)
    with deterministic_mode(record.determinism, context.progress.note):
        model = load_frozen(teacher, dtype=frozen_dtype(record.precision), code=context.code)
        tokens, size = context.inputs["tokens"].folder, context.batch_size
        batches = calibration_batches(record.calibration, tokens, batch_size=size, model=model)
        measure, layers = similarity_to(model, batches), len(decoder_layers(model))

        def similarity(stack: Stack) -> float:
            value = measure(stack)
            context.progress.update(layers - len(stack), layers - record.layers, unit="layers", similarity=value)
            return value

        stack, attempts = collapse(record, layers=layers, similarity=similarity)
        write(stack, teacher, target, context.code)
    text = computed_json([vars(attempt) for attempt in attempts], "LaCo")
    (context.path / "laco.json").write_text(text, encoding="utf-8")


def collapse(record: LaCo, *, layers: int, similarity: Similarity) -> tuple[list[Collapsed], list[Attempt]]:
    """The stack of `record.layers` layers, from `layers` of the teacher, and what was tried on the way."""
    if not (1 <= record.layers <= layers and 0 <= record.lowest < record.highest <= layers):
        wanted = f"{record.layers} layers, merged within [{record.lowest}, {record.highest}),"
        raise BoomspecError(f"LaCo: {wanted} cannot be made of a teacher of {layers}")
    stack = [Collapsed(i, {i: 1}) for i in range(layers)]
    attempts: list[Attempt] = []
    at = record.highest
    while len(stack) > record.layers:
        size = min(record.merge, len(stack) - record.layers + 1)
        highest = record.highest - (layers - len(stack))
        at = min(at, highest - size)
        if at < record.lowest:
            refused = [attempt.similarity for attempt in attempts if not attempt.kept]
            best = f"; the best merge that was refused had {max(refused):.4f}" if refused else ""
            merges, ends = (
                f"merges that keep the cosine above {record.threshold}",
                f"{layers} only to {len(stack)}{best}",
            )
            hint = "lower the threshold, merge more layers at once, or move down by a smaller interval"
            raise BoomspecError(
                f"LaCo: {record.layers} layers were asked for, but {merges} lead from {ends}", hint=hint
            )
        tried = [*stack[:at], _sum(stack[at : at + size]), *stack[at + size :]]
        value = similarity(tried)
        if not math.isfinite(value):
            message = f"LaCo: the similarity without layers {at + 1} to {at + size - 1} is {value}"
            hint = "the teacher gives numbers that are none: try precision fp32, or look at it"
            raise BoomspecError(message, hint=hint)
        kept = value > record.threshold
        attempts.append(Attempt(at, size, value, kept))
        if kept:
            stack = tried
        at -= record.interval if kept else 1
    return stack, attempts


def _sum(merged: Sequence[Collapsed]) -> Collapsed:
    """W_l + sum_k (W_{l+k} - W_l) of layers that may be sums themselves."""
    weights = Counter({layer: weight * (2 - len(merged)) for layer, weight in merged[0].weights.items()})
    for following in merged[1:]:
        weights.update(following.weights)
    return Collapsed(merged[0].base, {layer: weight for layer, weight in sorted(weights.items()) if weight})


def similarity_to(teacher: Any, batches: Sequence[Tensor]) -> Similarity:
    """The mean cosine of a stack's last hidden states to the whole teacher's, on batches of tokens_BT."""
    parts = take_apart(teacher, batches[0])
    positions = sum(tokens_BT.numel() for tokens_BT in batches)

    @torch.no_grad()
    def states(stack: Stack) -> list[Tensor]:
        modules = [parts.layers[layer.base] for layer in stack]
        for i, layer in enumerate(stack):
            if layer.is_merged:
                modules[i] = copy.deepcopy(modules[i])
                _add_up(modules[i], parts.layers, layer)
        finished = []
        for tokens_BT in batches:
            batch = Batch(parts, tokens_BT)
            hidden_BTD = batch.embedding_BTD
            for layer, module in zip(stack, modules, strict=True):
                hidden_BTD = batch.layer(layer.base, hidden_BTD, module=module)
            finished.append(batch.finish(hidden_BTD))
        return finished

    whole = states([Collapsed(i, {i: 1}) for i in range(len(parts.layers))])

    def similarity(stack: Stack) -> float:
        pairs = zip(states(stack), whole, strict=True)
        return sum(float(cosine(one, other).double().sum()) for one, other in pairs) / positions

    return similarity


@torch.no_grad()
def _add_up(target: nn.Module, layers: nn.ModuleList, collapsed: Collapsed) -> None:
    sources = {layer: dict(layers[layer].named_parameters()) for layer in collapsed.weights}
    for name, parameter in target.named_parameters():
        total = torch.zeros_like(parameter, dtype=MASTER_DTYPE)
        for layer, weight in collapsed.weights.items():
            total.add_(sources[layer][name].to(MASTER_DTYPE), alpha=weight)
        parameter.copy_(total)


def write(stack: Stack, teacher: Path, target: Path, code: Code = ()) -> None:
    """Write the model of a stack, in the dtype of the teacher's files, with the teacher's tokenizer."""
    plan = teacher_layers(layer.base for layer in stack)
    assemble({TEACHER: teacher}, plan, target, tied=read_facts(teacher).tied, code=code)
    # Merges are summed from the weights as they are stored, not from what the search may have rounded.
    sources = decoder_layers(load_frozen(teacher, dtype=MASTER_DTYPE, code=code))
    model = load(target, dtype=MASTER_DTYPE, code=code)
    for layer, collapsed in zip(decoder_layers(model), stack, strict=True):
        if collapsed.is_merged:
            _add_up(layer, sources, collapsed)
    save_weights(model, target, dtype=stored_dtype(teacher))
