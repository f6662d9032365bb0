"""Format FLOPs, bytes and durations for people."""

from boomspec.core.graph import Cost
from boomspec.core.sizes import shown_bytes

NOTHING, UNKNOWN = "-", "?"
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def shown_flops(count: float) -> str:
    """5.36T: operations in three digits."""
    for limit, suffix in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit * 0.9995:
            return f"{count / limit:.3g}{suffix}"
    return f"{count:.0f}"


def with_unit(flops: float) -> str:
    """5.36 TFLOP."""
    short = shown_flops(flops)
    return f"{short[:-1]} {short[-1]}FLOP" if short[-1].isalpha() else f"{short} FLOP"


def shown_count(count: float) -> str:
    """2.1B: tokens in three digits."""
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if count >= limit * 0.9995:
            return f"{count / (1e3 if suffix == 'k' else limit):.3g}{suffix}"
    return f"{count:.0f}"


def shown_seconds(seconds: float) -> str:
    """40 s, 12 min, 3.4 h, 5.1 days: an estimate deserves no more digits."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "< 1 s"
    if seconds < 90 * _MINUTE:
        return f"{seconds / _MINUTE:.0f} min"
    if seconds < 2 * _DAY:
        return f"{seconds / _HOUR:.1f} h"
    return f"{seconds / _DAY:.1f} days"


def shown_cost(cost: Cost | None) -> tuple[str, str, str]:
    """Operations, memory and disk of a task."""
    if cost is None:
        return UNKNOWN, NOTHING, NOTHING
    flops = shown_flops(cost.flops) if cost.flops else UNKNOWN if cost.unknown else NOTHING
    return flops, shown_bytes(cost.peak) if cost.memory else NOTHING, shown_bytes(cost.disk) if cost.disk else NOTHING
