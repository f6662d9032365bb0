"""JSON without NaN and Infinity, which are no JSON and which few programs read."""

import json
import math
from collections.abc import Callable
from typing import Any, TypeVar

from boomspec.core.errors import BoomspecError

T = TypeVar("T")


def json_text(value: Any, *, indent: int | None = None, ensure_ascii: bool = True) -> str:
    """A value as JSON. A float that is not finite becomes null; what writes one notes beside it why it is missing."""
    try:
        return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)
    except ValueError:
        finite = mapped(value, float, lambda number: number if math.isfinite(number) else None)
        return json.dumps(finite, indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)


def computed_json(value: Any, what: str) -> str:
    """The numbers that a task has computed as JSON. Raises BoomspecError where one of them is not finite."""
    if (place := _not_finite(value)) is not None:
        message = f"{what}: {place} is not finite, so nothing can be made of it"
        raise BoomspecError(message, hint="the models give numbers that are none: try precision fp32, or look at them")
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def transformers_floats(value: Any) -> Any:
    """A model's config as transformers writes it: a float that is not finite is {"__float__": "Infinity"}."""
    names = {math.inf: "Infinity", -math.inf: "-Infinity"}
    return mapped(value, float, lambda n: n if math.isfinite(n) else {"__float__": names.get(n, "NaN")})


def mapped(value: Any, kind: type[T], change: Callable[[T], Any]) -> Any:
    """The same structure of mappings and lists with everything of one type in it changed."""
    if isinstance(value, dict):
        return {key: mapped(item, kind, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [mapped(item, kind, change) for item in value]
    return change(value) if isinstance(value, kind) else value


def _not_finite(value: Any, place: str = "") -> str | None:
    """The path to the first float that is not finite: "scores[3]"."""
    if isinstance(value, dict):
        inner = ((item, f"{place}.{key}" if place else str(key)) for key, item in value.items())
    elif isinstance(value, list | tuple):
        inner = ((item, f"{place}[{i}]") for i, item in enumerate(value))
    else:
        return place if isinstance(value, float) and not math.isfinite(value) else None
    return next((found for item, at in inner if (found := _not_finite(item, at)) is not None), None)
