"""What every page is made of: its template, its figures, its downloads, and where its numbers come from."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from runners.report.figures import svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_MOST_EMBEDDED = 2_000_000  # characters of one download; a page with more is slow to open


@dataclass(frozen=True)
class Drawing:
    """One figure with its place on the page; `name` is also the name of its file."""

    group: str
    name: str
    title: str
    caption: str
    figure: Figure = field(repr=False)

    @cached_property
    def svg(self) -> str:
        return svg(self.figure, name=self.name)


@dataclass(frozen=True)
class Provenance:
    """`facts`: name and value, for people. `tasks`: {name, kind, id, seconds, state}; `left_out`: how many more.

    `warnings`: what stands at the top of the page, such as foreign code that was run.
    """

    facts: Sequence[tuple[str, str]] = ()
    tasks: Sequence[dict[str, Any]] = ()
    left_out: int = 0
    warnings: Sequence[str] = ()


NO_PROVENANCE = Provenance()


def file_name(kind: str, name: str) -> str:
    """The name of a figure's file, without its ending."""
    return f"{kind}-" + "".join(c if c.isalnum() or c in "-_" else "-" for c in name.lower())


def rendered(template: str, *, downloads: Mapping[str, str], **values: Any) -> str:
    """A self-contained page. `downloads`: texts of the files that it offers, by name; large ones lie beside it."""
    files = {name: base64.b64encode(text.encode()).decode() for name, text in downloads.items()}
    embedded = {name: data if len(data) <= _MOST_EMBEDDED else "" for name, data in files.items()}
    return _TEMPLATES.get_template(template).render(downloads=embedded, **values)
