"""Measure one model: held-out text or one lm-eval task.

Writes, in the same formats for both:
    results.json   lm-eval's own results format, without what depends on the machine; `counts` of what was cut
    table.csv      measure, metric, filter, value, stderr, higher_is_better, note; a number that is not finite has no
                   value, and its note says why
    items.csv      measure, metric, filter, item, weight, value: per document or window, for every metric that is
                   a weighted mean of its items; two models are compared item by item with it
    samples.jsonl  lm-eval's record of every document (lm-eval tasks only)
"""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedModel

from boomspec.core.errors import BoomspecError
from boomspec.core.json_text import json_text
from boomspec.core.tasks import Evaluate, HeldOut, LmEval
from runners.data.tokens import TOKENIZER, TokenStream
from runners.evaluation import held_out
from runners.evaluation.lm_eval_counts import Counted, members
from runners.modeling.foreign_code import prepare_custom_code, tokenizer_of
from runners.modeling.models import load_frozen, model_folder
from runners.runtime.context import Context
from runners.runtime.device import deterministic_mode, frozen_dtype
from runners.runtime.tables import csv_text


class Item(NamedTuple):  # a line of items.csv
    measure: str
    metric: str
    filter: str
    item: int
    weight: float
    value: float


class MetricRow(NamedTuple):  # a line of table.csv
    measure: str
    metric: str
    filter: str
    value: float | None
    stderr: float | None
    higher_is_better: bool | None
    note: str


def run(context: Context[Evaluate]) -> None:
    folder = model_folder(context.inputs["model"])
    model = load_frozen(folder, dtype=frozen_dtype(context.record.precision), code=context.code_of("model"))
    measure = context.record.measure
    with deterministic_mode(context.record.determinism, context.progress.note):
        if isinstance(measure, HeldOut):
            results, items, counts = *_held_out(context, measure, model), Counted()
        else:
            results, items, counts = _lm_eval(context, measure, model, folder)
    rows = table(results, counts)
    for note in dict.fromkeys(f"{row.measure}: {row.note}" for row in rows if row.note):
        context.progress.note(f"warning: {note}")
    measured = {(row.measure, row.metric, row.filter) for row in rows if row.value is not None}
    text = json_text({**_without_missing(results, rows), "counts": counts.to_json()}, indent=1)
    (context.path / "results.json").write_text(text + "\n", encoding="utf-8")
    items = [item for item in items if item[:3] in measured]
    (context.path / "table.csv").write_text(csv_text(MetricRow._fields, rows), encoding="utf-8")
    (context.path / "items.csv").write_text(csv_text(Item._fields, items), encoding="utf-8")


def _held_out(
    context: Context[Evaluate], measure: HeldOut, model: PreTrainedModel
) -> tuple[dict[str, Any], list[Item]]:
    folder = context.inputs["tokens"].folder
    split = TokenStream(folder, "held_out")
    tokens, text_bytes, prefix = split.tokens, split.bytes, split.prefix
    if measure.max_tokens is not None and measure.max_tokens < len(tokens):
        tokens = tokens[: measure.max_tokens]
        tokenizer = tokenizer_of(folder / TOKENIZER, context.code_of("tokens"))
        text_bytes = held_out.text_bytes(tokens, eos=split.eos, prefix=prefix, tokenizer=tokenizer)
    if text_bytes == 0:
        raise BoomspecError(f"{split.file}: there is no text to measure", hint="hold out more of the data")
    losses = held_out.window_losses(
        model,
        tokens=tokens,
        eos=split.eos,
        prefix=prefix,
        sequence_length=measure.sequence_length,
        batch_size=context.batch_size,
        progress=context.progress,
    )
    name, windows = measure.type, len(losses.tokens)
    original = held_out.windows(len(split), measure.sequence_length, prefix)
    metrics = held_out.metrics(losses, text_bytes=text_bytes)
    counted = {"tokens": int(losses.tokens.sum()), "bytes": text_bytes}
    results = {
        "results": {name: {"name": name, "alias": name, "sample_len": windows, **metrics}},
        "group_subtasks": {},
        "configs": {name: {"task": name, **measure.model_dump(exclude={"type"}), **counted}},
        "versions": {name: Evaluate.version},
        "n-shot": {name: 0},
        "higher_is_better": {name: {"loss": False, "perplexity": False, "bits_per_byte": False}},
        "n-samples": {name: {"original": original, "effective": windows}},
    }
    pairs = zip(losses.tokens, losses.means, strict=True)
    return results, [Item(name, "loss", "none", i, int(n), float(mean)) for i, (n, mean) in enumerate(pairs)]


def _lm_eval(
    context: Context[Evaluate], measure: LmEval, model: PreTrainedModel, folder: Path
) -> tuple[dict[str, Any], list[Item], Counted]:
    from runners.evaluation import lm_eval_runner as harness  # seconds of import that held-out text need not pay

    source = context.inputs["tasks"].source
    assert source is not None
    trusted = prepare_custom_code(folder, "tokenizer", context.code_of("model"))
    lm = harness.Harness(
        model, tokenizer=folder, trusted=trusted, batch_size=context.batch_size, progress=context.progress
    )
    found = harness.run_task(lm, measure=measure, source=source)
    results = _portable(found, source.location.get("folder"))
    samples = results.pop("samples")
    with (context.path / "samples.jsonl").open("w", encoding="utf-8") as file:
        for task, documents in samples.items():
            file.writelines(json_text({"task": task, **sample}) + "\n" for sample in documents)
    options = {"limit": measure.limit, "bootstrap_iters": measure.bootstrap_iters}
    seeds = {f"{kind}_seed": measure.seed for kind in ("random", "numpy", "torch", "fewshot")}
    results["config"] = {"model": "hf", "model_dtype": context.record.precision, **options, **seeds}
    return results, items_of(results, samples), lm.counts


def _portable(value: Any, folder: str | None) -> Any:
    """`value` as plain JSON, without absolute paths and memory addresses."""
    if isinstance(value, dict):
        return {str(key): _portable(item, folder) for key, item in value.items() if key != "config_source"}
    if isinstance(value, (list, tuple)):
        return [_portable(item, folder) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = re.sub(r" at 0x[0-9a-f]+", "", str(value))
    return text if folder is None else text.replace(folder, ".")


def table(results: dict[str, Any], counts: Counted | None = None) -> list[MetricRow]:
    """The numbers of lm-eval style results, one line per task (or group) and metric, in their order."""
    counts = Counted() if counts is None else counts
    lines, consists_of = [], members(results)
    for name, metrics in results["results"].items():
        better = results["higher_is_better"].get(name, {})
        unreal = counts.no_number(consists_of[name])
        for key, value in metrics.items():
            metric, comma, filter_name = key.partition(",")
            if not comma or metric.endswith("_stderr") or not _is_number(value):
                continue
            stderr = metrics.get(f"{metric}_stderr,{filter_name}")
            stderr = float(stderr) if _is_number(stderr) and math.isfinite(stderr) else None
            missing = unreal or (None if math.isfinite(value) else f"it is not finite: {value}")
            notes = [f"no value: {missing}"] if missing else counts.notes(consists_of[name], key)
            line = MetricRow(name, metric, filter_name, float(value), stderr, better.get(metric), "; ".join(notes))
            lines.append(line._replace(value=None, stderr=None) if missing else line)
    return lines


def _without_missing(results: dict[str, Any], lines: list[MetricRow]) -> dict[str, Any]:
    """The results without the numbers that the lines say are missing; `missing` holds why."""
    missing: dict[str, dict[str, str]] = {}
    for line in lines:
        if line.value is None:
            missing.setdefault(line.measure, {})[f"{line.metric},{line.filter}"] = line.note
    shown = dict(results)
    for section in shown.keys() & {"results", "groups"}:
        shown[section] = {
            name: {key: None if key in missing.get(name, ()) else value for key, value in values.items()}
            for name, values in results[section].items()
        }
    return {**shown, "missing": missing}


def items_of(results: dict[str, Any], samples: dict[str, list[dict[str, Any]]]) -> list[Item]:
    """The items of every metric whose value is the mean over the documents; others have no items."""
    items: list[Item] = []
    for name, metric, filter_name, value, *_ in table(results):
        documents = [s for s in samples.get(name, []) if s["filter"] == filter_name]
        values = [float(s[metric]) for s in documents if _is_number(s.get(metric))]
        if value is None or not values or len(values) < len(documents):
            continue
        if math.isclose(sum(values) / len(values), value, abs_tol=1e-12):
            pairs = zip(documents, values, strict=True)
            items += [Item(name, metric, filter_name, document["doc_id"], 1, v) for document, v in pairs]
    return items


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
