"""Layer plans of the five published pairs, both directions, every k, against tables that were derived by hand."""

import re
from pathlib import Path
from typing import Literal

import pytest

from boomspec.core.layers import ORDERS, KeepRule, family_of_sets, patchable, prefixes

TABLES = Path(__file__).parent.parent / "golden" / "reference_plans"
RULES = {
    "qwen3-4b": KeepRule(every=2, first=1, last=2),
    "qwen3-8b": KeepRule(every=2, first=1, last=2),
    "pythia-2.8b": KeepRule(every=2, first=1, last=2),
    "pythia-6.9b": KeepRule(every=2, first=1, last=2),
    "llama-3.2-3b": KeepRule(every=2, first=2, last=1),
}


def spelled_out(plan: str) -> tuple[str, ...]:
    """ "s0-2 t5" is s0 s1 s2 t5."""
    runs = re.findall(r"([st])(\d+)(?:-(\d+))?", plan)
    return tuple(f"{owner}{i}" for owner, a, b in runs for i in range(int(a), int(b or a) + 1))


def table(pair: str) -> tuple[int, tuple[int, ...], dict[str, list[tuple[str, ...]]]]:
    """Layers of the teacher, kept layers, and for each order the plans by k."""
    plans: dict[str, list[tuple[str, ...]]] = {}
    for line in (TABLES / f"{pair}.txt").read_text().splitlines():
        if line.startswith("layers: "):
            layers = int(line.split()[1])
        elif line.startswith("kept: "):
            kept = tuple(map(int, line.split()[1:]))
        elif line in ORDERS:
            plans[line] = found = []
        elif match := re.fullmatch(r"k=(\d+): (.+)", line):
            assert int(match[1]) == len(found)
            found.append(spelled_out(match[2]))
    return layers, kept, plans


@pytest.mark.parametrize("pair", RULES)
def test_the_published_rule_keeps_the_published_layers(pair: str) -> None:
    layers, kept, _ = table(pair)
    assert RULES[pair].kept(layers) == kept


@pytest.mark.parametrize(("order", "end"), [("last_to_first", "last"), ("first_to_last", "first")])
@pytest.mark.parametrize("pair", RULES)
def test_the_plans_of_a_published_pair_are_those_of_the_published_code(
    pair: str, order: str, end: Literal["first", "last"]
) -> None:
    layers, kept, plans = table(pair)
    found = family_of_sets(kept, layers, prefixes(ORDERS[order](patchable(kept, layers))), reference=end)
    assert [tuple(map(str, plan)) for plan in found] == plans[order]


def test_there_is_a_table_for_each_published_pair() -> None:
    assert {path.stem for path in TABLES.glob("*.txt")} == set(RULES)
