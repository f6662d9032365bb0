"""docs/losses.md: its table is made from the classes.

To accept a changed one: BOOMSPEC_ACCEPT=1 pytest tests/boomspec/test_losses_doc.py.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from boomspec.core.losses import LOSSES, Loss
from boomspec.spec.experiments import load_experiments

DOC = Path(__file__).parents[2] / "docs" / "losses.md"
TABLE = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- /table -->)", re.DOTALL)


def table(kinds: dict[str, type[Loss]], *columns: str) -> Iterator[str]:
    yield f"| kind | formula | source | defaults | {' | '.join(columns)} | names elsewhere |"
    yield "|---|---|---|---|---|---|" + "---|" * (len(columns) - 1)
    for kind, loss in kinds.items():
        cells = (
            f"`{kind}`",
            f"`{loss.equation}`",
            loss.source,
            defaults(loss),
            *costs(loss),
            ", ".join(loss.elsewhere),
        )
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def defaults(loss: type[Loss]) -> str:
    values = loss().model_dump(mode="json")
    given = [
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {json.dumps(value)}"
        for name, value in values.items()
        if value is not None
    ]
    optional = [name for name, value in values.items() if value is None]
    return ", ".join(given) + (f" ({', '.join(optional)})" if optional else "")


def costs(loss: type[Loss]) -> tuple[str, ...]:
    if "logits" not in loss.reads:
        return (f"{loss.working}, {loss.kept}",)
    working, kept = loss().tensors()
    return (f"{max(working, kept + 3)}", "autograd") if kept else (f"{working}", "closed form")


def made() -> str:
    of_logits = {kind: loss for kind, loss in LOSSES.items() if "logits" in loss.reads}
    of_states = {kind: loss for kind, loss in LOSSES.items() if kind not in of_logits}
    lines = [
        "**Of logits**",
        "",
        *table(of_logits, "memory", "gradient"),
        "",
        "**Of hidden states and attention**",
        "",
        *table(of_states, "memory: working, kept"),
    ]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_every_loss_says_its_formula_and_where_it_is_from(loss: type[Loss]) -> None:
    assert loss.equation
    assert loss.source
    assert loss.__doc__


def test_the_table_is_that_of_the_classes() -> None:
    text = DOC.read_text()
    if os.environ.get("BOOMSPEC_ACCEPT"):
        text = TABLE.sub(lambda _: made(), text)
        DOC.write_text(text)
    (found,) = TABLE.findall(text)
    assert found == made()


def test_no_two_losses_are_called_the_same_elsewhere() -> None:
    names = [name for loss in LOSSES.values() for name in loss.elsewhere]
    assert sorted({*names}) == sorted(names)
    assert not {*names} & LOSSES.keys()
    assert all(re.fullmatch("[a-z0-9_]+", name) for name in names)


def test_the_sweep_of_all_losses_has_each_of_them() -> None:
    experiments = load_experiments(DOC.parents[1] / "specs" / "losses.yaml")
    used = [tuple(one.spec.distill.losses.terms()) for one in experiments if one.spec.distill is not None]
    assert {term for terms in used for term in terms} == LOSSES.keys()
    alone = [terms for terms in used[1:] if len(terms) == 2]
    assert all(terms[0] == "cross_entropy" for terms in alone)
    assert {terms[1] for terms in alone} == LOSSES.keys() - {"cross_entropy"}
