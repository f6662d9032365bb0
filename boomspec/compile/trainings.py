"""What a spec trains, and for how long: schedules that cannot be kept, and text that has to be long enough.

What a training takes never changes what another task is: the length of the text is the spec's own `data.max_tokens`,
which is proposed here and never derived.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from boomspec.compile.records import recipe
from boomspec.core.errors import Problem
from boomspec.spec.sections.baselines import RandomInit
from boomspec.spec.sections.data import CalibrationSpec
from boomspec.spec.sections.interpolate import OrderSearch
from boomspec.spec.sections.student import KeepChoice
from boomspec.spec.sections.training import Training
from boomspec.spec.spec_file import Spec, SpecFile

_PLENTY = 10_000_000  # tokens, where nothing is trained or searched: what is held out is a share of them


@dataclass(frozen=True)
class Trained:
    """One training of a spec: its section, and the place of its length where that is another one's."""

    place: tuple[str | int, ...]
    section: Training
    length: tuple[str | int, ...]
    tokens: int


def trainings(spec: Spec) -> Iterator[Trained]:
    """Every training that has a length of its own."""
    if (pretrain := spec.teacher.pretrain) is not None:
        place = ("teacher", "pretrain")
        yield Trained(place, pretrain, (*place, "tokens"), pretrain.tokens)
    if spec.distill is None:
        return
    yield Trained(("distill",), spec.distill, ("distill", "tokens"), spec.distill.tokens)
    for i, item in enumerate(spec.baselines):
        control: RandomInit | None = item.random_init
        if control is not None and control.tokens not in (None, spec.distill.tokens):
            yield Trained(("distill",), spec.distill, ("baselines", i, "random_init", "tokens"), control.tokens)


def training_problems(file: SpecFile) -> Iterator[Problem]:
    """Problems of lengths and schedules, which take the length of a sequence to be known."""
    data = file.spec.data
    if data is None:
        return
    pretrain = file.spec.teacher.pretrain
    if pretrain is not None and pretrain.positions is not None and pretrain.positions < data.sequence_length:
        message = f"{pretrain.positions:,} positions are less than one sequence ({data.sequence_length:,})"
        yield file.problem(("teacher", "pretrain", "positions"), message)
    for training in trainings(file.spec):
        yield from _too_short(file, training, data.sequence_length)
    if data.dataset is not None and data.max_tokens is None:
        hint = f"how much of the data set is read; this spec's trainings need max_tokens: {tokens_needed(file.spec)}"
        yield file.problem(("data",), "missing 'max_tokens'", hint, key=True)
    if data.max_tokens is not None and data.max_tokens <= data.sequence_length:
        message = f"{data.max_tokens:,} tokens are less than one sequence ({data.sequence_length:,}) and its last label"
        yield file.problem(("data", "max_tokens"), message)


def tokens_needed(spec: Spec) -> str:
    """Training tokens of which none is read twice by the longest training or search, as people write them."""
    assert spec.data is not None
    length = spec.data.sequence_length
    needed = [recipe(t.section, seed=0, sequence_length=length, tokens=t.tokens).tokens for t in trainings(spec)]
    needed += [calibration.sequences * length for calibration in _calibrations(spec)]
    return _written(max(needed, default=_PLENTY - 1) + 1)  # the last label


def _calibrations(spec: Spec) -> Iterator[CalibrationSpec]:
    if isinstance(spec.student.keep, KeepChoice):
        yield spec.student.keep.calibration
    if isinstance(spec.interpolate.order, OrderSearch):
        yield spec.interpolate.order.calibration
    for item in spec.baselines:
        for kind in (item.shortgpt, item.laco):
            if kind is not None:
                yield kind.calibration


def _written(tokens: int) -> str:
    """A count as people write it, with three digits, never below it: "2.11B", "1.03M"."""
    step = 10 ** max(0, len(str(tokens)) - 3)
    rounded = -(-tokens // step) * step
    name, unit = next(((n, u) for n, u in (("B", 10**9), ("M", 10**6), ("k", 1000)) if rounded >= u), ("", 1))
    return f"{rounded / unit:.10g}{name}"


def _too_short(file: SpecFile, training: Trained, sequence_length: int) -> Iterator[Problem]:
    section, own = training.section, training.length[:-1] == training.place
    if own and section.batch_tokens < sequence_length:
        message = f"{section.batch_tokens:,} tokens are less than one sequence ({sequence_length:,})"
        hint = f"give at least data.sequence_length: {sequence_length}"
        yield file.problem((*training.place, "batch_tokens"), message, hint)
        return
    if training.tokens < section.batch_tokens:
        message = f"{training.tokens:,} tokens are less than one step of batch_tokens ({section.batch_tokens:,})"
        yield file.problem(training.length, message, "train longer, or with a smaller batch")
        return
    steps = recipe(section, seed=0, sequence_length=sequence_length, tokens=training.tokens).steps
    schedule = section.schedule
    warmup = schedule.warmup.of(steps)
    place = (*training.place, "schedule", "warmup") if own else training.length
    if warmup > steps:
        message = f"the warm-up of {warmup:,} steps is longer than the training of {steps:,}"
        yield file.problem(place, message, "a share such as 1% follows the length of the training")
    elif warmup == steps > 1 and schedule.kind != "constant":
        message = f"the warm-up takes all {steps:,} steps: none is left for the {schedule.kind} decay"
        yield file.problem(place, message, "a share such as 1% follows the length of the training")
