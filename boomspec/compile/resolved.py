"""What a spec means, as plain data: no default left out, quantities as numbers, layers and sizes as integers.

Two specs that differ in notation only have equal meanings, the rules under `written` aside: these became layers and
sizes, and stand there as they were written. This is what `show` prints, what `diff` compares, and what every
compiled graph keeps of the specs that it was made from.

What the compiler works out is there, too: `FOLLOWING` and `BORROWED` name it, so that a comparison tells a cause
from what follows from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from boomspec.compile.records import BEAM_WIDTH, TEXT_FIELD
from boomspec.compile.resolve import Family
from boomspec.core.graph import Source
from boomspec.core.identity import digest
from boomspec.core.layers import ORDERS, blocks, family_of_sets, patchable, prefixes
from boomspec.core.sizes import compact_plan
from boomspec.core.task_data import DATA, TASKS
from boomspec.spec.sections.execution import Resources
from boomspec.spec.sections.interpolate import OrderSearch
from boomspec.spec.sections.student import KeepChoice
from boomspec.spec.sections.training import FaithfulSpec
from boomspec.spec.spec_file import Spec

# What is worked out, and never written in a spec.
FOLLOWING = {
    ("student", "parameters"),
    ("student", "blocks"),
    ("teacher", "layers"),
    ("teacher", "parameters"),
    ("written",),
}
# A default that is the value of another field: the field, and where its default comes from.
BORROWED: dict[tuple[str, ...], tuple[str, ...]] = {
    ("teacher", "pretrain", "key_value_heads"): ("teacher", "pretrain", "attention_heads"),
    ("teacher", "pretrain", "positions"): ("data", "sequence_length"),
    ("baselines", "random_init", "tokens"): ("distill", "tokens"),
    ("distill", "losses", "hidden_cosine", "embedding"): ("student", "train_embedding"),
    **{("execution", "baseline", name): ("execution", "interpolate", name) for name in Resources.model_fields},
}


def meaning(spec: Spec, family: Family | None, sources: Iterable[Source] = ()) -> dict[str, Any]:
    """The meaning of a spec, in the order of the language. JSON values only, and no null.

    `family` is None while layers or patch order have to be searched for: what was written stands in their place.
    `sources`: what the spec reads; its identities (digests, pinned commits) replace nothing and come last.
    """
    sources = list(sources)
    said: dict[str, Any] = _plain(spec.model_dump(mode="json"))
    said["baselines"] = {kind: settings for item in said.get("baselines", ()) for kind, settings in item.items()}
    if "evaluate" in said:
        said["evaluate"]["tasks"] = tasks_by_name(said["evaluate"]["tasks"], spec)
    _give_defaults(spec, said, sources)
    if family is not None:
        _resolve(spec, said, family)
    said["sources"] = _read(spec, sources)
    return said


def tasks_by_name(items: list[dict[str, Any]], spec: Spec) -> dict[str, Any]:
    """The tasks that are asked, by what each is called. The task itself stands where it is called otherwise."""
    assert spec.evaluate is not None
    plain = [{key: value for key, value in item.items() if key != "name"} for item in items]
    names = spec.evaluate.names
    return {
        name: {key: value for key, value in item.items() if key != "task" or value != name}
        for name, item in zip(names, plain, strict=True)
    }


def unresolved(said: dict[str, Any]) -> dict[str, Any]:
    """A meaning with the rules that were written in the place of layers and sizes: it needs no teacher's facts."""
    plain = {key: value for key, value in said.items() if key != "written"}
    if (written := said.get("written")) is not None:
        plain["student"] = {**said["student"], "keep": written.get("keep")}
        plain["interpolate"] = written["interpolate"]
    return plain


def _give_defaults(spec: Spec, said: dict[str, Any], sources: list[Source]) -> None:
    """Write out the defaults that depend on other fields; what no field is of use to is left out."""
    if spec.evaluate is not None and not spec.evaluate.tasks:
        said["evaluate"].pop("bootstrap_iters")
    for role in ("teacher", "student"):
        if said[role].get("model") is None:
            said[role].pop("trust_remote_code")
            said[role].pop("rest", None)
    if spec.execution.baseline is None:
        said["execution"]["baseline"] = _plain(spec.execution.of("baseline").model_dump(mode="json"))
    if spec.teacher.pretrain is not None:
        pretrain = said["teacher"]["pretrain"]
        pretrain.setdefault("key_value_heads", pretrain["attention_heads"])
        if spec.data is not None:
            pretrain.setdefault("positions", spec.data.sequence_length)
    if spec.data is not None and spec.data.held_out is not None and spec.data.held_out.files is not None:
        said["data"]["held_out"].pop("offset")
    if spec.data is not None:
        text = next((source.identity for source in sources if source.kind == "text"), {})
        if spec.data.files is not None and "format" in text:
            said["data"].setdefault("format", text["format"])
        if spec.data.dataset is not None:
            said["data"].setdefault("split", "train")
        if spec.data.dataset is not None or said["data"].get("format", "text") != "text":
            said["data"].setdefault("text_field", TEXT_FIELD)
    if spec.distill is not None:
        said["distill"].setdefault("faithful", FaithfulSpec().model_dump())
        if spec.distill.losses.hidden_cosine is not None and not spec.student.train_embedding:
            said["distill"]["losses"]["hidden_cosine"]["embedding"] = False  # see `boomspec.compile.records`
        if "random_init" in said["baselines"]:
            said["baselines"]["random_init"].setdefault("tokens", spec.distill.tokens)
    order = spec.interpolate.order
    if isinstance(order, OrderSearch) and order.search == "beam":
        said["interpolate"]["order"].setdefault("width", BEAM_WIDTH)


def _resolve(spec: Spec, said: dict[str, Any], family: Family) -> None:
    """Put integers in the place of rules."""
    kept, keep, order = list(family.kept), spec.student.keep, spec.interpolate.order
    written = {"interpolate": said["interpolate"]} | ({"keep": said["student"]["keep"]} if keep is not None else {})
    searched = isinstance(keep, KeepChoice)
    said["student"] |= {
        "keep": {**said["student"]["keep"], "found": kept} if searched else kept,
        "parameters": family.student.parameters,
        "blocks": [[block.start, block.stop - 1] for block in blocks(family.kept, family.facts.count)],
    }
    found = family.once("order", lambda: _order(family))
    said["interpolate"] = {
        "order": {**said["interpolate"]["order"], "found": found} if isinstance(order, OrderSearch) else found,
        "singletons": family.once("singletons", lambda: _singletons(spec, family)),
        "sizes": family.once("sizes", lambda: _sizes(family)),
    }
    said["teacher"] |= {"layers": family.facts.count, "parameters": family.members[-1].parameters}
    said["written"] = written


def _sizes(family: Family) -> dict[str, Any]:
    return {
        family.label(member): {"plan": compact_plan(member.plan), "parameters": member.parameters}
        | ({"tied": member.tied} if family.facts.tied else {})
        for member in family.members
    }


def _order(family: Family) -> list[Any]:
    """The block that each step patches; the blocks of every size where one size's are not among the next one's."""
    multiple = patchable(family.kept, family.facts.count)
    sets = [
        {i for i in multiple if f"t{family.kept[i]}" in layers} for layers in map(set, (m.plan for m in family.every))
    ]
    steps = [sorted(after - before) for before, after in pairwise(sets)]
    nested = all(before <= after for before, after in pairwise(sets))
    return [i for step in steps for i in step] if nested else [sorted(blocks) for blocks in sets]


def _singletons(spec: Spec, family: Family) -> str:
    """Whose the blocks of one layer are: "student" also where the published rule comes to the same."""
    order = spec.interpolate.order
    if spec.interpolate.singletons == "student" or not isinstance(order, str):
        return "student"
    sets = prefixes(ORDERS[order](patchable(family.kept, family.facts.count)))
    plain = family_of_sets(family.kept, family.facts.count, sets)
    return "student" if plain == [member.plan for member in family.every] else "reference"


def _read(spec: Spec, sources: list[Source]) -> dict[str, Any]:
    """What the spec reads, by what it is for."""
    models = iter(["teacher", "student"] if spec.teacher.model is not None else ["student"])
    read: dict[str, Any] = {}
    for source in sources:
        if source.kind == "model":
            read[next(models)] = _short(source)
        elif source.kind in ("text", "hub_dataset"):
            read["data"] = _short(source)
        else:  # a spec may read lm-eval tasks of its own and stock ones
            read[source.kind] = read.get(source.kind, {}) | _tasks(source, read.get(source.kind, {}))
    return read


def _tasks(source: Source, known: dict[str, Any]) -> dict[str, Any]:
    """A source of lm-eval tasks; of data outside of their folder a digest, by the tasks that name it."""
    short = {key: value for key, value in _short(source).items() if key not in (TASKS, DATA)}
    if DATA not in source.identity:
        return short
    data = {", ".join(source.identity[TASKS]): digest(source.identity[DATA])[:12]}
    return {**short, DATA: {**known.get(DATA, {}), **data}}


def _plain(value: Any) -> Any:
    """Without what was not given and has no default."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _short(source: Source) -> dict[str, Any]:
    """An identity that fits a page: long file lists become a count and the id, which covers them."""
    files = source.identity.get("files")
    short = {"files": f"{len(files)} files", "id": source.id[:12]} if isinstance(files, list) else {}
    known = {key: value for key, value in source.identity.items() if value is not None}
    return {**known, **short}
