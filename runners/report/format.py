"""Numbers as people write them."""

from __future__ import annotations


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
    if power == 0:
        return f"{value:.0f}{units[0]}"
    decimals = max(0, 2 - len(str(int(value))) + 1)
    return f"{value:.{decimals}f}{units[power]}"
