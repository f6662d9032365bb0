"""How large each term of a loss was at the first step of its training, or its phase: without and with its weight."""

from collections.abc import Iterator, Mapping
from typing import Any

from boomspec.core.losses import LOSSES
from boomspec.core.losses.weight import COLUMN

TERM = ("training", "term", "unit", "value", "weight", "weighted", "share")


def first_step(params: Mapping[str, Any]) -> int:
    """The first step of a training, from the parameters of its task; its metrics have those of earlier phases, too."""
    return int((params.get("phase") or {}).get("first", 0))


def terms_at_start(training: str, params: Mapping[str, Any], row: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    """The terms of a training, from the parameters of its task and the row of its first step, as `TERM`.

    share: of the sum of all weighted terms, which is the loss.
    """
    losses = params.get("losses", {})
    terms = {kind: value for kind, value in row.items() if kind in LOSSES}
    # A weight that changes is in the row; a pretraining has one term and no weight.
    weights = {k: row.get(f"{COLUMN}{k}", losses.get(k, {}).get("weight", 1.0)) for k in terms}
    if row.get("on_policy"):  # the student wrote the batch: terms that do not read the teacher are left out there
        weights = {k: weights[k] if any(of.startswith("teacher_") for of in LOSSES[k].reads) else 0.0 for k in terms}
    total = sum(weights[kind] * abs(value) for kind, value in terms.items())
    for kind, value in terms.items():
        weighted = weights[kind] * value
        values = (
            training,
            kind,
            LOSSES[kind].unit,
            value,
            weights[kind],
            weighted,
            abs(weighted) / total if total else 0,
        )
        yield dict(zip(TERM, values, strict=True))
