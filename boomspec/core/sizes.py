"""List the models between student and teacher, and select one by a size such as "80%" or "3B"."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, NamedTuple

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import STUDENT, TEACHER, LayerPlan, PlanText, layers_text
from boomspec.core.types import SizeRequest, parse_size

Choose = Literal["not_above", "nearest"]
_ROUNDING = 1e-9  # "33.3%" of a third


@dataclass(frozen=True)
class Member:
    """One model of the family: `patched` blocks are the teacher's."""

    patched: int
    plan: PlanText
    parameters: int
    bytes: int
    tied: bool
    asked: tuple[str, ...] = ()  # the sizes in the spec that it stands for

    @property
    def layers(self) -> int:
        return len(self.plan)

    @property
    def is_student(self) -> bool:
        return all(layer.owner == STUDENT for layer in self.plan)

    @property
    def is_teacher(self) -> bool:
        return all(layer.owner == TEACHER for layer in self.plan)

    def to_json(self) -> dict[str, Any]:
        """Without `asked`, which is the spec's."""
        sizes = {"parameters": self.parameters, "bytes": self.bytes, "tied": self.tied}
        return {"layers": self.layers, "patched": self.patched, **sizes, "plan": layers_text(self.plan)}


class LayerCache(NamedTuple):
    """What one layer caches of keys and values."""

    bytes: int  # for one token of one sequence
    window: int | None = None  # tokens that it looks back; None: all of them


@dataclass(frozen=True)
class Lineage:
    """A family: where teacher and student come from, and every size that it has."""

    teacher: str  # id of a task or a source
    student: str
    kept: tuple[int, ...]
    trained: Member  # the student itself; by the published code's rule the smallest member may be another
    members: tuple[Member, ...]  # by patched blocks, built by the graph or not; the last one is the teacher
    rest: bool = False  # members with layers of the teacher have its other parts, too
    seams: bool = False  # members of layers of both have weights of their own, fitted at their seams
    cache: tuple[LayerCache, ...] = ()  # of each layer of the teacher; none where that is not known

    def to_json(self) -> dict[str, Any]:
        ids = {"teacher": self.teacher, "student": self.student, "kept": list(self.kept)}
        sizes = {"trained": self.trained.to_json(), "members": [member.to_json() for member in self.members]}
        named = {name: True for name in ("rest", "seams") if getattr(self, name)}
        return ids | sizes | named | ({"cache": [list(one) for one in self.cache]} if self.cache else {})

    def is_fitted(self, member: Member) -> bool:
        """Whether a member has weights that neither teacher nor student has."""
        return self.seams and not (member.is_student or member.is_teacher)

    def pick(self, text: str) -> Member:
        """The member of a size ("student", "24 layers", "3B", "80%"): the largest not above it; else BoomspecError."""
        if text in ("student", "teacher"):
            return self.trained if text == "student" else self.members[-1]
        try:
            size = parse_size(text)
        except ValueError as error:
            raise BoomspecError(f"size '{text}': {error}", hint="or: student, teacher") from error
        if (member := select_member(self.members, size)) is None:
            raise BoomspecError(no_such_size(self.members, size))
        return member


def folder_name(lineage: Lineage, member: Member) -> str:
    """What a member's folder is called among those of its family: "6-layers"."""
    return labels(lineage.members)[member.patched].replace(",", "").replace(" ", "-")


def labels(members: Sequence[Member]) -> dict[int, str]:
    """A name for each member, by its number of patched blocks. Blocks of different length can give one size twice."""
    twice = {layers for layers, count in Counter(member.layers for member in members).items() if count > 1}
    return {m.patched: f"{m.layers} layers" + (f", {m.patched} patched" if m.layers in twice else "") for m in members}


def select_member(members: Sequence[Member], size: SizeRequest, *, choose: Choose = "not_above") -> Member | None:
    """The member that answers `size`: the largest one not above it, or the nearest (of two, the smaller).

    None where the size lies outside of the family; the nearest may lie beyond an end by half of the way to the
    next member. Sizes need not rise with the patched blocks: where a tied model's embedding and head have two
    owners, the head is written out, and the model may have more parameters than the teacher.
    """
    sized = sorted(((_measured(member, size, members[-1]), member) for member in members), key=lambda pair: pair[0])
    values = [value for value, _ in sized]
    low, high = values[0], values[-1]
    if choose == "nearest":
        low, high = low - (values[1] - low) / 2, high + (high - values[-2]) / 2
    if not low * (1 - _ROUNDING) <= size.value <= high * (1 + _ROUNDING):
        return None
    if choose == "nearest":
        return min(sized, key=lambda pair: abs(pair[0] - size.value))[1]
    fitting = [pair for pair in sized if pair[0] <= size.value * (1 + _ROUNDING)]
    return max(fitting, key=lambda pair: pair[0])[1]


def no_such_size(members: Sequence[Member], size: SizeRequest) -> str:
    values = [_measured(member, size, members[-1]) for member in members]
    form, unit = (".1%", "") if size.unit == "fraction" else (",.0f", f" {size.unit}")
    return f"no model of size {size.text}: this family has {min(values):{form}} to {max(values):{form}}{unit}"


def _measured(member: Member, size: SizeRequest, teacher: Member) -> float:
    if size.unit == "fraction":
        return member.parameters / teacher.parameters
    return float(getattr(member, size.unit))


def shown_bytes(count: int) -> str:
    """1.5 GiB."""
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.1f} {units[0]}"


def compact_plan(plan: LayerPlan) -> str:
    """A layer plan with runs written short: "s0-3 t8-15"."""
    by_run = groupby(enumerate(plan), lambda at: (at[1].owner, at[1].index - at[0]))  # layers that follow one another
    runs = [[layer for _, layer in run] for _, run in by_run]
    return " ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1].index}" for run in runs)
