"""Numbers as people write them, and footnotes to them."""

import re
from collections.abc import Iterable

_COUNTED = re.compile(r"(\d+) of (\d+) (.+)")


def number(value: float) -> str:
    """Three decimals around one, fewer for large values, one digit for tiny ones."""
    size = abs(value)
    if size == 0 or 5e-4 <= size < 100:
        return f"{value:.3f}"
    return f"{value:.1f}" if 100 <= size < 1e5 else f"{value:.1g}"


def signed(value: float) -> str:
    """A difference, always with its sign."""
    sign = "+" if value > 0 else "\N{MINUS SIGN}" if value < 0 else ""
    return f"{sign}{number(abs(value))}"


def count(value: float) -> str:
    """Three digits with K, M, B or T: 421888 is "422K"."""
    return _scaled(value, 1000, ("", "K", "M", "B", "T"))


def size(value: float) -> str:
    """Bytes with a binary unit: 6442450944 is "6.00 GiB"."""
    return _scaled(value, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def _scaled(value: float, base: int, units: tuple[str, ...]) -> str:
    power = 0
    while value >= base and power < len(units) - 1:
        value, power = value / base, power + 1
    decimals = max(0, 3 - len(str(int(value)))) if power else 0
    return f"{value:.{decimals}f}{units[power]}"


class Footnotes:
    """The notes to the numbers of one table, each kind once, as a letter.

    A note may count ("2 of 40 contexts were cut to the model's positions"); notes that differ in their numbers only are
    of one kind, and its footnote gives the smallest and the largest number.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, list[tuple[int, int]]] = {}

    def letters(self, notes: Iterable[str]) -> str:
        """The letters for the notes of one number; each note may be several, separated by "; "."""
        letters = set()
        for note in (part for text in notes for part in text.split("; ") if part):
            match = _COUNTED.fullmatch(note)
            kind = match[3] if match else note
            self._kinds.setdefault(kind, []).extend([(int(match[1]), int(match[2]))] if match else [])
            letters.add(_letter(list(self._kinds).index(kind)))
        return "".join(sorted(letters))

    @property
    def lines(self) -> list[dict[str, str]]:
        """{mark, text} of every kind."""
        lines = []
        for place, (kind, counts) in enumerate(self._kinds.items()):
            if counts:
                few, many, of = min(n for n, _ in counts), max(n for n, _ in counts), max(whole for _, whole in counts)
                kind = f"{few if few == many else f'{few} to {many}'} of {of} {kind}"
            lines.append({"mark": _letter(place), "text": kind})
        return lines


def _letter(number: int) -> str:
    return chr(ord("a") + number % 26)
