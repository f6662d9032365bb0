"""How much of a source a blend takes: a weight, or a budget of tokens.

A plain number is a weight. A budget is written with a unit ("0.5B", "500k"), so that the two cannot be confused.
"""

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainSerializer
from pydantic.json_schema import WithJsonSchema

from boomspec.core.types import Strict, parse_count, parse_number

_UNITS = (("B", 10**9), ("M", 10**6), ("k", 10**3))
_BUDGET = re.compile(r".*[A-Za-z]\s*")
_LARGEST_WEIGHT = 1000.0  # more is a number of tokens that lacks its unit


class BlendPart(Strict):
    """What a blend takes of one source."""

    unit: Literal["weight", "tokens"]
    value: float | int

    def written(self) -> float | str:
        """The part as people write it: 0.7, "500M"."""
        if self.unit == "weight":
            return float(self.value)
        tokens = int(self.value)
        unit, size = next(((unit, size) for unit, size in _UNITS if tokens % size == 0), ("k", 1000))
        whole, rest = divmod(tokens, size)
        return f"{whole}{f'.{rest:03}'.rstrip('0') if rest else ''}{unit}"


def parse_part(value: object) -> BlendPart:
    """Parse 0.7, "30%", "0.5B". Raises ValueError with what is allowed."""
    if isinstance(value, BlendPart):
        return value
    if isinstance(value, str) and _BUDGET.fullmatch(value):
        if (tokens := parse_count(value)) < 1:
            raise ValueError(f"a budget must be positive, not {value}")
        return BlendPart(unit="tokens", value=tokens)
    if (weight := parse_number(value)) <= 0:
        raise ValueError(f"a weight must be positive, not {value}")
    if weight > _LARGEST_WEIGHT:
        raise ValueError(f"a weight is {_LARGEST_WEIGHT:g} at most, not {value}; a budget has a unit, such as 500M")
    return BlendPart(unit="weight", value=weight)


_PART_SCHEMA = {
    "anyOf": [{"type": "number"}, {"type": "string"}],
    "description": "A weight, or a budget of tokens, which has a unit.",
    "examples": [0.7, "30%", "0.5B"],
}
Part = Annotated[
    BlendPart, BeforeValidator(parse_part), PlainSerializer(BlendPart.written), WithJsonSchema(_PART_SCHEMA)
]
Blend = Annotated[dict[str, Part], Field(min_length=1)]


def proportions(weights: Sequence[float]) -> tuple[int, ...]:
    """Weights as the smallest whole numbers in the same proportions: 0.7 and 0.3 are 7 and 3, as 70 and 30 are."""
    exact = [Fraction(repr(float(weight))) for weight in weights]
    scaled = [int(one * math.lcm(*(other.denominator for other in exact))) for one in exact]
    common = math.gcd(*scaled)
    return tuple(one // common for one in scaled)
