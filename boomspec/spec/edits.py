"""What one part of a spec changes in another: an override taken apart into its leaves, and put on top of data.

    override --edits_of--> edits;  node x edits --edited--> node

Mappings merge, everything else replaces, null removes. A leaf is one edit, so that a problem can be traced to it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from boomspec.core.errors import Problem, printable
from boomspec.spec.yaml_reader import Location, Place, dotted

How = Literal["open", "set", "remove"]


class Node(NamedTuple):
    """A value and its places."""

    value: Any
    place: Place


@dataclass(frozen=True)
class Edit:
    """One change: a mapping that is opened (made where there is none), a value that is set, or one that is removed."""

    how: How
    location: Location
    value: Any
    place: Place
    title: str = ""  # of the experiment, or the part of its label, that it belongs to

    @property
    def is_leaf(self) -> bool:
        return self.how != "open" or not self.place.children

    @property
    def spot(self) -> tuple[int, int]:
        """Line and column: of the key, where there is one."""
        return self.place.key or (self.place.line, self.place.column)

    def problem(self, message: str, hint: str | None = None) -> Problem:
        """A problem of the edit itself."""
        message = f"{self.title}: {message}" if self.title else message
        hint = hint and printable(hint)
        return Problem(*self.spot, dotted(self.location), printable(message), hint, str(self.place.file))


def edits_of(
    override: Node, title: str = "", *, damaged: Collection[Location] = (), location: Location = ()
) -> Iterator[Edit]:
    """The edits of an override, from the top down. What could not be read (`damaged`) changes nothing."""
    value, place = override
    if location in damaged:
        return
    if isinstance(value, dict):
        yield Edit("open", location, {}, place, title)
        for key, inner in value.items():
            yield from edits_of(Node(inner, place.children[key]), title, damaged=damaged, location=(*location, key))
    else:
        yield Edit("remove" if value is None else "set", location, value, place, title)


def edited(node: Node, edit: Edit, depth: int = 0) -> Node:
    """The node with one edit made; what is not on its way is shared with the old one."""
    value, place = node
    if depth == len(edit.location):
        if edit.how == "set":
            return Node(edit.value, edit.place)
        known = place.children if isinstance(value, dict) else {}
        return Node(value if isinstance(value, dict) else {}, replace(edit.place, children=known))
    key = edit.location[depth]
    values = dict(value) if isinstance(value, dict) else {}
    children = dict(place.children) if isinstance(value, dict) else {}
    if edit.how == "remove" and depth == len(edit.location) - 1:
        values.pop(key, None)
        children.pop(key, None)
    else:
        below = Node(values.get(key), children.get(key, edit.place))
        values[key], children[key] = edited(below, edit, depth + 1)
    return Node(values, replace(place, children=children))
