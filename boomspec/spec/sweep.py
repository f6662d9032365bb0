"""The grid of a `sweep:`: its axes, the points, and what they are called.

    sweep --read_axes--> axes --points--> points

An axis is a field of the language by its dotted path, with the values that take the field's place one after the other.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from boomspec.core.errors import Problem, did_you_mean
from boomspec.spec.document import Document
from boomspec.spec.edits import Edit, Node
from boomspec.spec.kinds import inside, keys_of, members, model_of
from boomspec.spec.messages import joined
from boomspec.spec.scalars import shown
from boomspec.spec.yaml_reader import Location, Place, dotted

MAX_EXPERIMENTS = 10_000
_LONGEST = 32  # letters of a value in a label
REFUSED = {
    **dict.fromkeys(("boomspec", "name"), "it is the same for all experiments of a file"),
    **dict.fromkeys(("extends", "variants", "sweep"), "it is no field of an experiment"),
    "execution": "it says where and how fast an experiment runs: nothing would differ",
}


@dataclass(frozen=True)
class Axis:
    """One axis: what it is called, and its values by their texts, as the edits that set them."""

    name: str
    location: Location
    place: Place
    values: tuple[tuple[str, Edit], ...]


@dataclass(frozen=True)
class Point:
    """One point of the grid: its coordinates, and what it sets."""

    axes: dict[str, str]
    edits: tuple[Edit, ...]

    @property
    def label(self) -> str:
        return ",".join(f"{axis}={text}" for axis, text in self.axes.items())


def points(axes: Sequence[Axis]) -> list[Point]:
    """Every point of the grid, the last axis turning fastest. No axis: one point that sets nothing."""
    chosen = itertools.product(*[[(axis.name, *value) for value in axis.values] for axis in axes])
    return [Point({name: text for name, text, _ in point}, tuple(edit for _, _, edit in point)) for point in chosen]


def read_axes(written: Document, model: type[BaseModel], times: int) -> tuple[tuple[Axis, ...], list[Problem]]:
    """The axes of a file's sweep, and what is wrong with it. `times`: how often the grid is run."""
    if "sweep" not in written.data:
        return (), []
    sweep, top = Node(written.data["sweep"], written.tree.root.children["sweep"]), ("sweep",)
    if not isinstance(sweep.value, dict) or not sweep.value:
        hint = "give fields with their values: seed: [0, 1, 2]"
        what = shown(sweep.value) if sweep.value != {} else "an empty one"
        return (), [written.problem(top, f"expected a mapping of fields to lists, not {what}", hint, key=True)]
    axes: list[Axis] = []
    problems: list[Problem] = []
    paths = {path: tuple(path.split(".")) for path in sweep.value}
    for path, location in paths.items():
        found = list(_wrong_path(written, model, path, location, paths)) or list(_wrong_values(written, path))
        problems += found
        if not found and not _is_damaged(written, path):
            name = _shortest(location, paths.values())
            edits = _edits(name, location, sweep.value[path], sweep.place.children[path])
            axes.append(Axis(name, location, sweep.place.children[path], edits))
    count = times * math.prod(len(axis.values) for axis in axes)
    if count > MAX_EXPERIMENTS:
        problems.append(
            written.problem(top, f"{count:,} experiments are more than {MAX_EXPERIMENTS:,}", None, key=True)
        )
        return (), problems
    return tuple(axes), problems


def _is_damaged(written: Document, path: str) -> bool:
    values = written.data["sweep"][path]
    return any(written.is_damaged(("sweep", path, i)) for i in range(len(values)))


def _wrong_path(
    written: Document, model: type[BaseModel], path: str, location: tuple[str, ...], paths: dict[str, tuple[str, ...]]
) -> Iterator[Problem]:
    place = ("sweep", path)
    where = f"sweep.{path}" if path.isprintable() else "sweep"
    if location[0] in REFUSED:
        yield written.problem(place, f"'{location[0]}' cannot be swept: {REFUSED[location[0]]}", key=True, where=where)
        return
    kinds: list[Any] = [model]
    for depth, item in enumerate(location):
        choices = [member for kind in kinds for member in members(kind) if model_of(member) is not None]
        names = [name for member in choices for name in keys_of(model_of(member) or model)]
        if item not in names:
            above = dotted(location[:depth])
            closest = did_you_mean(item, [name for name in names if name not in REFUSED])
            allowed = f"in {above}: {', '.join(dict.fromkeys(names))}" if names else f"{above} has no fields of its own"
            message = f"there is no field {shown(path)}"
            yield written.problem(place, message, joined([closest, allowed if depth else None]), key=True, where=where)
            return
        kinds = [inner for member in choices if (inner := inside(member, item)) is not None]
    for other, longer in paths.items():
        if other != path and longer[: len(location)] == location:
            yield written.problem(
                ("sweep", other), f"{path} is swept as a whole already", key=True, where=f"sweep.{other}"
            )


def _wrong_values(written: Document, path: str) -> Iterator[Problem]:
    values, where = written.data["sweep"][path], f"sweep.{path}"
    if not isinstance(values, tuple) or not values:
        if not written.is_damaged(("sweep", path)):
            what = "an empty one" if values == () else shown(values)
            hint = f"write [{values}]" if len(str(values)) <= 40 and isinstance(values, str | int | float) else None
            yield written.problem(
                ("sweep", path), f"expected a list of values, not {what}", hint, key=True, where=where
            )
        return
    known: list[str] = []
    for i, value in enumerate(values):
        if repr(value) in known:
            yield written.problem(("sweep", path, i), f"{shown(value)} is listed twice", where=f"{where}[{i}]")
        known.append(repr(value))


def _shortest(location: tuple[str, ...], others: Any) -> str:
    """The shortest end of a path that no other path has."""
    for length in range(1, len(location)):
        tail = location[-length:]
        if sum(other[-length:] == tail for other in others) == 1 and tail != ("variant",):
            return ".".join(tail)
    return ".".join(location)


def _edits(name: str, location: Location, values: tuple[Any, ...], place: Place) -> tuple[tuple[str, Edit], ...]:
    places = [place.children[i] for i in range(len(values))]
    texts = [_plain(_text(value, spot)) for value, spot in zip(values, places, strict=True)]
    often = Counter(text[:_LONGEST] for text in texts)
    found = []
    for i, (text, value, spot) in enumerate(zip(texts, values, places, strict=True), start=1):
        if len(text) > _LONGEST or often[text] > 1:
            text = f"{text[: _LONGEST - 6]}~{i}"
        # null: the field is left out.
        edit = Edit("remove" if value is None else "set", location, value, spot, f"{name}={text}")
        found.append((text, edit))
    return tuple(found)


def _text(value: Any, place: Place) -> str:
    """A value for a label: a scalar as it is written, a list as a+b, a mapping as key:value+key:value."""
    if isinstance(value, dict):
        return "+".join(f"{key}:{_text(inner, place.children[key])}" for key, inner in value.items()) or "{}"
    if isinstance(value, tuple):
        return "+".join(_text(inner, place.children[i]) for i, inner in enumerate(value)) or "none"
    if value is None:
        return "null"
    return place.text if place.text is not None else str(value)


def _plain(text: str) -> str:
    """Without what separates the parts of a label, or would have to be quoted in a shell."""
    return re.sub(r"[^\w.+%:/@~-]+", "-", text) or "-"
