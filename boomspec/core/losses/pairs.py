"""Which places of student and teacher a loss compares, and what such a loss trains beside the student.

A place is named in the numbers of the STUDENT: an integer i is the output of its layer i, and of the teacher's block i;
"embedding" is what the first layer reads; "final norm" what the head reads. A pair of places is a site: what each
argument of the formula is read from. The runners know which of the teacher's layers a block ends at.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from boomspec.core.losses.loss import Loss, Read

Place = int | Literal["embedding", "final norm"]
Site = Mapping[Read, Place]
EMBEDDING: Literal["embedding"] = "embedding"
FINAL_NORM: Literal["final norm"] = "final norm"
PROJECTION = "projection"


_Layers = tuple[Annotated[int, Field(ge=0)], ...]


def _ordered(chosen: str | _Layers) -> str | _Layers:
    """Layers in their order."""
    if isinstance(chosen, tuple) and (not chosen or len({*chosen}) < len(chosen)):
        raise ValueError("expected student layers, each of them once")
    return tuple(sorted(chosen)) if isinstance(chosen, tuple) else chosen


# None is `all` in its one form: a record leaves it out.
Pairs = Annotated[
    Literal["all", "last"] | _Layers | None,
    AfterValidator(lambda chosen: None if chosen in (None, "all") else _ordered(chosen)),
    Field(description="Which pairs: all (the default), last, or a list of student layers.", examples=["last", [0, 4]]),
]
LastPairs = Annotated[
    Literal["all", "last"] | _Layers,
    AfterValidator(_ordered),
    Field(description="Which pairs: last (the default), all, or a list of student layers.", examples=["all", [0, 4]]),
]
Projection = Annotated[
    bool | None,
    AfterValidator(lambda wanted: wanted or None),
    Field(
        description="Compare a linear map of the student's states: a matrix for each pair, the identity at first, "
        "trained with the student and dropped at the end.",
        examples=[True],
    ),
]


@dataclass(frozen=True)
class Trained:
    """A tensor that a loss trains: its shape, and what it is at first.

    "identity": of a square matrix; "uniform": from -1/sqrt(n) to 1/sqrt(n) of n columns, as a linear layer of torch;
    a number: everywhere.
    """

    shape: tuple[int, ...]
    initial: Literal["identity", "uniform"] | float

    @property
    def elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class PairShape:
    """What the costs of a loss on pairs follow from: widths of a model, in elements of one token."""

    depth: int  # layers of the student
    hidden: int
    length: int  # tokens of a sequence
    heads: int
    queries: int  # heads x size of a head
    keys: int  # the same of keys, and of values


class PairLoss(Loss):
    """The mean over pairs of student layer i and the teacher's block i."""

    pairs: Pairs = None

    def layers(self, count: int) -> tuple[int, ...]:
        """The layers that are compared of a student of `count` layers. Raises ValueError for one that it has not."""
        if not isinstance(self.pairs, tuple):
            return (count - 1,) if self.pairs == "last" else tuple(range(count))
        if self.pairs[-1] >= count:
            raise ValueError(f"the student has no layer {self.pairs[-1]}: its layers are 0 to {count - 1}")
        return self.pairs

    def sites(self, count: int) -> tuple[Site, ...]:
        """What is read for each pair of a student of `count` layers, from the lowest upwards."""
        return tuple({read: self.place(read, layer, count) for read in self.reads} for layer in self.layers(count))

    def place(self, read: Read, layer: int, count: int) -> Place:
        """Where an argument of the formula is read, for the pair of this layer."""
        if read in ("inputs", "teacher_inputs"):
            return layer - 1 if layer else EMBEDDING
        return layer

    @property
    def in_every_size(self) -> bool:
        """Whether a model that has any one of the student's layers, and what it reads of another model, has a pair."""
        return self.pairs in (None, "all") and "inputs" not in self.reads

    def trained(self, hidden: int) -> dict[str, Trained]:
        """What is trained for each pair, by name. A "projection" is applied to the student's states by the training."""
        return {PROJECTION: Trained((hidden, hidden), "identity")} if getattr(self, PROJECTION, None) else {}

    # Costs. Operations count a multiply-add as two, as those of a model; element-wise ones are not counted.

    def pair_flops(self, shape: PairShape) -> int:
        """Operations of one pair for each token, gradients included."""
        mapped = len({"states", "inputs"}.intersection(self.reads))  # by a projection
        trained = self.trained(shape.hidden).items()
        return sum(
            6 * of.elements * (mapped if name == PROJECTION else 1) for name, of in trained if len(of.shape) == 2
        )

    def kept_bytes(self, shape: PairShape) -> int:
        """Bytes of one pair for each token that stay until the backward pass, beside what the models keep."""
        mapped = len({"states", "inputs"}.intersection(self.reads)) if PROJECTION in self.trained(shape.hidden) else 0
        return 4 * (self.kept + mapped) * shape.hidden

    def teacher_widths(self, shape: PairShape) -> dict[tuple[str, Place], int]:
        """Elements of one token that are held of the teacher, by what is read where."""
        widths = {"queries": shape.queries, "keys": shape.keys, "values": shape.keys, "frame": 0}
        found = {}
        for site in self.sites(shape.depth):
            for read, place in site.items():
                what = read.removeprefix("teacher_")
                if what != read:
                    held = "states" if what == "inputs" else what
                    found[held, place] = widths.get(what, shape.hidden)
        return found

    def block_bytes(self, shape: PairShape, tile: int) -> int:
        """Bytes that are worked on at once, where gradients are taken in the forward pass, block by block.

        `tile`: the numbers of a block that the runners allow (TILE_LOGITS).
        """
        return 0
