"""Footnotes of a table: what has to be known of some of its numbers, each kind once, behind a letter.

A note counts ("2 of 40 contexts were cut to the model's positions"); notes that differ in their numbers only are of one
kind, and its footnote says from which to which number they go.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_COUNTED = re.compile(r"(\d+) of (\d+) (.+)")


class Marks:
    """The kinds of notes of one table, in the order in which they are met."""

    def __init__(self) -> None:
        self._kinds: dict[str, list[tuple[int, int]]] = {}

    def of(self, notes: Iterable[str]) -> str:
        """The letters for the notes of one number; each note may be several, with "; " between them."""
        letters = set()
        for note in (part for text in notes for part in text.split("; ") if part):
            match = _COUNTED.fullmatch(note)
            kind = match[3] if match else note
            self._kinds.setdefault(kind, []).extend([(int(match[1]), int(match[2]))] if match else [])
            letters.add(_letter(list(self._kinds).index(kind)))
        return "".join(sorted(letters))

    @property
    def footnotes(self) -> list[dict[str, str]]:
        """{mark, text} of every kind."""
        return [{"mark": _letter(i), "text": _text(*kind)} for i, kind in enumerate(self._kinds.items())]


def _letter(number: int) -> str:
    return chr(ord("a") + number % 26)


def _text(kind: str, counts: list[tuple[int, int]]) -> str:
    if not counts:
        return kind
    few, many, of = min(n for n, _ in counts), max(n for n, _ in counts), max(whole for _, whole in counts)
    return f"{few} of {of} {kind}" if few == many else f"{few} to {many} of {of} {kind}"
