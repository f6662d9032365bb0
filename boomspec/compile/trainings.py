"""The lengths of a spec's trainings: in optimiser steps, what is wrong with them, and how much text they need.

What a training takes never changes another task: the length of the text is the spec's own `data.max_tokens`, which is
proposed here and never derived.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Literal

from boomspec.compile.text_sources import place_of_text
from boomspec.core.errors import Problem
from boomspec.core.losses.weight import WeightCourse
from boomspec.core.tasks.record import Optimizer, Recipe, Schedule
from boomspec.spec.sections.baselines import TRAINED, DroppedRun, LaCoSpec, ShortGPT
from boomspec.spec.sections.data import DataSpec
from boomspec.spec.sections.interpolate import OrderSearch, SeamSpec
from boomspec.spec.sections.shares import BlendPart
from boomspec.spec.sections.student import KeepChoice
from boomspec.spec.sections.training import DistillSpec, Training
from boomspec.spec.spec_file import Spec, SpecFile
from boomspec.spec.yaml_reader import Location

_SEARCHED = KeepChoice | OrderSearch | SeamSpec | ShortGPT | LaCoSpec | DroppedRun
_Trained = tuple[Training, Location, int, Location]  # its section and its tokens, each with its place
_PHASES: Location = ("distill", "phases")
_PLENTY = 10_000_000  # tokens, where nothing is trained or searched: what is held out is a share of them


def recipe(training: Training, data: DataSpec, *, seed: int, tokens: int | None = None) -> Recipe:
    """Tokens become whole sequences and whole steps, rounded to the nearest and at least one.

    `tokens`: where they are not those of the section. Of phases the steps are those of all.
    """
    sequence_length = data.sequence_length
    sequences, steps = _sequences_and_steps(training, sequence_length, tokens or training.all_tokens)
    if tokens is None and isinstance(training, DistillSpec) and training.phases is not None:
        steps = sum(steps_of_phases(training, sequence_length))
    schedule, warmup = training.schedule, min(steps, training.schedule.warmup.of(steps))
    return Recipe(
        seed=seed,
        steps=steps,
        sequences=sequences,
        sequence_length=sequence_length,
        optimizer=Optimizer(**training.optimizer.model_dump()),
        schedule=Schedule(kind=schedule.kind, warmup_steps=warmup, final=schedule.final),
        precision=training.precision,
        isolate=isolates(data),
    )


def isolates(data: DataSpec) -> Literal[True] | None:
    """What records say of documents in one row; None, which they leave out, where these see each other."""
    return True if data.isolate_documents else None


def steps_of_phases(distill: DistillSpec, sequence_length: int) -> tuple[int, ...]:
    """Of each phase; none where there are no phases."""
    phases = distill.phases or ()
    return tuple(_sequences_and_steps(distill, sequence_length, phase.tokens)[1] for phase in phases)


def _trainings(spec: Spec) -> Iterator[_Trained]:
    if (pretrain := spec.teacher.pretrain) is not None:
        yield pretrain, ("teacher", "pretrain"), pretrain.all_tokens, ("teacher", "pretrain", "tokens")
    if (distill := spec.distill) is not None:
        yield distill, ("distill",), distill.all_tokens, _PHASES if distill.phases else ("distill", "tokens")
        if distill.blockwise is not None and distill.blockwise.polish is not None:
            polish = distill.polish_training
            yield polish, ("distill",), polish.all_tokens, ("distill", "blockwise", "polish", "tokens")
        for i, assistant in enumerate(distill.assistants or ()):
            if assistant.tokens not in (None, distill.all_tokens):
                yield distill, ("distill",), assistant.tokens, ("distill", "assistants", i, "tokens")
        for i, item in enumerate(spec.baselines):
            for kind in TRAINED:
                control = getattr(item, kind)
                if control is not None and control.tokens not in (None, distill.all_tokens):
                    yield distill, ("distill",), control.tokens, ("baselines", i, kind, "tokens")


def _sequences_and_steps(training: Training, sequence_length: int, tokens: int) -> tuple[int, int]:
    """Sequences of one step, and steps, for so many tokens in all."""
    sequences = max(1, round(training.batch_tokens / sequence_length))
    return sequences, max(1, round(tokens / (sequences * sequence_length)))


def _steps(training: _Trained, sequence_length: int) -> int:
    section, _, tokens, length = training
    if length == _PHASES and isinstance(section, DistillSpec):
        return sum(steps_of_phases(section, sequence_length))
    return _sequences_and_steps(section, sequence_length, tokens)[1]


def training_problems(file: SpecFile) -> Iterator[Problem]:
    data, pretrain = file.spec.data, file.spec.teacher.pretrain
    if data is None:
        return
    length = data.sequence_length
    if pretrain is not None and pretrain.positions is not None and pretrain.positions < length:
        message = f"{pretrain.positions:,} positions are less than one sequence ({length:,})"
        yield file.problem(("teacher", "pretrain", "positions"), message)
    if (distill := file.spec.distill) is not None and distill.generated is not None:
        prompt, place = distill.generated.prompt_tokens, ("distill", "generated")
        if prompt >= length:
            message = f"{prompt:,} tokens leave nothing to write of a sequence of {length:,}"
            yield file.problem((*place, "prompt_tokens"), message, "give fewer than data.sequence_length")
        if distill.generated.tokens < length:
            message = f"{distill.generated.tokens:,} tokens are less than one sequence ({length:,})"
            yield file.problem((*place, "tokens"), message)
    if distill is not None and (writes := distill.on_policy) is not None:
        place = ("distill", "on_policy")
        if writes.prompt_tokens >= length:
            message = f"{writes.prompt_tokens:,} tokens leave nothing to write of a sequence of {length:,}"
            yield file.problem((*place, "prompt_tokens"), message, "give fewer than data.sequence_length")
        elif (written := writes.length(length)) > length:
            message = f"prompt and new tokens are {written:,} together, more than a sequence ({length:,})"
            yield file.problem((*place, "new_tokens"), message, "raise data.sequence_length, or write less")
    for training in _trainings(file.spec):
        if (problem := _schedule_problem(training, length)) is not None:
            yield file.problem(*problem)
        elif training[-1] == _PHASES and distill is not None:
            for i, phase in enumerate(distill.phases or ()):
                if phase.tokens < distill.batch_tokens:
                    short = f"{phase.tokens:,} tokens are less than one step of batch_tokens"
                    hint = "a longer phase, or a smaller batch"
                    yield file.problem((*_PHASES, i, "tokens"), f"{short} ({distill.batch_tokens:,})", hint)
    yield from _weight_problems(file, length)
    yield from _every_problems(file, data)
    for name, text in data.texts.items():
        at = place_of_text(name)
        if text.dataset is not None and text.max_tokens is None:
            needed = f"this spec's trainings need max_tokens: {_tokens_needed(file.spec, name)}"
            yield file.problem(at, "missing 'max_tokens'", f"how much of the data set is read; {needed}", key=True)
        if text.max_tokens is not None and text.max_tokens <= length:
            message = f"{text.max_tokens:,} tokens are less than one sequence ({length:,}) and its last label"
            yield file.problem((*at, "max_tokens"), message)


def _weight_problems(file: SpecFile, sequence_length: int) -> Iterator[Problem]:
    """Courses of weights that are longer than a training that has them: the section's, its polish's, a baseline's."""
    for training in _trainings(file.spec):
        section, place, _, length = training
        if not isinstance(section, DistillSpec):
            continue
        steps, polish = _steps(training, sequence_length), ("distill", "blockwise", "polish")
        owner = polish if length[:-1] == polish else place
        owners = [(owner, section.losses)]
        if length == _PHASES:  # each with losses of its own, where it has any
            given = enumerate(section.phases or ())
            owners += [((*_PHASES, i), phase.losses) for i, phase in given if phase.losses is not None]
        for of, losses in owners:
            for kind, term in losses.terms().items():
                if isinstance(term.weight, WeightCourse) and (over := term.weight.over.of(steps)) > steps:
                    where = (*of, "losses", kind, "weight", "over") if length[:-1] == owner else length
                    course = "a course" if where != length else f"for the weight of {kind} a course"
                    message = f"{course} of {over:,} steps is longer than the training of {steps:,}"
                    hint = "a share such as 50% follows the length of the training"
                    yield file.problem(where, message, hint)


def _every_problems(file: SpecFile, data: DataSpec) -> Iterator[Problem]:
    """A distillation that is over before it is measured for the second time."""
    evaluate, distill = file.spec.evaluate, file.spec.distill
    if evaluate is not None and evaluate.every is not None and distill is not None:
        steps = recipe(distill, data, seed=0).steps
        if (every := evaluate.every.of(steps)) > steps:
            message = f"{every:,} steps are more than the training's {steps:,}"
            yield file.problem(("evaluate", "every"), message, "a share such as 10% follows the length of the training")


def _schedule_problem(training: _Trained, sequence_length: int) -> tuple[Location, str, str] | None:
    """The place, the message and the hint of what is wrong with a training's length."""
    section, place, tokens, length = training
    batch, own = section.batch_tokens, length[:-1] == place
    if own and batch < sequence_length:
        message = f"{batch:,} tokens are less than one sequence ({sequence_length:,})"
        return (*place, "batch_tokens"), message, f"give at least data.sequence_length: {sequence_length}"
    if tokens < batch and length != _PHASES:  # else each phase is complained about
        message = f"{tokens:,} tokens are less than one step of batch_tokens ({batch:,})"
        return length, message, "train longer, or with a smaller batch"
    schedule, steps = section.schedule, _steps(training, sequence_length)
    warmup = schedule.warmup.of(steps)
    if warmup > steps:
        message = f"the warm-up of {warmup:,} steps is longer than the training of {steps:,}"
    elif warmup == steps > 1 and schedule.kind != "constant":
        message = f"the warm-up takes all {steps:,} steps: none is left for the {schedule.kind} decay"
    else:
        return None
    where = (*place, "schedule", "warmup") if own else length
    return where, message, "a share such as 1% follows the length of the training"


def _taken(text: str | Mapping[str, BlendPart] | None, source: str, tokens: int) -> int:
    """How many of so many tokens of a text are of one source, at most."""
    if text is None or isinstance(text, str):
        return tokens if text in (None, source) else 0
    if (part := text.get(source)) is None:
        return 0
    if part.unit == "tokens":
        return int(part.value)
    return math.ceil(tokens * part.value / sum(other.value for other in text.values()))


def _tokens_needed(spec: Spec, source: str) -> str:
    """Tokens of a source of which the longest training or search reads none twice, as people write them: "2.11B".

    Never fewer. Of phases that name their text those alone count that read this one.
    """
    assert spec.data is not None
    length = spec.data.sequence_length
    calibrated = ("shortgpt", "laco", "contiguous_drop", "linear_patch")
    kinds = (getattr(item, kind) for item in spec.baselines for kind in calibrated)
    searches = (spec.student.keep, spec.interpolate.order, spec.interpolate.seam, *kinds)
    read = [s.calibration.sequences * length for s in searches if isinstance(s, _SEARCHED)]
    for section, _, tokens, place in _trainings(spec):
        sequences, _ = _sequences_and_steps(section, length, tokens)
        steps = _steps((section, (), tokens, place), length)
        if place == _PHASES and isinstance(section, DistillSpec):
            counts = zip(section.phases or (), steps_of_phases(section, length), strict=True)
            read.append(sum(_taken(phase.data, source, count * sequences * length) for phase, count in counts))
            continue
        # A polish begins where the blocks have ended.
        passed = read[-1] if place[:3] == ("distill", "blockwise", "polish") else 0
        read.append(passed + steps * sequences * length)
    tokens = max(read, default=_PLENTY - 1) + 1  # the last label
    step = 10 ** max(0, len(str(tokens)) - 3)
    rounded = -(-tokens // step) * step
    name, unit = next(((n, u) for n, u in (("B", 10**9), ("M", 10**6), ("k", 1000)) if rounded >= u), ("", 1))
    return f"{rounded / unit:.10g}{name}"
