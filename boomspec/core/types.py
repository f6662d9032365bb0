"""Types of the fields of a spec: quantities as people write them, such as "4.2M", "3e-4", "1%", "6GiB", "24 layers".

Each parser takes an int, a float or a text, and returns a plain number or a small frozen value, or raises ValueError
with what is allowed. pydantic turns that into a problem with a place in the file.

Modules that define models do not import `annotations` from `__future__`: pydantic would have to compile the
text of every annotation again, which made the start of the command line half as slow again (measured).
"""

import ast
import inspect
import math
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from itertools import pairwise
from pkgutil import iter_modules
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, TypeAdapter
from pydantic.annotated_handlers import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import WithJsonSchema
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_before_validator_function, no_info_plain_validator_function

_DECIMAL = {"": 1, "K": 10**3, "k": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
_BYTES = {
    **{unit: 1000**i for i, unit in enumerate(["B", "KB", "MB", "GB", "TB"])},
    "kB": 1000,
    **{unit: 1024**i for i, unit in enumerate(["B", "KiB", "MiB", "GiB", "TiB"])},
}
_NUMBER = r"([0-9][0-9_]*(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?)"
_QUANTITY = re.compile(rf"\s*([+-]?){_NUMBER}\s*([A-Za-z%]*)\s*")
T = TypeVar("T")


class Strict(BaseModel):
    """A frozen model of a closed world: unknown keys are errors, types are not coerced across kinds."""

    # Building validators at first use keeps the start of the command line short: most models are nested in one.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        found = handler(schema)  # describes fields by `about`; here the text below a field comes in its place
        properties = handler.resolve_ref_schema(found).get("properties", {})
        for base in (base for base in cls.__mro__[::-1] if issubclass(base, Strict)):
            for name, text in _texts_below(base.__module__).get(base.__name__, {}).items():
                properties[name]["description"] = text
        return found


@cache
def _texts_below(module: str) -> dict[str, dict[str, str]]:
    """By class and field. pydantic's `use_attribute_docstrings` reads them at every start, for 0.1 s (measured)."""
    found: dict[str, dict[str, str]] = {}
    with suppress(OSError, TypeError):  # the source is not at hand
        nodes = ast.walk(ast.parse(inspect.getsource(sys.modules[module])))
        for node in (node for node in nodes if isinstance(node, ast.ClassDef)):
            for pair in pairwise(node.body):
                match pair:
                    case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                        found.setdefault(node.name, {})[name] = " ".join(text.split())
    return found


def kinds_in(package: str, base: type[T]) -> dict[str, type[T]]:
    """The subclasses of `base` in the modules of a package that have a `kind` of their own, by that, in its order."""
    modules = [import_module(f"{package}.{found.name}") for found in iter_modules(sys.modules[package].__path__)]
    classes = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    found = {vars(value)["kind"]: value for value in classes if issubclass(value, base) and "kind" in vars(value)}
    return dict(sorted(found.items()))


def about(description: str, examples: list[Any] | None = None, **options: Any) -> Any:
    """pydantic's `Field` with a description, examples, and options such as `default` and the limits `ge`, `lt`."""
    return Field(description=description, examples=examples, **options)


def _split(value: object, expected: str) -> tuple[float, str]:
    """Split a quantity into number and unit. bool is refused: it is an int only to Python."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"expected {expected}")
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if isinstance(value, str) and match is None:
        raise ValueError(f"expected {expected}, not '{value}'")
    number, unit = (float(match[1] + match[2].replace("_", "")), match[3]) if match else (float(value), "")
    if not math.isfinite(number):
        raise ValueError(f"expected {expected}, not {value}")
    return number, unit


def _scaled(value: object, units: dict[str, int], expected: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value  # exact beyond 2**53
    number, unit = _split(value, expected)
    if unit not in units:
        raise ValueError(f"expected {expected}, not '{value}'")
    scaled = number * units[unit]
    if not math.isfinite(scaled):
        raise ValueError(f"expected {expected}: '{value}' is too large")
    if abs(scaled - round(scaled)) > 1e-6 * max(1.0, abs(scaled)):
        raise ValueError(f"expected {expected}: '{value}' is not a whole number")
    return round(scaled)


def parse_count(value: object) -> int:
    return _scaled(value, _DECIMAL, "a count such as 1000, 50k, 4.2M or 2.1B")


def parse_number(value: object) -> float:  # YAML 1.1 reads 3e-4 as a string
    expected = "a number such as 0.1, 3e-4 or 1%"
    number, unit = _split(value, expected)
    if unit not in ("", "%"):
        raise ValueError(f"expected {expected}, not '{value}'")
    return number / 100 if unit == "%" else number


class Share(Strict):
    """Either a share of a whole (fraction) or an absolute count."""

    unit: Literal["fraction", "count"]
    value: float

    def of(self, whole: int) -> int:
        """The count that this share is of `whole`, rounded to the nearest."""
        return round(self.value * whole) if self.unit == "fraction" else int(self.value)

    def written(self) -> str | int:
        """The share as people write it: "1%", 100."""
        return int(self.value) if self.unit == "count" else f"{100 * self.value:.12g}%"


def _share(value: object) -> Share:
    if isinstance(value, Share):
        return value
    expected = "a percentage such as 1% or a count such as 100"
    number, unit = _split(value, expected)
    if number < 0 or (unit == "%" and number > 100):
        raise ValueError(f"expected {expected}, not {value}")
    if unit == "%":
        return Share(unit="fraction", value=number / 100)
    return Share(unit="count", value=_scaled(value, _DECIMAL, expected))


class SizeRequest(Strict):
    """A model size in one of four units, as a spec gives it."""

    unit: Literal["parameters", "fraction", "layers", "bytes"]
    value: float
    text: str


class Sizes(Strict):
    """What one text asks for: one size, or all sizes of a range."""

    sizes: tuple[SizeRequest, ...]
    text: str


_SIZE = "a size such as 2.5B (parameters), 80% (of the teacher's parameters), '24 layers' or 6GiB (weights)"
_RANGES = "2.5B..3.5B step 0.25B, 60%..90% step 5% or 20..36 layers step 4"
_RANGE_PARTS = re.compile(r"(.+?)\.\.(.+?)(?:\s+step\s+(.+))?")
_LONGEST_RANGE = 1000
# "B" alone means billion: sizes are counted in parameters.
_SIZE_UNITS: dict[Literal["layers", "parameters", "bytes"], dict[str, int]] = {
    "layers": {"layers": 1, "layer": 1}, "parameters": _DECIMAL, "bytes": _BYTES
}  # fmt: skip


def parse_size(value: object) -> SizeRequest:
    """Parse "2.5B", "80%", "24 layers", "6GiB"."""
    if isinstance(value, SizeRequest):
        return value
    number, unit = _split(value, _SIZE)
    if number <= 0:
        raise ValueError(f"expected {_SIZE}, not {value}")
    if not math.isfinite(number * max(_BYTES.values())):
        raise ValueError(f"expected {_SIZE}: {value} is too large")
    if unit in _SIZE_UNITS["layers"] and number != int(number):
        raise ValueError(f"'{value}' is not a whole number of layers")
    if unit == "%":
        return SizeRequest(unit="fraction", value=number / 100, text=str(value))
    for counted, factors in _SIZE_UNITS.items():
        if unit in factors:
            return SizeRequest(unit=counted, value=number * factors[unit], text=str(value))
    raise ValueError(f"expected {_SIZE}, not '{value}'")


def parse_sizes(value: object) -> Sizes:
    """Parse a size, or a range "2.5B..3.5B step 0.25B": low, low + step, ... as far as high, which may be reached."""
    if isinstance(value, Sizes):
        return value
    parts = _RANGE_PARTS.fullmatch(value) if isinstance(value, str) else None
    if parts is None:
        size = parse_size(value)
        return Sizes(sizes=(size,), text=size.text)
    try:
        return Sizes(sizes=_range(*parts.groups()), text=str(value))
    except ValueError as error:
        raise ValueError(f"'{value}' is no range such as {_RANGES}: {error}") from error


def _range(low_text: str, high_text: str, step_text: str | None) -> tuple[SizeRequest, ...]:
    if step_text is None:
        raise ValueError("it has no step")
    # A bound or a step without a unit has the upper bound's: "20..36 layers step 4".
    number, unit = _split(high_text, "a size")
    texts = [text if _split(text, "a size")[1] else f"{text} {unit}" for text in (low_text, high_text, step_text)]
    low, high, step = map(parse_size, texts)
    if not low.unit == high.unit == step.unit:
        raise ValueError(f"it mixes units ({low.unit}, {high.unit}, {step.unit})")
    if low.value > high.value:
        raise ValueError(f"{low.text} is above {high.text}")
    steps = (high.value - low.value) / step.value
    if steps >= _LONGEST_RANGE:
        raise ValueError(f"it has more than {_LONGEST_RANGE} sizes")
    values = [low.value + i * step.value for i in range(math.floor(steps + 1e-9) + 1)]
    scale, gap = high.value / number, " " if high.unit == "layers" else ""
    return tuple(SizeRequest(unit=high.unit, value=value, text=f"{value / scale:.10g}{gap}{unit}") for value in values)


class AlsoText:
    """Annotation: a text is allowed as well, one of `allowed` where some are given; `full` is its full form."""

    def __init__(self, full: Callable[[str], Any], *allowed: str) -> None:
        self.full = full
        self.schema = {"enum": list(allowed)} if allowed else {"type": "string"}

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        read = handler(source)
        return no_info_before_validator_function(lambda v: self.full(v) if isinstance(v, str) else v, read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [self.schema, handler(schema)]}


class WhenUsed:
    """Annotation of `model | None`: the model's validator is built once one is there, which spares many at a start."""

    def __init__(self, model: type[BaseModel]) -> None:
        self.model = model

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def read(value: Any) -> Any:
            return value if value is None or isinstance(value, self.model) else self.model.model_validate(value)

        return no_info_plain_validator_function(read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        optional: Any = self.model | None
        return handler(TypeAdapter(optional).core_schema)


def _quantity(*units: str) -> str:
    """The pattern, of ECMA 262, of a quantity in one of these units."""
    return rf"^\s*[+-]?{_NUMBER}\s*({'|'.join(units)})\s*$"


def _schema(description: str, *examples: object, pattern: str) -> WithJsonSchema:
    choices = [{"type": "number"}, {"type": "string", "pattern": pattern}]
    return WithJsonSchema({"anyOf": choices, "description": description, "examples": list(examples)})


Count = Annotated[
    int,
    BeforeValidator(parse_count),
    _schema("A count.", 1000, "50k", "4.2M", "2.1B", pattern=_quantity(*_DECIMAL)),
]
Bytes = Annotated[
    int,
    BeforeValidator(lambda value: _scaled(value, _BYTES | {"": 1}, "a size in bytes such as 500MB or 6GiB")),
    _schema("A size in bytes.", "500MB", "6GiB", pattern=_quantity("", *_BYTES)),
]
Number = Annotated[
    float, BeforeValidator(parse_number), _schema("A number.", 0.1, "3e-4", "1%", pattern=_quantity("", "%"))
]
ShareField = Annotated[
    Share,
    BeforeValidator(_share),
    PlainSerializer(Share.written),
    _schema("A percentage or a count.", "1%", 100, pattern=_quantity("%", *_DECIMAL)),
]
_SIZE_EXAMPLES = ("2.5B", "80%", "2.5B..3.5B step 0.25B", "24 layers", "6GiB")
# A range is looked at no further: no other text has a digit, "all" has none.
_SIZES_SCHEMA = _schema("A model size or range.", *_SIZE_EXAMPLES, pattern="[0-9]")
SizesField = Annotated[Sizes, BeforeValidator(parse_sizes), PlainSerializer(lambda sizes: sizes.text), _SIZES_SCHEMA]
