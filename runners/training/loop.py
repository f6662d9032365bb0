"""The training loop that pretraining and distillation share.

A training is a pure function of its recipe, its batches and the initial weights: batches are a function of the step,
the model is in evaluation mode throughout (no dropout), and no random number is drawn. So a checkpoint needs no random
state, and a training that was killed continues to the same bits.

The effective batch is an invariant: `micro_batch` rows go through the model at a time, and each micro batch's loss is
already divided by the label count of the whole batch, so gradients just add up. That holds for the workers of a group,
too: each takes its share of the rows of every batch, and all take the same step.

Shapes: B sequences, T tokens a sequence.
"""

import json
import math
import time
from collections.abc import Callable, Collection, Generator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from boomspec.core.errors import BoomspecError
from boomspec.core.losses import PUBLISHED_WEIGHTS
from boomspec.core.losses.weight import Weight
from boomspec.core.tasks import Recipe
from boomspec.core.tasks.training import HELD_OUT
from runners.modeling.documents import tokens_of
from runners.modeling.labels import PADDING, inputs_of
from runners.runtime.context import Context
from runners.runtime.device import autocast, casts_kept
from runners.runtime.peak import device_peak
from runners.training import checkpoint
from runners.training.checkpoint_writer import CheckpointWriter
from runners.training.losses import NO_LABEL
from runners.training.moment import Moment
from runners.training.parallel import ParallelModel, with_checkpointing_or_compile
from runners.training.phases import Part, read_state, write_state
from runners.training.throughput import Throughput
from runners.training.weighting import Weighting

METRICS = "metrics.jsonl"
_CHECKPOINT_SHARE = 0.05  # of the time at most that one is being written: it takes processor and disk from the training
_NOTED_SECONDS = 10.0  # between checkpoints: fewer than these need no note
_MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW
_STEPS = "steps"  # of a parameter that has had fewer than the training
_LOOK_SECONDS = 2.0  # between looks at whether the group is to stop: a step may take minutes
_UNBALANCED = 10.0  # the largest weighted term at step 0 over the smallest

Batches = Callable[[int], npt.NDArray[np.int64]]  # step -> tokens [B, T + 1]
Turn = tuple[int, int]  # the step and the micro batch that come next
MicroBatches = Generator[Turn, None, None]
# (inputs_BT, labels_BT, labelled positions of the whole batch, where the training stands)
# -> (loss, values of the terms without their weights)
MicroLoss = Callable[[Tensor, Tensor, int, Moment], tuple[Tensor, dict[str, Tensor]]]


def micro_batches(
    model: nn.Module,
    *,
    recipe: Recipe,
    batch: Batches,
    loss: MicroLoss,
    weights: Mapping[str, Weight] | Weighting,  # of the terms
    context: Context[Any],
    gradient_scale: float = 1.0,  # of gradients before they are clipped; not of the losses that are logged
    parallel: ParallelModel | None = None,  # how `model` lies on the workers that train it, each of which calls this
    described: Callable[[int], Mapping[str, Any]] | None = None,  # what else the metrics say of a step
    unlabelled: Collection[int] = (),  # tokens that are inputs only, beside those that a batch says
    last_row: Callable[[], Mapping[str, Any]] | None = None,  # what they say after the last step, in a row of its own
    absent_is_zero: bool = False,  # no gradient is one of zeros: such a parameter decays, and its moments move it
    part: Part | None = None,  # the steps that are done here, where they are not all
) -> MicroBatches:
    """Train `model` in place (its parameters that require gradients, and those beside it) and write metrics.jsonl.

    A generator: it stops before every micro batch, so that trainings can take turns (`runners.training.cohort`).
    Continues from the newest whole checkpoint in `context.resume`. Leaves one there about every `checkpoint_seconds`
    (after a whole step, and more seldom where it takes long to write), which is written beside the steps that follow,
    and one when it is interrupted; a step that is not done by then is dropped. Raises BoomspecError at the first step
    whose loss or gradient is not finite.
    """
    weighting = weights if isinstance(weights, Weighting) else Weighting(weights, recipe.steps)
    training = _Training(parallel or ParallelModel(model), recipe, context, gradient_scale, unlabelled, weighting)
    training.part = part or Part(range(recipe.steps))
    training.described = described or training.described
    training.absent_is_zero = absent_is_zero
    training.restore()
    again, compiled = context.training.activation_checkpointing, context.training.compile
    try:
        with with_checkpointing_or_compile(model, checkpointing=again, compiled=compiled):
            yield from training.run(batch, loss)
            ending = training.after_all(last_row) if last_row is not None else []
        training.writer.finish()
    except KeyboardInterrupt:
        if training.between_steps:
            training.writer.finish()
            if training.writer.steps < len(training.metrics):
                training.save(beside=False)
                training.writer.finish()
        raise
    finally:
        training.writer.close()
        if context.remote is not None:
            context.remote.wait()  # an upload that goes on would outlive the checkpoints, which end with the task
    context.measured.update(training.throughput.summary())
    if training.part.after is not None:
        training.hand_on(training.part.after)
    if training.group.is_leader:
        lines = [json.dumps(row, allow_nan=False) + "\n" for row in (*training.metrics, *ending)]
        (context.path / METRICS).write_text("".join(lines), encoding="utf-8")


def train(model: nn.Module, **options: Any) -> None:
    """Train one model: `micro_batches` to its end."""
    for _ in micro_batches(model, **options):
        pass


def learning_rate(step: int, recipe: Recipe) -> float:
    """The rate of step 0 .. steps - 1: up to the peak at the last warm-up step, then down to `final` times the peak."""
    peak, schedule = recipe.optimizer.lr, recipe.schedule
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    top = max(schedule.warmup_steps - 1, 0)
    way = (step - top) / max(recipe.steps - 1 - top, 1)
    match schedule.kind:
        case "constant":
            return peak
        case "linear":
            return peak * (1 - (1 - schedule.final) * way)
        case "cosine":
            return peak * (schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * way)) / 2)


def _held_out(row: Mapping[str, Any]) -> dict[str, float]:
    """The held-out losses of a row, as they are shown while it trains."""
    return {f"held-out {name.removeprefix(HELD_OUT)}": row[name] for name in row if name.startswith(HELD_OUT)}


class _Training:
    """A training on its way: the model, AdamW's moments and the metrics of the steps that are done."""

    def __init__(
        self,
        parallel: ParallelModel,
        recipe: Recipe,
        context: Context[Any],
        scale: float,
        unlabelled: Collection[int],
        weighting: Weighting,
    ) -> None:
        self.parallel, self.group = parallel, parallel.group
        self.model = parallel.model.eval()  # no dropout; gradients flow all the same
        self.recipe, self.context, self.gradient_scale, self.weighting = recipe, context, scale, weighting
        self.unlabelled = torch.tensor(sorted(unlabelled), dtype=torch.long)
        self.parameters = {name: p for name, p in parallel.trained().items() if p.requires_grad}
        self.device = next(iter(self.parameters.values())).device
        matrices = [parameter for parameter in self.parameters.values() if parameter.ndim >= 2]
        others = [parameter for parameter in self.parameters.values() if parameter.ndim < 2]
        decays = ((matrices, recipe.optimizer.weight_decay), (others, 0.0))
        groups = [{"params": parameters, "weight_decay": decay} for parameters, decay in decays if parameters]
        options = recipe.optimizer.model_dump(include={"lr", "betas", "eps"})
        self.optimizer = torch.optim.AdamW(groups, fused=True, **options)  # one pass, without copies
        self.metrics: list[dict[str, Any]] = []
        self.part = Part(range(recipe.steps))
        self.described: Callable[[int], Mapping[str, Any]] = lambda step: {}
        self.seen: dict[str, float] = {}  # of the held-out losses the last ones
        self.writer = CheckpointWriter(context.resume, self.group, context.remote)
        determinism, flops = getattr(context.record, "determinism", None), context.model_flops_per_token
        peak = device_peak(recipe.precision, determinism, measure=flops > 0)
        self.throughput = Throughput(peak, workers=self.group.size, flops_per_token=flops)
        self.between_steps = True  # False while weights and moments are being changed
        self.absent_is_zero = False
        self.look_every = 0  # micro batches between looks at whether to stop; 0: not known yet

    def run(self, batch: Batches, loss: MicroLoss) -> MicroBatches:
        recipe, progress, wanted = self.recipe, self.context.progress, self.context.training.checkpoint_seconds
        saved, wait, noted = time.monotonic(), wanted, False
        before, end = self.part.steps.start, self.part.steps.stop
        each = recipe.sequences * recipe.sequence_length  # tokens of a step
        for step in range(len(self.metrics), end):
            tokens = torch.from_numpy(batch(step))
            if self.weighting.needs_sizes:
                self.weighting.measured((yield from self.accumulate(step, tokens, loss, graded=False))[1])
            row = yield from self.step(step, tokens, loss)
            self.throughput.step_done(int((tokens[:, 1:] != PADDING).sum()), tokens[:, 1:].numel())
            if step == 0 and not row.get("on_policy"):  # some terms are left out there
                self.warn_when_unbalanced(row)
            progress.record(row)
            shown = {key: row[key] for key in ("loss", *self.weighting.own) if key in row} | self.throughput.shown()
            self.seen |= _held_out(row)
            shown |= self.seen
            progress.update((step + 1 - before) * each, (end - before) * each, unit="tokens", **shown)
            if (seconds := self.writer.poll()) is not None:
                saved, wait = time.monotonic(), max(wanted, seconds / _CHECKPOINT_SHARE)
                if not noted and wait > max(wanted, _NOTED_SECONDS):
                    noted = True
                    progress.note(
                        f"a checkpoint takes {seconds:.1f} seconds to write: the next one comes after "
                        f"{wait:.0f} seconds, not after {wanted:g}, so that they take no more than "
                        f"{_CHECKPOINT_SHARE:.0%} of the time"
                    )
            due = self.writer.idle and time.monotonic() - saved >= wait and step + 1 < end
            if self.group.broadcast(due):
                self.save()
            if self.group.stopped():
                raise KeyboardInterrupt

    def step(self, step: int, tokens: Tensor, loss: MicroLoss) -> Generator[Turn, None, dict[str, Any]]:
        """One optimiser step on tokens [B, T + 1]. Returns its row of the metrics."""
        self.optimizer.zero_grad(set_to_none=not self.parallel.replicated)
        total, terms = yield from self.accumulate(step, tokens, loss)
        if not math.isfinite(total):
            raise self.not_finite(step, "loss", total, terms)
        if self.absent_is_zero:
            for parameter in self.parameters.values():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        # Without clipping this only measures: the gradients are multiplied by 1.
        limit = self.recipe.optimizer.clip or math.inf
        norm = float(self.parallel.full(nn.utils.clip_grad_norm_(self.parameters.values(), limit)))
        if not math.isfinite(norm):
            raise self.not_finite(step, "gradient norm", norm, terms)
        rate = learning_rate(step, self.recipe)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        seen = (step + 1) * self.recipe.sequences * self.recipe.sequence_length  # tokens, when the step is done
        row = {"step": step, "tokens": seen, "loss": total, **terms, "lr": rate, "grad_norm": norm}
        began = time.monotonic()
        row |= {**self.weighting.columns(step), **self.described(step)}
        self.throughput.left_out(time.monotonic() - began)
        self.between_steps = False
        self.optimizer.step()
        self.metrics.append(row)
        self.weighting.see(row)
        self.between_steps = True
        return row

    def accumulate(
        self, step: int, tokens: Tensor, loss: MicroLoss, *, graded: bool = True
    ) -> Generator[Turn, None, tuple[float, dict[str, float]]]:
        """Add up the gradients (where they are wanted) and losses of the micro batches of one batch."""
        # A batch may have no label at all, where only responses are learned: its gradients are 0.
        count = max(1, int(self.is_label(tokens_of(tokens[:, 1:])).sum()))
        sums: dict[str, Tensor] = {}
        blocks, began = self.group.micro_batches(tokens, self.context.training.micro_batch), time.monotonic()
        with casts_kept():  # weights are cast once a step, not for each micro batch
            for index, (block, first_row, counts) in enumerate(blocks):
                if index and self.look_every and index % self.look_every == 0 and self.group.stopped():
                    raise KeyboardInterrupt  # in the whole group at once
                yield step, index
                rows = block.to(self.device, non_blocking=True)
                labels_BT = tokens_of(block[:, 1:])  # on the CPU
                labels_BT = labels_BT.masked_fill(~self.is_label(labels_BT), NO_LABEL)
                given = loss, inputs_of(rows[:, :-1]), labels_BT, count, self.weighting.moment(step, first_row)
                # Sharded parameters are whole only while they are used, and so must be what was cast of them.
                cast = partial(autocast, self.recipe.precision, cache=not self.parallel.sharded)
                if graded:
                    with self.parallel.accumulating(last=index + 1 == len(blocks)):
                        with cast():
                            total, terms = self.parallel.forward(*given)
                        (total * (self.gradient_scale if counts else 0.0)).backward()
                else:
                    with cast():
                        total, terms = self.parallel.call(*given)
                for name, value in {"loss": total.detach(), **terms}.items():
                    part = value if counts else torch.zeros_like(value)
                    sums[name] = sums[name] + part if name in sums else part
        values = self.group.all_reduce(sums)
        seconds = (time.monotonic() - began) / len(blocks)
        self.look_every = self.group.broadcast(max(1, math.ceil(_LOOK_SECONDS / max(seconds, 1e-6))))
        return values.pop("loss"), values

    def after_all(self, last_row: Callable[[], Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The row of the metrics that follows the last step of the whole training."""
        recipe, progress = self.recipe, self.context.progress
        if self.part.steps.stop < recipe.steps:
            return []
        row = {"step": recipe.steps, "tokens": recipe.tokens, **last_row()}
        progress.record(row)
        done = len(self.part.steps) * recipe.sequences * recipe.sequence_length
        progress.update(done, done, unit="tokens", **_held_out(row))
        return [row]

    def is_label(self, tokens: Tensor) -> Tensor:
        """Where there is a token to be predicted."""
        labels = tokens >= 0
        return labels & ~torch.isin(tokens, self.unlabelled.to(tokens.device)) if len(self.unlabelled) else labels

    def warn_when_unbalanced(self, row: Mapping[str, Any]) -> None:
        weights = {name: weight for name, weight in self.weighting.weights(0).items() if weight}
        if weights in PUBLISHED_WEIGHTS:
            return
        sizes = {name: weight * abs(row[name]) for name, weight in weights.items()}
        if len(sizes) > 1 and max(sizes.values()) > _UNBALANCED * min(sizes.values()):
            listed = ", ".join(f"{name} {size:.3g}" for name, size in sizes.items())
            hint = "give other weights in distill.losses"
            if self.weighting.balance is None:
                hint += ", or write distill.balance: start and leave the weights out"
            self.context.progress.note(
                f"warning: the weighted loss terms at step 0 differ by more than {_UNBALANCED:g}x ({listed}): "
                f"the smaller ones hardly count; {hint}",
                once="unbalanced",
            )

    def not_finite(self, step: int, what: str, value: float, terms: Mapping[str, float]) -> BoomspecError:
        listed = ", ".join(f"{name} {size:.4g}" for name, size in terms.items())
        message = f"training stopped at step {step} of {self.recipe.steps}: the {what} is {value} ({listed})"
        hint = "lower optimizer.lr, lengthen schedule.warmup, set optimizer.clip, or use precision fp32"
        return BoomspecError(message, hint=hint)

    def save(self, *, beside: bool = True) -> None:
        """Begin to write a checkpoint; the training goes on `beside` it, or waits for it."""
        state = self.state()
        every = {name: tensor for tensors in state.values() for name, tensor in tensors.items()}
        rows = {name: part for name, tensor in every.items() if (part := self.parallel.rows(tensor)) is not None}
        own = {
            kind: {name: self.parallel.local(tensor) for name, tensor in tensors.items()}
            for kind, tensors in state.items()
        }
        sharded = {name: (*part, len(every[name])) for name, part in rows.items()}
        self.writer.begin(self.metrics, own, sharded, beside=beside)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Weights and moments, as they lie on this worker."""
        stepped = [name for name, parameter in self.parameters.items() if parameter in self.optimizer.state]
        of = {name: self.optimizer.state[self.parameters[name]] for name in stepped}
        moments = {f"{moment}.{name}": of[name][moment] for name in stepped for moment in _MOMENTS}
        # AdamW counts the steps of each parameter: one that no loss of a phase has reached has fewer.
        counts = torch.stack([of[name]["step"] for name in stepped]).tolist() if stepped else []
        fewer = [name for name, count in zip(stepped, counts, strict=True) if count != len(self.metrics)]
        moments |= {f"{_STEPS}.{name}": of[name]["step"].to("cpu") for name in fewer}
        return {"weights": {name: p.detach() for name, p in self.parameters.items()}, "moments": moments}

    def hand_on(self, folder: Path) -> None:
        """Write the state for the phase that follows. A collective."""
        write_state(folder, self.metrics, self.state(), whole=self.parallel.full, group=self.group)

    @torch.no_grad()
    def restore(self) -> None:
        """Continue from the newest whole checkpoint of these parameters, else from the phase before."""
        progress = self.context.progress
        shapes = {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}
        stored = checkpoint.find(self.context.resume, self.group, self.context.remote, progress.note)
        if stored is not None and stored.shapes() != shapes:
            progress.note("the checkpoint found is of other parameters: starting again")
            stored = None
        if stored is None:
            stored = read_state(self.part)
            if stored is None:
                return
            if stored.shapes() != shapes:
                raise BoomspecError("the phase before has trained other parameters")
        for name, parameter in self.parameters.items():
            rows = self.parallel.rows(parameter)
            self.parallel.local(parameter).copy_(stored.tensor(name, rows))
            if f"exp_avg.{name}" in stored:
                moments = {moment: torch.zeros_like(parameter) for moment in _MOMENTS}
                for moment, tensor in moments.items():
                    self.parallel.local(tensor).copy_(stored.tensor(f"{moment}.{name}", rows))
                counted = f"{_STEPS}.{name}"
                count = float(stored.tensor(counted, None)) if counted in stored else float(stored.steps)
                steps = torch.tensor(count, device=self.device)  # where a fused update expects it
                self.optimizer.state[parameter] = {"step": steps, **moments}
        self.metrics = stored.metrics
        for row in stored.metrics:
            self.weighting.see(row)
        progress.record(*stored.metrics)  # so that who watches now sees all of the curve
        progress.note(f"continues after step {stored.steps} of {self.recipe.steps}")
