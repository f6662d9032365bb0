"""`boomspec explain`: what a field of the spec means, what it takes, its default, and the fields inside of it.

It reads the JSON Schema of the spec language, from which editors explain fields, too.
"""

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click
from click.shell_completion import CompletionItem

from boomspec.commands.options import json_option
from boomspec.core.errors import BoomspecError, did_you_mean
from boomspec.core.json_text import json_text
from boomspec.spec.schema import Schema, described, inside, mappings, members, schema_of
from boomspec.spec.spec_file import Spec
from boomspec.spec.yaml_writer import inline

_WIDTH = 96  # of text that no narrower terminal shows
_NAMED = "NAME"  # stands for the names that a spec gives, as those of `data.sources`
_MISSING = object()  # where there is no default: the field has to be given


@dataclass(frozen=True)
class Explained:
    """A field, by its dotted path; `inner` are the fields of the mapping that it may be, with their first sentences."""

    path: str
    says: str
    takes: str
    default: object
    examples: tuple[Any, ...]
    inner: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"field": self.path, "description": self.says, "takes": self.takes}
        if self.default is not _MISSING:
            found["default"] = self.default
        return found | {"required": self.default is _MISSING, "examples": list(self.examples), "fields": self.inner}


def _completed(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    above, _, start = incomplete.rpartition(".")
    try:
        names = explain(above.split(".") if above else []).inner
    except BoomspecError:
        return []
    return [CompletionItem(f"{above}.{name}" if above else name) for name in names if name.startswith(start)]


@click.command("explain")
@click.argument("field", default="", shell_complete=_completed, metavar="[FIELD]")
@json_option
def command(field: str, as_json: bool) -> None:
    """Explain a field of the spec, by its dotted path; without one, the sections.

    \b
    Examples:
      boomspec explain distill.losses.kl
      boomspec explain interpolate.sizes
    """
    found = explain(field.split(".") if field else [])
    if as_json:
        click.echo(json_text(found.to_json(), indent=2))
        return
    width = _width()
    click.secho(found.path or "a spec", bold=True)
    for line in found.says.splitlines():
        click.echo(textwrap.fill(line, width, initial_indent="  ", subsequent_indent="  "))
    if found.path:
        click.echo(textwrap.fill(f"takes:    {found.takes}", width, initial_indent="  ", subsequent_indent=" " * 12))
        click.echo(
            "  default:  none: it has to be given"
            if found.default is _MISSING
            else f"  default:  {inline(found.default)}"
        )
    if found.examples:
        click.echo(f"  examples: {inline(found.examples[0])}")
        for example in found.examples[1:]:
            click.echo(f"            {inline(example)}")
    column = max(map(len, found.inner), default=0)
    for name, says in found.inner.items():
        indent = " " * (column + 4)
        click.echo(textwrap.fill(f"  {name:{column}}  {says}", width, subsequent_indent=indent))


def _width() -> int:
    has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    return min(_WIDTH, shutil.get_terminal_size().columns) if has_width else _WIDTH


def explain(path: Sequence[str]) -> Explained:
    """The field at a path of names. Raises BoomspecError, which names those that there are, for one that is not."""
    field: Schema = schema_of(Spec)
    choices, required, above = [field], True, ""
    for name in path:
        found = next((one for one in mappings(choices) if name in one["properties"]), None)
        named = _named(choices)
        if found is None and not named:
            raise _unknown(name, choices, above)
        if found is not None:
            field, required = found["properties"][name], name in found.get("required", ())
        else:
            field, required = named[0] | {"description": f"One of {above}, which a spec names as it likes."}, False
        choices = members(field)
        # A list is explained by what may be in it.
        choices += [inner for choice in choices if choice.get("type") == "array" for inner in inside([choice], 0)]
        above = f"{above}.{name}" if above else name
    inner = {name: _first(field) for one in mappings(choices) for name, field in one["properties"].items()}
    if _named(choices):
        inner[_NAMED] = f"One of them, by a name of your own: boomspec explain {above}.{_NAMED}"
    says = field.get("description") or next((one["description"] for one in choices if one.get("description")), "")
    takes = described([one for one in members(field) if one.get("type") != "null"])
    default = _MISSING if required else field.get("default")
    return Explained(above, says.strip(), takes, default, tuple(field.get("examples") or ()), inner)


def _named(choices: list[Schema]) -> list[Schema]:
    """What a mapping holds behind names that the spec gives, where that has fields of its own."""
    return mappings([inner for one in choices if "properties" not in one for inner in inside([one], _NAMED)])


def _first(field: Schema) -> str:
    """The first sentence about a field."""
    says = field.get("description") or next(
        (one["description"] for one in members(field) if one.get("description")), ""
    )
    return says.strip().partition("\n")[0].partition(". ")[0].rstrip(".")


def _unknown(name: str, choices: list[Schema], above: str) -> BoomspecError:
    names = [key for one in mappings(choices) for key in one["properties"]]
    place = f"'{above}' has no field '{name}'" if above else f"a spec has no section '{name}'"
    if not names:
        return BoomspecError(f"{place}: it has none", hint=f"boomspec explain {above}")
    return BoomspecError(place, hint=did_you_mean(name, names) or f"fields: {', '.join(names)}")
