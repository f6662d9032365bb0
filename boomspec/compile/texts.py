"""The tasks that make the text of a spec: one `tokenize` for each source, and a `blend` of several.

    tokens_of(build)                                 the data as a whole: its one text, or the blend of its sources
    tokens_of(build, "sft")                          one source
    tokens_of(build, "sft", loss_on="responses")     the same with other tokens labelled
    tokens_of(build, {"web": part, "sft": part})     a blend that the spec has in another place than `data.blend`

All give the id of a task whose artifact has one format (`runners/data/tokens.py`). A task is added when it is asked
for, and once: its id says what it is made of, and not what the spec calls it.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from boomspec.compile import records
from boomspec.compile.chat import check_hub_template, template_of
from boomspec.compile.text_sources import held_out_source, place_of_text, text_source
from boomspec.core.errors import Problem
from boomspec.core.tasks import Blend
from boomspec.spec.sections.data import LossOn
from boomspec.spec.sections.interpolate import OrderSearch
from boomspec.spec.sections.shares import BlendPart, proportions
from boomspec.spec.sections.student import KeepChoice
from boomspec.spec.spec_file import Spec, SpecFile

if TYPE_CHECKING:
    from boomspec.compile.builder import Builder

_BLEND = "source_{}"  # an input of a blend: by its number, as the blend does not depend on names


def default_text(spec: Spec) -> str | Mapping[str, BlendPart] | None:
    """What `data` as a whole is: the name of its only source ("" without names) or a blend; None: it is not said."""
    data = spec.data
    if data is None:
        return None
    if data.blend is not None:
        return data.blend
    return next(iter(data.texts)) if len(data.texts) == 1 else None


def readers_of_all(spec: Spec) -> dict[str, bool]:
    """What reads the data as a whole, by its place in the spec, and whether it is there."""
    return {
        "distill": spec.distill is not None and any(text is None for text in _texts_of_phases(spec)),
        "teacher.pretrain": spec.teacher.pretrain is not None,
        "evaluate.held_out": spec.evaluate is not None and spec.evaluate.held_out is not None,
        "evaluate.every": spec.evaluate is not None and spec.evaluate.every is not None,
        "student.keep": isinstance(spec.student.keep, KeepChoice),
        "interpolate.order": isinstance(spec.interpolate.order, OrderSearch),
        "interpolate.seam": spec.interpolate.seam is not None,
        "baselines": any(item.naive_pruning is None for item in spec.baselines),
    }


def _texts_of_phases(spec: Spec) -> list[str | Mapping[str, BlendPart] | None]:
    """What each phase of a distillation reads; None: the data as a whole, as a training in one piece does."""
    return [None if phase is None else phase.data for phase in (spec.distill and spec.distill.phases) or (None,)]


def named_texts(spec: Spec) -> set[str]:
    """The sources that something reads."""
    if spec.data is None:
        return set()
    whole = default_text(spec)
    found = {whole} if isinstance(whole, str) else set(whole or ())
    for text in _texts_of_phases(spec):
        found |= {text} if isinstance(text, str) else {*(text or ())}
    if spec.teacher.pretrain is not None:
        found.add(next(iter(spec.data.texts)))  # which its tokenizer is trained on
    return found


def blend_problems(file: SpecFile) -> Iterator[Problem]:
    """Sources that nothing reads, and data that is read as a whole where nothing says how it is mixed."""
    spec, data = file.spec, file.spec.data
    if data is None or data.sources is None:
        return
    if default_text(spec) is None and (reader := next((n for n, reads in readers_of_all(spec).items() if reads), None)):
        equal = ", ".join(f"{name}: {1 / len(data.sources):.3g}" for name in data.sources)
        hint = f"{reader} reads the data as a whole; with equal shares: {{{equal}}}"
        yield file.problem(("data",), "missing 'blend'", hint, key=True)
        return
    if data.blend is not None and not any(readers_of_all(spec).values()):
        yield file.problem(("data", "blend"), "nothing reads the data as a whole", "remove it", key=True)
    for name in data.sources.keys() - named_texts(spec):
        hint = "give it a part of data.blend, or name it in a phase, or remove it"
        yield file.problem(place_of_text(name), f"nothing reads the source '{name}'", hint, key=True)


def tokens_of(
    build: "Builder", which: str | Mapping[str, BlendPart] | None = None, *, loss_on: LossOn | None = None
) -> str:
    """The task that makes a text (see above). Raises SpecError where the data as a whole is not defined."""
    if which is None and (which := default_text(build.resolved.spec)) is None:
        raise build.file.error_at(("data",), "missing 'blend'", "it says how the sources are mixed")
    named = [which] if isinstance(which, str) else list(which)
    if loss_on == "responses" and not any(build.resolved.data.texts[name].is_chat for name in named):
        message = f"'{named[0]}' has no conversations, of which responses could be learned"
        raise build.file.error_at(place_of_text(named[0]), message, "give its messages, or prompt and response")
    if isinstance(which, str):
        return _source(build, which, loss_on)
    if [part.unit for part in which.values()] == ["weight"]:  # all of one source
        return _source(build, next(iter(which)), loss_on)
    return _blend(build, which, loss_on)


def _source(build: "Builder", name: str, loss_on: LossOn | None) -> str:
    file, resolved = build.file, build.resolved
    check_hub_template(file, name)
    source = resolved.data.texts[name]
    if loss_on == source.loss_on or not source.is_chat:
        loss_on = None  # as it is by itself; of text everything is learned
    pretrains, first = resolved.spec.teacher.pretrain is not None, next(iter(resolved.data.texts))
    text, held_out = text_source(file, name), held_out_source(file, name)
    inputs = {"text": build.source(text), **({} if held_out is None else {"held_out": build.source(held_out)})}
    build.text_names.setdefault(text.id, name)
    learns = pretrains and name == first and loss_on is None
    if build.tokenizer is not None:
        inputs["tokenizer"] = build.source(build.tokenizer)
    elif not learns:
        inputs["tokenizer"] = _source(build, first, None)
    record = records.tokenize(resolved, name, learns=learns, loss_on=loss_on, template=template_of(file, name))
    called = f"tokenize {name}".strip() + ("" if loss_on is None else f", loss on {loss_on}")
    return build.add(called, record, inputs)


def _blend(build: "Builder", parts: Mapping[str, BlendPart], loss_on: LossOn | None) -> str:
    tasks = {name: _source(build, name, loss_on) for name in parts}
    # In an order that does not depend on how the spec calls them or lists them.
    ordered = sorted(parts, key=tasks.__getitem__)
    values = [parts[name].value for name in ordered]
    budgets = next(iter(parts.values())).unit == "tokens"
    record = Blend(
        budgets=tuple(map(int, values)) if budgets else None,
        weights=None if budgets else proportions(values),
    )
    inputs = {_BLEND.format(number): tasks[name] for number, name in enumerate(ordered)}
    shown = ", ".join(f"{name} {part.written()}" for name, part in parts.items())
    whole = parts == default_text(build.resolved.spec) and loss_on is None
    called = "blend" if whole else f"blend {shown}" + ("" if loss_on is None else f", loss on {loss_on}")
    return build.add(called, record, inputs)
