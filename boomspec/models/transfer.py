"""Which tensors a weight-delta transfer adds up, from headers alone, and how far its two deltas point the same way.

    student = init_from(variant) + (distilled - init_from(base))                                   (arXiv 2608.22854)

The variant (an instruct model, a thinking model) has the base's architecture. Its vocabulary may be longer: rows of
embedding and head that the base has not are the variant's own. The deltas that are compared are `distilled -
init_from(base)`, which is added, and `init_from(variant) - init_from(base)`, which made the variant what it is.
"""

import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import TEACHER, teacher_layers
from boomspec.models.checkpoint import FLOAT_BYTES, TensorEntry
from boomspec.models.facts import ModelFacts
from boomspec.models.fit import tensors_of_plan

Group = Literal["embedding", "attention", "MLP", "norms", "head"]
GROUPS: tuple[Group, ...] = get_args(Group)
LEAST_AGREEMENT = 0.1  # cosine of the layers' matrices of two models, one of which was made from the other
_NORM = re.compile(r"norm|(^|\.)ln_|(^|\.)ln\d", re.I)
_ATTENTION = re.compile(r"att|mixer|(^|\.)(q|k|v|o)_proj\.", re.I)
_SHOWN = 3


class Summed(NamedTuple):
    """One tensor of the student, called `name`, and what it is made of. Of the others `base` may have fewer rows."""

    name: str
    group: Group
    layer: int | None  # of the student; None: outside of the layers, or a vector
    variant: TensorEntry
    base: TensorEntry
    distilled: TensorEntry


def summed_tensors(variant: ModelFacts, base: ModelFacts, distilled: ModelFacts, kept: Sequence[int]) -> list[Summed]:
    """The tensors of the student. Raises BoomspecError as `check_base` and `check_distilled` do."""
    check_base(variant, base)
    check_distilled(base, distilled, kept, tied=variant.tied)
    tied, plan = variant.tied, teacher_layers(kept)
    own = tensors_of_plan({TEACHER: distilled}, teacher_layers(range(distilled.count)), tied=tied)
    of_distilled = {made.name: source for made, source in own if source is not None}
    of_base = {made.name: source for made, source in tensors_of_plan({TEACHER: base}, plan, tied=tied) if source}
    outside = {entry.name: part for part, entries in _outside(variant, tied=tied).items() for entry in entries}
    found = []
    for made, source in tensors_of_plan({TEACHER: variant}, plan, tied=tied):
        assert source is not None
        inside = made.name.removeprefix(variant.prefix).lstrip(".")
        group = outside.get(made.name) or _group(inside)
        layer = None if made.name in outside or len(made.shape) < 2 else int(inside.partition(".")[0])
        found.append(Summed(made.name, group, layer, source, of_base[made.name], of_distilled[made.name]))
    return found


def _outside(model: ModelFacts, *, tied: bool) -> dict[Group, Sequence[TensorEntry]]:
    return {"embedding": model.embedding, "norms": model.norm, "head": model.head if tied else model.untied_head}


def _group(name: str) -> Group:
    """Of a layer's tensor."""
    return "norms" if _NORM.search(name) else "attention" if _ATTENTION.search(name) else "MLP"


def check_base(variant: ModelFacts, base: ModelFacts) -> None:
    """Raise BoomspecError unless `variant` can have been made from `base`: the same architecture, tensor by tensor."""
    if variant.model_type != base.model_type:
        raise BoomspecError(f"it is a {base.model_type} model, and its variant, the teacher, a {variant.model_type}")
    if variant.count != base.count:
        raise BoomspecError(f"it has {base.count} layers, and its variant, the teacher, {variant.count}")
    if variant.tied and not base.tied:
        message = "its head has weights of its own, and that of its variant, the teacher, is its embedding"
        raise BoomspecError(message, hint="a change of such a head has no place in the student")
    rows = (variant.token_embedding.shape[0], base.token_embedding.shape[0])
    mine, its = (_by_name(model, range(model.count), tied=variant.tied) for model in (variant, base))
    vocabulary = {entry.name for entry in (variant.token_embedding, *variant.untied_head)}
    _compare(mine, its, "of the teacher, which should be its variant", vocabulary, rows)


def check_distilled(base: ModelFacts, distilled: ModelFacts, kept: Sequence[int], *, tied: bool) -> None:
    """Raise BoomspecError unless `distilled` can be a student of the base's layers `kept`."""
    if distilled.model_type != base.model_type:
        raise BoomspecError(f"it is a {distilled.model_type} model, and its base is a {base.model_type}")
    if distilled.count != len(kept):
        raise BoomspecError(f"it has {distilled.count} layers, its mapping names {len(kept)}")
    if tied and not distilled.tied:
        raise BoomspecError("its head has weights of its own, and that of the teacher is its embedding")
    own = _by_name(distilled, range(distilled.count), tied=tied)
    _compare(_by_name(base, kept, tied=tied), own, "of its base")


def _by_name(model: ModelFacts, layers: Sequence[int], *, tied: bool) -> dict[str, TensorEntry]:
    return {made.name: made for made, _ in tensors_of_plan({TEACHER: model}, teacher_layers(layers), tied=tied)}


def _compare(
    mine: Mapping[str, TensorEntry],
    its: Mapping[str, TensorEntry],
    whose: str,
    vocabulary: Collection[str] = (),
    rows: tuple[int, int] = (0, 0),
) -> None:
    """Raise BoomspecError unless all tensors are there, of one shape; those of `vocabulary` may have `rows` of each."""
    for entry in (*mine.values(), *its.values()):
        if entry.dtype not in FLOAT_BYTES:
            raise BoomspecError(
                f"'{entry.name}' is stored as {entry.dtype}: only {', '.join(FLOAT_BYTES)} are added up"
            )

    def fits(name: str) -> bool:
        if name not in mine or name not in its:
            return False
        own, other = mine[name].shape, its[name].shape
        longer = name in vocabulary and rows[0] > rows[1] and (own[:1], other[:1]) == ((rows[0],), (rows[1],))
        return own == other or (longer and own[1:] == other[1:])

    wrong = [name for name in dict.fromkeys([*mine, *its]) if not fits(name)]
    if not wrong:
        return

    def shape(tensors: Mapping[str, TensorEntry], name: str) -> str:
        return str(tensors[name].shape) if name in tensors else "missing"

    named = "; ".join(f"'{name}' is {shape(its, name)}, {whose} {shape(mine, name)}" for name in wrong[:_SHOWN])
    more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    shorter = any(name in vocabulary and name in mine and name in its for name in wrong) and rows[0] < rows[1]
    hint = "a variant's vocabulary may be longer than its base's, not shorter" if shorter else None
    raise BoomspecError(f"tensors differ: {named}{more}", hint=hint)


@dataclass
class Sums:
    """Of the weights of a group: sums of products of the two deltas."""

    weights: int = 0
    transferred: float = 0.0  # of squares of distilled - init_from(base)
    variant: float = 0.0  # of squares of init_from(variant) - init_from(base)
    product: float = 0.0

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(*(mine + its for mine, its in zip(vars(self).values(), vars(other).values(), strict=True)))

    def to_json(self) -> dict[str, Any]:
        """Norms are Euclidean ones. cosine: null where a delta is nothing."""
        norms = {"transferred_norm": math.sqrt(self.transferred), "variant_norm": math.sqrt(self.variant)}
        length = math.sqrt(self.transferred) * math.sqrt(self.variant)
        return {"weights": self.weights, "cosine": self.product / length if length else None, **norms}


@dataclass
class Agreement:
    """How far two models agree in the matrices of a layer: the cosine."""

    product: float = 0.0
    one: float = 0.0
    other: float = 0.0

    @property
    def cosine(self) -> float:
        length = math.sqrt(self.one) * math.sqrt(self.other)
        return self.product / length if length else 0.0


@dataclass
class Deltas:
    """All that is measured of a transfer."""

    groups: dict[Group, Sums] = field(default_factory=lambda: {group: Sums() for group in GROUPS})
    # Of the student's layers, by index: with init_from(base), and of the variant's with the base's.
    distilled: dict[int, Agreement] = field(default_factory=lambda: defaultdict(Agreement))
    variant: dict[int, Agreement] = field(default_factory=lambda: defaultdict(Agreement))

    @staticmethod
    def least(agreements: Mapping[int, Agreement]) -> tuple[float, int]:
        """The smallest cosine of a layer, and that layer."""
        return min(((found.cosine, layer) for layer, found in agreements.items()), default=(1.0, 0))

    def check(self) -> None:
        """Raise BoomspecError where one of the models was not made from the base, or is not finite."""
        if not all(math.isfinite(value) for sums in self.groups.values() for value in vars(sums).values()):
            raise BoomspecError("a weight is not finite: nothing can be transferred")
        for what, agreement, place in (
            ("the distilled student is none of", self.distilled, "student.transfer.from, and the layers that it keeps"),
            ("the teacher is no variant of", self.variant, "teacher.model"),
        ):
            cosine, layer = self.least(agreement)
            if cosine < LEAST_AGREEMENT:
                message = f"{what} this base: the cosine of the matrices of the student's layer {layer} is {cosine:.3f}"
                raise BoomspecError(message, hint=f"see student.transfer.base, {place}")

    def rows(self) -> list[dict[str, Any]]:
        """A row for each group that has weights, and one for all."""
        found = [{"group": group, **sums.to_json()} for group, sums in self.groups.items() if sums.weights]
        return [*found, {"group": "all", **sum(self.groups.values(), Sums()).to_json()}]

    def to_json(self) -> dict[str, Any]:
        least = {"distilled_and_base": self.least(self.distilled)[0], "teacher_and_base": self.least(self.variant)[0]}
        return {"groups": self.rows(), "least_cosine_of_a_layer": least}
