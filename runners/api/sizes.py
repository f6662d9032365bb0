"""One size of a family, and all of them as a sequence that prints itself as a table."""

import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, overload

from boomspec.core.layers import LayerPlan
from boomspec.core.sizes import Member, compact_plan, shown_bytes

if TYPE_CHECKING:  # a table of sizes needs no torch
    from transformers import PreTrainedModel

    from runners.api.writing import Prompt

CONTEXT = 4096  # tokens, where a person names no number
_HEADS = ("size", "parameters", "of teacher", "weights", "", "plan")


@dataclass(frozen=True, eq=False, repr=False)
class Size:
    """One model of a family. Nothing of it is loaded before `model` or `generate` is asked for."""

    label: str  # "24 layers"; what tells it from a size of as many layers behind it
    member: Member
    share: float  # of the teacher's parameters
    load: Callable[["Size"], "PreTrainedModel"] = field(kw_only=True)
    cached_bytes: Callable[[LayerPlan, int | None, int], int] = field(kw_only=True)
    write: Callable[..., str] = field(kw_only=True)

    @property
    def layers(self) -> int:
        return self.member.layers

    @property
    def parameters(self) -> int:
        return self.member.parameters

    @property
    def bytes(self) -> int:
        """Of its weights, as they are stored."""
        return self.member.bytes

    @property
    def plan(self) -> LayerPlan:
        """Each of its layers: `plan[3].owner` is "t" for a layer of the teacher or "s" of the student."""
        return self.member.plan

    @property
    def kind(self) -> Literal["student", "interpolated", "teacher"]:
        return "teacher" if self.member.is_teacher else "student" if self.member.is_student else "interpolated"

    def memory(self, context: int | None = None, batch: int = 1) -> int:
        """Bytes of its weights and of keys and values for `batch` sequences of `context` tokens, computed.

        By default of 4,096 tokens, or of as many as the model has positions.

        Raises BoomspecError where the cache cannot be known from the config (latent or linear attention).
        """
        return self.bytes + self.cached_bytes(self.plan, context, batch)

    @cached_property
    def model(self) -> "PreTrainedModel":
        """A transformers model, in evaluation mode; it shares the weights of teacher and student where it can."""
        return self.load(self)

    def generate(self, prompt: "Prompt", **options: Any) -> str:
        """What it writes behind a text, or answers to messages; options as of `Family.generate`."""
        return self.write(self, prompt, **options)

    def __str__(self) -> str:
        return self.label

    def __repr__(self) -> str:
        return f"<{self.label}: {self.parameters:,} parameters, {shown_bytes(self.bytes)}, {compact_plan(self.plan)}>"

    def row(self) -> tuple[str, ...]:
        shown = (f"{self.parameters:,}", f"{self.share:.1%}", shown_bytes(self.bytes), self.kind)
        return (self.label, *shown, compact_plan(self.plan))

    def _repr_html_(self) -> str:
        return html_table([self.row()])


class Sizes(Sequence[Size]):
    """Sizes, smallest first. A table where it is shown, in a terminal and in a notebook."""

    def __init__(self, sizes: Iterable[Size]) -> None:
        self._sizes = tuple(sizes)

    @overload
    def __getitem__(self, at: SupportsIndex) -> Size: ...
    @overload
    def __getitem__(self, at: slice) -> "Sizes": ...
    def __getitem__(self, at: Any) -> Any:
        return Sizes(self._sizes[at]) if isinstance(at, slice) else self._sizes[at]

    def __len__(self) -> int:
        return len(self._sizes)

    def __repr__(self) -> str:
        rows = [_HEADS, *(size.row() for size in self)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        aligned = [
            "  ".join(f"{cell:>{width}}" if 0 < i < 4 else f"{cell:{width}}" for i, (cell, width) in pairs).rstrip()
            for row in rows
            for pairs in [list(enumerate(zip(row, widths, strict=True)))]
        ]
        return "\n".join(aligned)

    def _repr_html_(self) -> str:
        return html_table([size.row() for size in self])


def html_table(rows: Iterable[Sequence[str]]) -> str:
    lines = [f"<tr>{''.join(f'<th>{head}</th>' for head in _HEADS)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"
