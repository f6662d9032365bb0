"""Turn `keep` rules into teacher layer indices, and patch orders into layer plans.

    kept     strictly increasing teacher indices, kept[0] = 0; student layer i starts as teacher layer kept[i]
    block i  teacher layers kept[i] .. kept[i+1]-1 (the last block ends at N-1); one layer: a singleton
    plan     a model as a tuple of layers, each by owner and index: "t4" is teacher layer 4, "s2" is student layer 2

Strategies end here: what leaves this module are explicit integers and plans.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Annotated, Any, Final, Literal, NamedTuple, cast

from pydantic import Field, PlainSerializer, PlainValidator
from pydantic_core import core_schema

from boomspec.core.types import Strict

Owner = Literal["s", "t"]
STUDENT: Final = "s"
TEACHER: Final = "t"
Singletons = Literal["student", "reference"]


class Layer(NamedTuple):
    """One layer of a plan: the owner, and which of that model's layers. Records and files hold its text, "t4".

    A tuple, because plans are compared and looked up a million times where a sweep is compiled.
    """

    owner: Owner
    index: int  # type: ignore[assignment]  # the method of tuples that finds an item is not needed

    def __str__(self) -> str:
        return f"{self.owner}{self.index}"

    @classmethod
    def read(cls, text: object) -> "Layer":
        """The inverse of `str`. Raises ValueError for what is no layer."""
        if isinstance(text, Layer):
            return text
        match = re.fullmatch(r"([st])([0-9]+)", text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(f"'{text}' is not a layer: teacher layer 4 is t4, student layer 2 is s2")
        return cls(cast(Owner, match[1]), int(match[2]))

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: Any) -> core_schema.CoreSchema:
        text = core_schema.to_string_ser_schema()
        return core_schema.no_info_plain_validator_function(cls.read, serialization=text)


LayerPlan = tuple[Layer, ...]


def read_layers(layers: str | Iterable[str | Layer]) -> LayerPlan:
    """A plan from its text, "s0 s1 t4", or from its layers' texts. Raises ValueError for what is no layer."""
    return tuple(map(Layer.read, layers.split() if isinstance(layers, str) else layers))


def layers_text(plan: LayerPlan) -> str:
    """The inverse of `read_layers`: "s0 s1 t4"."""
    return " ".join(map(str, plan))


# A field of a record that holds a plan as one text.
PlanText = Annotated[LayerPlan, PlainValidator(read_layers), PlainSerializer(layers_text)]


def ends_of(plan: LayerPlan) -> tuple[Owner, Owner]:
    """The owners of first and last layer: of the embedding, and of final norm and head (arXiv 2510.05064)."""
    return plan[0].owner, plan[-1].owner


def teacher_layers(indices: Iterable[int]) -> LayerPlan:
    return tuple(Layer(TEACHER, i) for i in indices)


def student_layers(count: int) -> LayerPlan:
    return tuple(Layer(STUDENT, i) for i in range(count))


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
    """`count` kept layers of `layers`, the blocks as equal as can be, the longer ones at the end."""
    return tuple(i * layers // count for i in range(count))


def check_kept(kept: Sequence[int], layers: int) -> tuple[str, int | None] | None:
    """What is wrong with a list of kept layers, and which item (None: the list as a whole). None if nothing is."""
    if outside := [at for at, layer in enumerate(kept) if not 0 <= layer < layers]:
        return f"layer {kept[outside[0]]} does not exist: the teacher has layers 0 to {layers - 1}", outside[0]
    if falling := [at + 1 for at, (a, b) in enumerate(pairwise(kept)) if a >= b]:
        return "kept layers must be strictly increasing", falling[0]
    if not kept or kept[0] != 0:
        return "layer 0 must be kept: the student's first layer reads the embedding as the teacher's does", None
    if len(kept) == layers:
        return f"all {layers} layers are kept: the student would be the teacher", None
    return None


def blocks(kept: Sequence[int], layers: int) -> list[range]:
    """Block i as the range of its teacher layers."""
    return [range(start, end) for start, end in zip(kept, [*kept[1:], layers], strict=True)]


def patchable(kept: Sequence[int], layers: int) -> list[int]:
    """Indices of the blocks of two or more layers: only these change a model's size."""
    return [i for i, block in enumerate(blocks(kept, layers)) if len(block) > 1]


Order = Callable[[list[int]], tuple[int, ...]]  # of blocks, by their indices
ORDERS: dict[str, Order] = {"first_to_last": tuple, "last_to_first": lambda blocks: tuple(reversed(blocks))}


def plan_of(kept: Sequence[int], layers: int, owners: Sequence[bool]) -> LayerPlan:
    """The layer plan in which block i is the teacher's where `owners[i]`, else student layer i."""
    plan: LayerPlan = ()
    for i, (block, from_teacher) in enumerate(zip(blocks(kept, layers), owners, strict=True)):
        plan += teacher_layers(block) if from_teacher else (Layer(STUDENT, i),)
    return plan


def family_of_sets(
    kept: Sequence[int], layers: int, sets: Sequence[Sequence[int]], reference: Literal["first", "last"] | None = None
) -> list[LayerPlan]:
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
    return [*plans, teacher_layers(range(layers))]


def prefixes(order: Sequence[int]) -> list[tuple[int, ...]]:
    """The patched blocks after 0, 1, ..., m steps of a patch order."""
    return [tuple(order[:k]) for k in range(len(order) + 1)]


def seams(plan: LayerPlan) -> tuple[int, ...]:
    """Places in a plan whose layer has another owner than the one in front of it."""
    return tuple(place for place in range(1, len(plan)) if plan[place].owner != plan[place - 1].owner)


def teacher_indices(plan: LayerPlan, kept: Sequence[int]) -> list[int]:
    """For each layer of a plan the teacher layer that it is, or was copied from: they have one shape."""
    return [layer.index if layer.owner == TEACHER else kept[layer.index] for layer in plan]


MOST_EXACT_BLOCKS = 12  # 4,096 candidates
EXACT_HINT = "use search: beam with a width, or klpatch"


def refuse_exact(patchable_blocks: int) -> str | None:
    """Say why an exact search over so many blocks is refused, or None."""
    has = f"an exact search over {patchable_blocks} blocks has {2**patchable_blocks:,} candidates"
    return f"{has}: up to {MOST_EXACT_BLOCKS} blocks are allowed" if patchable_blocks > MOST_EXACT_BLOCKS else None
