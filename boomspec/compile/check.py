"""Check all of a spec that can be known without reading data or asking the hub.

    experiments --check_experiments--> families, or SpecError with every problem of all of them

What a training takes never changes another task: the length of the text is the spec's own `data.max_tokens`, which is
proposed here and never derived.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import get_args

from boomspec.compile.family import ResolvedFamily, check_teacher, kept_layers, patched_sets, resolve_family
from boomspec.compile.model_sources import Role, code_problems, folder_problems, local_facts, model_folder, section_of
from boomspec.compile.places import is_folder, path_text, resolve_path, variable_problems
from boomspec.compile.records import recipe
from boomspec.compile.resolved import complete
from boomspec.compile.text_sources import text_problems
from boomspec.core.errors import Problem
from boomspec.core.layers import patchable, prefixes
from boomspec.models.facts import ModelFacts
from boomspec.spec.problems import for_each
from boomspec.spec.sections.baselines import LaCoSpec, ShortGPT
from boomspec.spec.sections.interpolate import OrderSearch
from boomspec.spec.sections.student import KeepChoice
from boomspec.spec.sections.training import Training
from boomspec.spec.spec_file import Memo, Spec, SpecFile, memoized_for
from boomspec.spec.yaml_reader import Location

_HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
_SEARCHED = KeepChoice | OrderSearch | ShortGPT | LaCoSpec
_Trained = tuple[Training, Location, int, Location]  # its section and its tokens, each with its place
_PLENTY = 10_000_000  # tokens, where nothing is trained or searched: what is held out is a share of them


def check_experiments(files: Sequence[SpecFile]) -> list[ResolvedFamily | None]:
    """The family of every experiment of a spec. Raises SpecError with the problems of all.

    None where the teacher's layers, a search's finding or a published student's mapping are not known yet.
    """
    return for_each(together(files), check)


def together(files: Sequence[SpecFile]) -> list[SpecFile]:
    """The files with one memo: what has been read for one is not read again for the others."""
    once = Memo()
    return [replace(file, once=once) for file in files]


def check(file: SpecFile) -> ResolvedFamily | None:
    """Check one experiment of those that are compiled together."""
    file = replace(file, spec=complete(file.spec))
    if problems := [*_path_problems(file), *_training_problems(file)]:
        raise file.error(*problems)
    facts = local_facts(file)
    return None if facts is None else check_against(file, facts)


@memoized_for("teacher", "student", "data", "distill", "interpolate", "evaluate")
def check_against(file: SpecFile, facts: ModelFacts) -> ResolvedFamily | None:
    """Check a spec against its teacher, with the plainest choice in the place of what a search will find."""
    check_teacher(file, facts)
    if file.spec.student.keep is None:
        return None
    kept = kept_layers(file, facts)
    sets = patched_sets(file, kept, facts.count)
    family = resolve_family(file, facts, kept, sets or tuple(prefixes(patchable(kept, facts.count)[::-1])))
    settled = sets is not None and not isinstance(file.spec.student.keep, KeepChoice)
    return family if settled and file.spec.student.model is None else None


@memoized_for("teacher", "student", "data", "evaluate", "execution")
def _path_problems(file: SpecFile) -> list[Problem]:
    if problems := list(variable_problems(file)):
        return problems
    spec = file.spec
    if spec.evaluate is not None and spec.evaluate.held_out is not None and spec.data and not spec.data.held_out:
        hint = "set documents apart: data: {held_out: {every: 20}}"
        problems.append(file.problem(("evaluate", "held_out"), "there is no held-out text to measure", hint))
    for role in get_args(Role):
        section, folder = section_of(file, role), model_folder(file, role)
        if folder is not None:
            if section.revision is not None:
                problems.append(file.problem((role, "revision"), "a folder has no revisions", "remove it"))
            problems += folder_problems(file, role, folder) or code_problems(file, role, folder)
        elif section.model and not _HUB_ID.fullmatch(name := path_text(file, (role, "model"), section.model)):
            problems.append(file.problem((role, "model"), f"'{name}' is neither a folder nor a hub id (owner/name)"))
    if spec.data is not None:
        problems += text_problems(file, spec.data)
    if spec.evaluate is not None and spec.evaluate.tasks_folder is not None:
        place = ("evaluate", "tasks_folder")
        if not is_folder(tasks := resolve_path(file, place, spec.evaluate.tasks_folder)):
            problems.append(file.problem(place, f"'{tasks}' is not a folder"))
    return problems


def _trainings(spec: Spec) -> Iterator[_Trained]:
    if (pretrain := spec.teacher.pretrain) is not None:
        yield pretrain, ("teacher", "pretrain"), pretrain.tokens, ("teacher", "pretrain", "tokens")
    if (distill := spec.distill) is not None:
        yield distill, ("distill",), distill.tokens, ("distill", "tokens")
        for i, item in enumerate(spec.baselines):
            if item.random_init is not None and item.random_init.tokens not in (None, distill.tokens):
                yield distill, ("distill",), item.random_init.tokens, ("baselines", i, "random_init", "tokens")


def _training_problems(file: SpecFile) -> Iterator[Problem]:
    data, pretrain = file.spec.data, file.spec.teacher.pretrain
    if data is None:
        return
    length = data.sequence_length
    if pretrain is not None and pretrain.positions is not None and pretrain.positions < length:
        message = f"{pretrain.positions:,} positions are less than one sequence ({length:,})"
        yield file.problem(("teacher", "pretrain", "positions"), message)
    for training in _trainings(file.spec):
        if (problem := _schedule_problem(training, length)) is not None:
            yield file.problem(*problem)
    if data.dataset is not None and data.max_tokens is None:
        hint = f"how much of the data set is read; this spec's trainings need max_tokens: {_tokens_needed(file.spec)}"
        yield file.problem(("data",), "missing 'max_tokens'", hint, key=True)
    if data.max_tokens is not None and data.max_tokens <= length:
        message = f"{data.max_tokens:,} tokens are less than one sequence ({length:,}) and its last label"
        yield file.problem(("data", "max_tokens"), message)


def _schedule_problem(training: _Trained, sequence_length: int) -> tuple[Location, str, str] | None:
    """The place, the message and the hint of what is wrong with a training's length."""
    section, place, tokens, length = training
    batch, own = section.batch_tokens, length[:-1] == place
    if own and batch < sequence_length:
        message = f"{batch:,} tokens are less than one sequence ({sequence_length:,})"
        return (*place, "batch_tokens"), message, f"give at least data.sequence_length: {sequence_length}"
    if tokens < batch:
        message = f"{tokens:,} tokens are less than one step of batch_tokens ({batch:,})"
        return length, message, "train longer, or with a smaller batch"
    steps = recipe(section, seed=0, sequence_length=sequence_length, tokens=tokens).steps
    schedule = section.schedule
    warmup = schedule.warmup.of(steps)
    if warmup > steps:
        message = f"the warm-up of {warmup:,} steps is longer than the training of {steps:,}"
    elif warmup == steps > 1 and schedule.kind != "constant":
        message = f"the warm-up takes all {steps:,} steps: none is left for the {schedule.kind} decay"
    else:
        return None
    where = (*place, "schedule", "warmup") if own else length
    return where, message, "a share such as 1% follows the length of the training"


def _tokens_needed(spec: Spec) -> str:
    """Tokens of which the longest training or search reads none twice, as people write them, never fewer: "2.11B"."""
    assert spec.data is not None
    length = spec.data.sequence_length
    kinds = (kind for item in spec.baselines for kind in (item.shortgpt, item.laco))
    searches = (spec.student.keep, spec.interpolate.order, *kinds)
    read = [s.calibration.sequences * length for s in searches if isinstance(s, _SEARCHED)]
    for section, _, tokens, _ in _trainings(spec):
        read.append(recipe(section, seed=0, sequence_length=length, tokens=tokens).tokens)
    tokens = max(read, default=_PLENTY - 1) + 1  # the last label
    step = 10 ** max(0, len(str(tokens)) - 3)
    rounded = -(-tokens // step) * step
    name, unit = next(((n, u) for n, u in (("B", 10**9), ("M", 10**6), ("k", 1000)) if rounded >= u), ("", 1))
    return f"{rounded / unit:.10g}{name}"
