"""What was measured of a family as a DataFrame, and the sizes that no other one dominates.

A *measure* is "held_out" or an lm-eval task; of its metrics the primary one is that which the report draws. An *axis*
is what sizes are compared by: a cost (`COSTS`: less is better), a measure, "measure metric", or a metric of speed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import pandas as pd

from boomspec.core.errors import BoomspecError, did_you_mean
from boomspec.core.tasks import Cell
from runners.report.deployment import deployment_files
from runners.report.study import FAMILY, SPEED, Row, Study, curve_of, model_of
from runners.report.tables import result_rows

Label = Callable[[Cell], str]  # the name of the size that a number is of

COSTS = ("layers", "parameters", "bytes", "memory")
_TYPES = {"layers": "int64", "parameters": "int64", "bytes": "int64", "value": "float64", "stderr": "float64"}


def results_frame(study: Study, label: Label) -> pd.DataFrame:
    """A row for each number: the columns of the report's results.csv behind the size's name.

    `higher_is_better` is a nullable boolean: of some metrics lm-eval does not say it.
    """
    rows = [{"size": label(row.cell), **fields} for row, fields in zip(study.rows, result_rows(study), strict=True)]
    columns = ["size", *(result_rows(study)[0] if rows else ())]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.astype({**_TYPES, "higher_is_better": "boolean"}) if rows else frame


def deployment_frame(study: Study, what: Literal["deployment", "texts"], label: Label) -> pd.DataFrame:
    """Speed and memory, or texts: the rows of the report's deployment.csv or texts.csv, with the size's name."""
    columns, rows = deployment_files(study).get(what, ((), []))
    cells = {model_of(cell): cell for trial in study.trials for cell in trial.cells}
    named = [{"size": label(cells[row["model"]])} | row for row in rows]
    return pd.DataFrame(named, columns=["size", *(column for column in columns if column != "model")])


class Axis:
    """One thing that sizes are compared by: its values by size, and whether more of it is better."""

    def __init__(self, name: str, values: Mapping[str, float], *, higher: bool) -> None:
        self.name, self.values, self.higher = name, values, higher


def axis_of(study: Study, name: str, label: Label) -> Axis:
    """The axis of a measure's primary metric, of another one ("gsm8k exact_match,strict-match"), or of speed's.

    Of two models of one size that are measured twice, the first counts. Raises BoomspecError for what was not measured,
    and for speeds of several machines.
    """
    speeds = dict.fromkeys(row.metric for row in study.speeds)
    if (metric := name.removeprefix(f"{SPEED} ")) in speeds:
        if len(study.machines) > 1:
            message = f"{metric} was measured in {len(study.machines)} ways, whose numbers are not compared"
            raise BoomspecError(message, hint="; ".join(study.machines))
        rows = [row for row in study.speeds if row.metric == metric and curve_of(row.cell) == FAMILY]
        return Axis(name, _by_size(rows, label), higher=study.higher_is_better(SPEED, metric))
    measure, metric = name, ""
    known = {row.measure: None for row in study.rows}
    if name not in known:  # a measure's own name may have a blank
        measure, metric = next(((m, name.removeprefix(f"{m} ")) for m in known if name.startswith(f"{m} ")), (name, ""))
    if measure not in known:
        if lost := [missing for _, missing in study.missing if missing.measure == measure]:
            raise BoomspecError(f"{measure} has no result yet: {lost[0].reason}", hint="boomspec run, with its spec")
        names = [*COSTS, *known, *speeds]
        hint = did_you_mean(name, names) or f"there are {', '.join(names)}"
        raise BoomspecError(f"nothing was measured that is called '{name}'", hint=hint)
    metrics = list(dict.fromkeys(row.metric for row in study.rows if row.measure == measure))
    metric = metric or study.primary[measure]
    if metric not in metrics:
        raise BoomspecError(f"{measure} has no metric '{metric}'", hint=f"it has {', '.join(metrics)}")
    rows = [row for trial in study.trials for row in trial.series(FAMILY, measure, metric)]
    return Axis(name, _by_size(rows, label), higher=study.higher_is_better(measure, metric))


def _by_size(rows: Sequence[Row], label: Label) -> dict[str, float]:
    return {label(row.cell): row.value for row in reversed(rows)}


def dominators(axes: Sequence[Axis], sizes: Sequence[str]) -> dict[str, str]:
    """By size the first other one that is at least as good on every axis and better on one; "" where none is."""

    def gains(size: str, other: str) -> list[float]:
        return [(axis.values[other] - axis.values[size]) * (1 if axis.higher else -1) for axis in axes]

    def dominates(other: str, size: str) -> bool:
        found = gains(size, other)
        return all(gain >= 0 for gain in found) and any(gain > 0 for gain in found)

    return {size: next((other for other in sizes if dominates(other, size)), "") for size in sizes}


def pareto_frame(axes: Sequence[Axis], labels: Sequence[str], models: Mapping[str, Any], *, every: bool) -> Any:
    """The sizes that have a value on every axis and that no other such size dominates; with `every`, all of those."""
    measured = [label for label in labels if all(label in axis.values for axis in axes)]
    by = dominators(axes, measured)
    rows = [
        {
            "size": label,
            "layers": models[label].layers,
            "parameters": models[label].parameters,
            **{axis.name: axis.values[label] for axis in axes},
            **({"dominated_by": by[label]} if every else {}),
        }
        for label in measured
        if every or not by[label]
    ]
    return pd.DataFrame(rows).sort_values(axes[0].name, ignore_index=True, kind="stable") if rows else pd.DataFrame()
