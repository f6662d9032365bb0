"""What a spec means, as plain data: no default left out, quantities as numbers, layers and sizes as integers.

Two specs that differ in notation only have equal meanings. This is what `show` prints, what `diff` compares, and
what every compiled graph keeps of the specs that it was made from.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from boomspec.graph import Source
from boomspec.layers import blocks
from boomspec.resolve import Family
from boomspec.sizes import compact_plan
from boomspec.spec import Spec


def meaning(spec: Spec, family: Family | None, sources: Iterable[Source] = ()) -> dict[str, Any]:
    """The meaning of a spec, in the order of the language. JSON values only.

    `family` is None while layers or patch order have to be searched for: what was written stands in their place.
    `sources`: what the spec reads; its identities (digests, pinned commits) replace nothing and come last.
    """
    said: dict[str, Any] = _plain(spec.model_dump(mode="json"))
    said["baselines"] = {kind: settings for item in said.get("baselines", ()) for kind, settings in item.items()}
    if "evaluate" in said:
        said["evaluate"]["tasks"] = {item.pop("task"): item for item in said["evaluate"]["tasks"]}
    if family is not None:
        said["student"] |= {"keep": list(family.kept), "parameters": family.student.parameters}
        said["student"]["blocks"] = [list(block) for block in blocks(family.kept, family.facts.count)]
        said["interpolate"] = {
            "sizes": {
                family.label(member): {"plan": compact_plan(member.plan), "parameters": member.parameters}
                | ({"tied": member.tied} if family.facts.tied else {})
                for member in family.members
            }
        }
        said["teacher"] |= {"layers": family.facts.count, "parameters": family.members[-1].parameters}
    said["sources"] = {source.kind: _short(source) for source in sources}
    return said


def _plain(value: Any) -> Any:
    """Without what was not given and has no default; shares as people write them."""
    if isinstance(value, dict):
        if value.keys() == {"unit", "value"}:  # a Share
            return (
                f"{value['value']:.10%}".rstrip("0%").rstrip(".") + "%"
                if value["unit"] == "fraction"
                else value["value"]
            )
        return {key: _plain(item) for key, item in value.items() if item is not None}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _short(source: Source) -> dict[str, Any]:
    """An identity that fits a page: long file lists become a count and the id, which covers them."""
    files = source.identity.get("files")
    short = {"files": f"{len(files)} files", "id": source.id[:12]} if isinstance(files, list) else {}
    return {**source.identity, **short}
