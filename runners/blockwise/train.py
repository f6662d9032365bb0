"""Train one layer alone on the states in front of its block and behind it.

    loss = sum over terms of weight * formula(layer(input state), target state), with the mask of every training: the
    sum over positions that have a label, divided by their number in the whole effective batch.

The loop is the one of every training: AdamW, schedule, checkpoints, metrics.

Shapes: B sequences, T positions, D hidden size.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from boomspec.core.tasks import DistillBlock
from boomspec.models.facts import read_facts
from runners.blockwise.layer import LoneLayer, redraw, write_layer
from runners.blockwise.states import StoredStates, check_vocabulary
from runners.blockwise.streamed import StreamedStates
from runners.data.tokens import TokenStream
from runners.modeling.models import MODEL, load, model_folder, save_weights, stored_dtype
from runners.runtime.context import Context
from runners.runtime.device import MASTER_DTYPE
from runners.training.distillation import TermValues
from runners.training.loop import train
from runners.training.losses import state_loss, weights
from runners.training.moment import Moment

States = Callable[[int, int, int], tuple[Tensor, Tensor]]  # step, first row, rows -> input_BTD, target_BTD


def train_block(context: Context[DistillBlock]) -> None:
    """Write the trained layer, as a model folder of it alone, and metrics.jsonl."""
    record, recipe, code = context.record, context.record.recipe, context.code
    teacher, target = model_folder(context.inputs["teacher"]), context.path / MODEL
    facts, stream = read_facts(teacher), TokenStream(context.inputs["tokens"].folder, apart=bool(recipe.isolate))
    check_vocabulary(stream, facts.token_embedding.shape[0])
    write_layer(facts, teacher, record.first, target, code=code)
    layer = LoneLayer(load(target, dtype=MASTER_DTYPE, code=code))
    if record.initial == "random":
        redraw(layer, target, seed=recipe.seed + record.first, code=code)
    layer.train_alone()
    shape = {"sequences": recipe.sequences, "sequence_length": recipe.sequence_length, "seed": recipe.seed}
    train(
        layer.model,
        recipe=recipe,
        batch=partial(stream.batch, **shape),
        loss=_loss(context, layer, _states(context, stream)),
        weights=weights(record.losses),
        context=context,
        unlabelled=stream.unlabelled,
    )
    save_weights(layer.model, target, dtype=stored_dtype(teacher))


def _loss(
    context: Context[DistillBlock], layer: LoneLayer, states: States
) -> Callable[[Tensor, Tensor, int, Moment], TermValues]:
    losses = context.record.losses
    pairs = {kind: [(0, 0)] for kind in losses.terms()}

    def loss(inputs_BT: Tensor, labels_BT: Tensor, count: int, moment: Moment) -> TermValues:
        place = inputs_BT.device
        input_BTD, target_BTD = (state.to(place) for state in states(moment.step, moment.first_row, len(inputs_BT)))
        output_BTD = layer(input_BTD.to(MASTER_DTYPE), inputs_BT)
        return state_loss(
            {0: output_BTD}, {0: target_BTD}, labels_BT, pairs=pairs, losses=losses, count=count, moment=moment
        )

    return loss


def _states(context: Context[DistillBlock], stream: TokenStream) -> States:
    record, recipe = context.record, context.record.recipe
    shape = {"sequences": recipe.sequences, "sequence_length": recipe.sequence_length, "seed": recipe.seed}
    if record.stored:
        before, behind = (StoredStates(context.inputs[role].folder) for role in ("states", "targets"))

        def stored(step: int, first: int, rows: int) -> tuple[Tensor, Tensor]:
            place = {"sequence_length": recipe.sequence_length, "seed": recipe.seed}
            begin = step * recipe.sequences + first
            numbers = [stream.first_draw(row, **place) for row in range(begin, begin + rows)]
            return before.rows(numbers), behind.rows(numbers)

        return stored
    streamed = StreamedStates(
        model_folder(context.inputs["teacher"]),
        range(record.first, record.end),
        tokens=lambda step: torch.from_numpy(stream.inputs(step, **shape)),
        steps=recipe.steps,
        precision=recipe.precision,
        batch_size=context.training.micro_batch,
        code=context.code,
        apart=bool(recipe.isolate),
    )

    def computed(step: int, first: int, rows: int) -> tuple[Tensor, Tensor]:
        input_BTD, target_BTD = streamed.of(step)
        return input_BTD[first : first + rows], target_BTD[first : first + rows]

    return computed
