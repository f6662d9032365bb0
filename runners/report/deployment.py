"""What sizes are like where they are used, as tables: speed, memory, and the texts that they write.

Speeds are rows of a `Study` beside those of quality (`Study.speeds`), texts are `Study.texts`.
"""

from collections.abc import Sequence
from typing import Any

from runners.report.study import SERIES, UNITS, Row, Study, Trial, model_of

Table = dict[str, Any]
_MODEL = ("model", "series", "layers", "parameters", "bytes")
_SPEED = (*_MODEL, "metric", "value", "unit", "higher_is_better", "measured_on", "note")
_DURING = ("training", "step", "model", "loss")
_TEXT = (*_MODEL, "chat", "prompt", "sample", "text", "tokens", "ended")


def deployment_files(study: Study) -> dict[str, tuple[Sequence[str], list[Table]]]:
    """Columns and rows of "deployment", "texts" and "during"; what nobody asked for is left out."""

    def of(trial: Trial) -> Table:
        return {"experiment": trial.label, "axes": trial.axes} if study.axes else {}

    speeds = [of(trial) | _of_model(row) | _speed(row) for trial in study.trials for row in trial.speeds]
    texts = [
        of(trial) | _of_model(one) | {"chat": one.chat} | text._asdict()
        for trial in study.trials
        for one in trial.written
        for text in one.texts
    ]
    during = [
        {"training": training.label, "step": row["step"], "model": model, "loss": loss}
        for training in study.trainings
        for row in training.held_out
        for model, loss in row.items()
        if model != "step"
    ]
    found = {"deployment": (_SPEED, speeds), "texts": (_TEXT, texts), "during": (_DURING, during)}
    return {name: (columns, rows) for name, (columns, rows) in found.items() if rows}


def _of_model(of: Any) -> Table:
    cell = of.cell
    size = {name: getattr(cell, name) for name in ("series", "layers", "parameters", "bytes")}
    return {"model": model_of(cell), **size}


def _speed(row: Row) -> Table:
    unit = UNITS.get(row.metric, "")
    number = {"metric": row.metric, "value": row.value, "unit": unit, "higher_is_better": row.higher_is_better}
    return {**number, "measured_on": row.yardstick, "note": row.note}


def speed_table(trial: Trial) -> Table:
    """Lines: models by size. Columns: metrics."""
    metrics = list(dict.fromkeys(row.metric for row in trial.speeds))
    models: dict[str, dict[str, Row]] = {}
    for row in sorted(trial.speeds, key=lambda row: (row.cell.layers, list(SERIES).index(row.cell.series))):
        models.setdefault(model_of(row.cell), {})[row.metric] = row
    lines = [{"model": model, "cells": [rows.get(metric) for metric in metrics]} for model, rows in models.items()]
    return {"metrics": metrics, "lines": lines, "measured_on": list(dict.fromkeys(r.yardstick for r in trial.speeds))}


def texts_side_by_side(trial: Trial) -> list[Table]:
    """By prompt and sample, in their order: the models by size with what each wrote."""
    written = sorted(trial.written, key=lambda one: (one.cell.layers, list(SERIES).index(one.cell.series)))
    found: dict[tuple[str, int], list[Table]] = {}
    for one in written:
        for text in one.texts:
            line = {"model": one.model, "size": one.size, "chat": one.chat, "text": text}
            found.setdefault((text.prompt, text.sample), []).append(line)
    return [{"prompt": prompt, "sample": sample, "lines": lines} for (prompt, sample), lines in found.items()]
