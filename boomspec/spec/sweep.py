"""The grid of a `sweep:`: its axes, its points, and their labels.

    sweep --read_axes--> axes --points--> coordinates and edits

An axis is a field of the spec by its dotted path, with the values that take the place of the field one after the other.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from boomspec.core.errors import Problem, did_you_mean
from boomspec.spec.document import Document, Edit
from boomspec.spec.schema import Schema, inside, mappings, schema_of
from boomspec.spec.spec_file import Spec
from boomspec.spec.validate import joined
from boomspec.spec.yaml_reader import Location, Node, dotted, shown

MAX_EXPERIMENTS = 10_000
_LONGEST = 32  # letters of a value in a label
OWN = ("extends", "variants", "sweep")  # how a file is composed; no part of an experiment
OF_THE_FILE = dict.fromkeys(("boomspec", "name"), "it is the same for all experiments of a file")
REFUSED = {
    **OF_THE_FILE,
    **dict.fromkeys(OWN, "it is no field of an experiment"),
    "execution": "it says where and how fast an experiment runs: nothing would differ",
}


@dataclass(frozen=True)
class Axis:
    """One axis: its name in labels, and its values by their labels, as the edits that set them."""

    name: str
    location: Location
    values: tuple[tuple[str, Edit], ...]


def points(axes: Sequence[Axis]) -> Iterator[tuple[dict[str, str], tuple[Edit, ...]]]:
    """Every point of the grid: its coordinates and the edits that set them. Without an axis one, which sets nothing."""
    for chosen in itertools.product(*(axis.values for axis in axes)):
        texts = {axis.name: text for axis, (text, _) in zip(axes, chosen, strict=True)}
        yield texts, tuple(edit for _, edit in chosen)


def read_axes(written: Document, times: int) -> tuple[list[Axis], list[Problem]]:
    """The axes of a file's sweep, and what is wrong with it. `times`: how often the grid is run."""
    sweep = written.root.get("sweep")
    if sweep is None or sweep.damaged:
        return [], []
    if not isinstance(sweep.value, dict) or not sweep.value:
        hint = "give fields with their values: seed: [0, 1, 2]"
        return [], [written.unexpected(("sweep",), "a mapping of fields to lists", hint)]
    axes: list[Axis] = []
    problems: list[Problem] = []
    paths = {path: tuple(path.split(".")) for path in sweep.value}
    for path, values in sweep.value.items():
        wrong = list(_wrong_path(written, path, paths)) or list(_wrong_values(written, path, values))
        problems += wrong
        if not wrong and not any(node.damaged for node in (values, *values.children())):
            axes.append(_axis(paths[path], paths.values(), values.value))
    count = times * math.prod(len(axis.values) for axis in axes)
    if count > MAX_EXPERIMENTS:
        message = f"{count:,} experiments are more than {MAX_EXPERIMENTS:,}"
        return [], [*problems, written.problem(("sweep",), message, key=True)]
    return axes, problems


def _wrong_path(written: Document, path: str, paths: dict[str, tuple[str, ...]]) -> Iterator[Problem]:
    def problem(message: str, hint: str | None = None, path: str = path) -> Problem:
        return written.problem(("sweep", path), message, hint, key=True, where=f"sweep.{path}")

    location = paths[path]
    if location[0] in REFUSED:
        yield problem(f"'{location[0]}' cannot be swept: {REFUSED[location[0]]}")
        return
    holders: list[Schema] = [schema_of(Spec)]
    for depth, item in enumerate(location):
        names = list(dict.fromkeys(name for holder in holders for name in holder["properties"]))
        if item not in names:
            above = dotted(location[:depth])
            closest = did_you_mean(item, [name for name in names if name not in REFUSED])
            allowed = f"in {above}: {', '.join(names)}" if names else f"{above} has no fields of its own"
            yield problem(f"there is no field {shown(path)}", joined([closest, allowed if depth else None]))
            return
        holders = mappings(inside(holders, item))
    for other, longer in paths.items():
        if other != path and longer[: len(location)] == location:
            yield problem(f"{path} is swept as a whole already", path=other)


def _wrong_values(written: Document, path: str, values: Node) -> Iterator[Problem]:
    plain = values.plain()
    if not isinstance(plain, tuple) or not plain:
        if not values.damaged:
            hint = f"write [{plain}]" if len(str(plain)) <= 40 and isinstance(plain, str | int | float) else None
            yield written.unexpected(("sweep", path), "a list of values", hint, where=f"sweep.{path}")
        return
    texts = [repr(value) for value in plain]
    for i, value in enumerate(plain):
        if texts[i] in texts[:i]:
            yield written.problem(("sweep", path, i), f"{shown(value)} is listed twice", where=f"sweep.{path}[{i}]")


def _axis(path: tuple[str, ...], paths: Collection[tuple[str, ...]], values: tuple[Node, ...]) -> Axis:
    """The axis of a field; its name is the shortest end of its path that no other path has.

    The labels of its values are without what would separate labels or need quotes in a shell.
    """
    tails = [path[-length:] for length in range(1, len(path))]
    own = [tail for tail in tails if sum(other[-len(tail) :] == tail for other in paths) == 1 and tail != ("variant",)]
    name = ".".join(own[0] if own else path)
    texts = [re.sub(r"[^\w.+%:/@~-]+", "-", _text(node)) or "-" for node in values]
    often = Counter(text[:_LONGEST] for text in texts)
    found = []
    for i, (text, node) in enumerate(zip(texts, values, strict=True), start=1):
        if len(text) > _LONGEST or often[text] > 1:
            text = f"{text[: _LONGEST - 6]}~{i}"
        found.append((text, Edit("omit" if node.value is None else "set", path, node, f"{name}={text}")))
    return Axis(name, path, tuple(found))


def _text(node: Node) -> str:
    """A value in a label: a scalar as it is written, a list as a+b, a mapping as key:value+key:value."""
    if isinstance(node.value, dict):
        return "+".join(f"{key}:{_text(inner)}" for key, inner in node.value.items()) or "{}"
    if isinstance(node.value, tuple):
        return "+".join(map(_text, node.value)) or "none"
    if node.value is None:
        return "null"
    return node.text if node.text is not None else str(node.value)
