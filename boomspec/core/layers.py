"""Layer mappings, patch orders and layer plans: everything about layers that is decided before a run.

    kept     strictly increasing teacher indices, kept[0] = 0; student layer i starts as teacher layer kept[i]
    block i  teacher layers kept[i] .. kept[i+1]-1 (the last block ends at N-1); one layer: a singleton
    plan     a model as a list of layers: "t4" is teacher layer 4, "s2" is student layer 2

Strategies end here: what leaves this module are explicit integers and plans.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field

from boomspec.core.types import Strict

Singletons = Literal["student", "reference"]
Plan = tuple[str, ...]


class KeepRule(Strict):
    """Keep the first `first` layers, then every `every`-th, and the last `last`."""

    every: Annotated[int, Field(ge=2, description="Keep one of so many layers.", examples=[2])]
    first: Annotated[int, Field(ge=1, description="So many layers at the start are all kept.")] = 1
    last: Annotated[int, Field(ge=0, description="So many layers at the end are all kept.")] = 1

    def kept(self, layers: int) -> tuple[int, ...]:
        middle = [i for i in range(self.first, layers - self.last) if (i - self.first) % self.every == self.every - 1]
        ends = [*range(min(self.first, layers)), *range(max(0, layers - self.last), layers)]
        return tuple(sorted({*ends, *middle}))


def evenly_spaced(count: int, layers: int) -> tuple[int, ...]:
    """`count` kept layers of `layers`, the blocks as equal as can be, the longer ones behind."""
    return tuple(i * layers // count for i in range(count))


def check_kept(kept: Sequence[int], layers: int) -> str | None:
    """Say what is wrong with a list of kept layers, or None."""
    outside = [i for i in kept if not 0 <= i < layers]
    if outside:
        return f"layer {outside[0]} does not exist: the teacher has layers 0 to {layers - 1}"
    if any(a >= b for a, b in pairwise(kept)):
        return "kept layers must be strictly increasing"
    if not kept or kept[0] != 0:
        return "layer 0 must be kept: the student's first layer reads the embedding as the teacher's does"
    if len(kept) == layers:
        return f"all {layers} layers are kept: the student would be the teacher"
    return None


def first_wrong(kept: Sequence[int], layers: int) -> int | None:
    """Which item of a list of kept layers `check_kept` complains of; None where it is the list as a whole."""
    outside = [at for at, layer in enumerate(kept) if not 0 <= layer < layers]
    falling = [at + 1 for at, (a, b) in enumerate(pairwise(kept)) if a >= b]
    return next(iter(outside or falling), None)


def blocks(kept: Sequence[int], layers: int) -> list[range]:
    """Block i as the range of its teacher layers."""
    return [range(start, end) for start, end in zip(kept, [*kept[1:], layers], strict=True)]


def patchable(kept: Sequence[int], layers: int) -> list[int]:
    """Indices of the blocks of two or more layers: only these change a model's size."""
    return [i for i, block in enumerate(blocks(kept, layers)) if len(block) > 1]


ORDERS: dict[str, Callable[[list[int]], tuple[int, ...]]] = {
    "first_to_last": tuple,
    "last_to_first": lambda block_indices: tuple(reversed(block_indices)),
}


def plan_of(kept: Sequence[int], layers: int, owners: Sequence[bool]) -> Plan:
    """The layer plan in which block i is the teacher's where `owners[i]`, else student layer i."""
    plan: list[str] = []
    for i, (block, from_teacher) in enumerate(zip(blocks(kept, layers), owners, strict=True)):
        plan += [f"t{layer}" for layer in block] if from_teacher else [f"s{i}"]
    return tuple(plan)


def family(
    kept: Sequence[int], layers: int, order: Sequence[int], *, reference: Literal["first", "last"] | None = None
) -> list[Plan]:
    """The layer plans after 0, 1, ..., m patched blocks in `order`, as `family_of_sets`."""
    return family_of_sets(kept, layers, prefixes(order), reference=reference)


def family_of_sets(
    kept: Sequence[int],
    layers: int,
    sets: Sequence[Sequence[int]],
    *,
    reference: Literal["first", "last"] | None = None,
) -> list[Plan]:
    """The layer plans for `sets`, the blocks patched after 0, 1, ..., m steps; the last one is the teacher itself.

    Singletons stay the student's until all is patched. With `reference` they follow the rule of the published
    code (arXiv 2510.05064) for a model that grows from its first or last layer: the singletons at the growing
    end are the teacher's, even at k = 0.
    """
    plans = []
    for patched, following in pairwise(sets):
        owners = [i in patched for i in range(len(kept))]
        if reference is not None:
            (next_block,) = set(following) - set(patched)
            owners = [i < next_block if reference == "first" else i > next_block for i in range(len(kept))]
        plans.append(plan_of(kept, layers, owners))
    plans.append(tuple(f"t{i}" for i in range(layers)))
    return plans


def prefixes(order: Sequence[int]) -> list[tuple[int, ...]]:
    """The patched blocks after 0, 1, ..., m steps of a patch order."""
    return [tuple(order[:k]) for k in range(len(order) + 1)]


def untrained(plan: Plan, kept: Sequence[int]) -> Plan:
    """The same plan with every student layer replaced by the teacher layer that it was copied from."""
    return tuple(f"t{kept[int(layer[1:])]}" if layer[0] == "s" else layer for layer in plan)


def teacher_indices(plan: Plan, kept: Sequence[int]) -> list[int]:
    """For each layer of a plan the teacher layer whose shape and attributes it has."""
    return [int(layer[1:]) for layer in untrained(plan, kept)]


MOST_EXACT_BLOCKS = 12  # 4,096 candidates
EXACT_HINT = "use search: beam with a width, or klpatch"


def refuse_exact(patchable_blocks: int) -> str | None:
    """Say why an exact search over so many blocks is refused, or None."""
    if patchable_blocks <= MOST_EXACT_BLOCKS:
        return None
    return (
        f"an exact search over {patchable_blocks} blocks has {2**patchable_blocks:,} candidates: "
        f"up to {MOST_EXACT_BLOCKS} blocks are allowed"
    )


def owner(layer: str) -> str:
    return layer[0]
