"""Numbers of documents that have several texts each: means over the texts, with standard errors over the documents.

lm-eval measures once with the first text of every document, once with the second, and so on; each time is as lm-eval
measures, filters and all. Of k such results

    metric mean@k    the mean of the k values
    metric pass@k    the share of documents with a text that is right, where every text is right or wrong (0 or 1)

The texts of a document go together, so the standard error is that of the documents' means: their standard deviation
(n - 1) over the root of their number. A metric that is no mean over documents (F1, BLEU) gets none.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval.evaluator_utils import EvalAcc, aggregate_groups

from runners.evaluation.lm_eval_counts import Counted
from runners.evaluation.results import is_number

UNFINISHED = "unfinished_thoughts"
_NONE = "N/A"  # lm-eval's standard error of what has none


def mean_of_samples(found: Sequence[dict[str, Any]], loaded: Mapping[str, Any], *, errors: bool) -> dict[str, Any]:
    """lm-eval's results of each text, as one: metrics are called "metric mean@k". `errors`: with standard errors."""
    count, first = len(found), found[0]
    metrics: dict[str, dict[str, Any]] = {}
    passed: dict[str, dict[str, Any]] = {}
    samples: dict[str, list[dict[str, Any]]] = {}
    for name in first["samples"]:
        runs = [one["results"][name] for one in found]
        documents = [one["samples"][name] for one in found]
        metrics[name], passed[name] = dict(runs[0]), {}
        for key in [key for key, value in runs[0].items() if is_number(value) and "," in key]:
            metric, _, filter_name = key.partition(",")
            values = [run[key] for run in runs]
            metrics[name][key] = float(np.mean(values))
            values_DK = _values(documents, metric, filter_name)
            whole = values_DK is not None and np.allclose(values_DK.mean(0), values, atol=1e-12)
            metrics[name][f"{metric}_stderr,{filter_name}"] = _stderr(values_DK.mean(1), errors) if whole else _NONE
            if whole and set(np.unique(values_DK)) <= {0.0, 1.0}:
                best_D = values_DK.max(1)
                passed[name][f"{metric} pass@{count},{filter_name}"] = float(best_D.mean())
                passed[name][f"{metric} pass@{count}_stderr,{filter_name}"] = _stderr(best_D, errors)
        samples[name] = [_document(together, count) for together in zip(*documents, strict=True)]
    groups = loaded.get("groups") or {}
    of_groups = aggregate_groups(EvalAcc(metrics=metrics, groups=groups)).metrics  # of the tasks, too
    better = {
        name: {f"{metric} {kind}@{count}": value for kind in ("mean", "pass") for metric, value in known.items()}
        for name, known in first["higher_is_better"].items()
    }
    renamed = {name: _renamed(of_groups.get(name, run), count) for name, run in first["results"].items()}
    shown = {name: {**run, **passed.get(name, {})} for name, run in renamed.items()}
    results = {**first, "results": shown, "higher_is_better": better, "samples": samples}
    if "groups" in first:
        results["groups"] = {name: shown[name] for name in first["groups"]}
    return results


def add_unfinished(results: dict[str, Any], counts: Counted, *, errors: bool) -> None:
    """Add the share of texts whose thought does not end to the results of each task that looks for thoughts."""
    for name, found in counts.items():
        if found.unfinished is None or name not in results["results"]:
            continue
        shares_D = np.array([found.unfinished.get(document, 0) for document in sorted(found.documents)], float)
        shares_D *= len(shares_D) / max(1, found.generations)  # a task may ask several times for each text
        own = results["results"][name]
        # A report draws the first metric that has a standard error: never this one.
        known = any("_stderr," in key and is_number(value) for key, value in own.items())
        error = _stderr(shares_D, errors and known)
        results["results"][name] = {
            **own,
            f"{UNFINISHED},none": float(shares_D.mean()),
            f"{UNFINISHED}_stderr,none": error,
        }
        results["higher_is_better"].setdefault(name, {})[UNFINISHED] = False


def _values(documents: Sequence[Sequence[dict[str, Any]]], metric: str, filter_name: str) -> Any:
    """What each text of each document got, [D, K]; None where one has no number."""
    rows = [[one.get(metric) for one in run if one["filter"] == filter_name] for run in documents]
    if not rows[0] or any(not is_number(value) for row in rows for value in row):
        return None
    return np.array(rows, float).T


def _stderr(values_D: Any, errors: bool) -> float | str:
    if not errors or len(values_D) < 2:
        return _NONE
    return float(values_D.std(ddof=1) / math.sqrt(len(values_D)))


def _document(together: Sequence[dict[str, Any]], count: int) -> dict[str, Any]:
    """lm-eval's record of a document, with all its texts: `resps` as where a task itself asks several times."""
    first = together[0]
    shared = [name for name in first["metrics"] if all(name in one for one in together)]
    record = {name: value for name, value in first.items() if name not in first["metrics"]}
    requests = range(len(first["resps"]))
    record["resps"] = [[text for one in together for text in one["resps"][i]] for i in requests]
    record["filtered_resps"] = [[one["filtered_resps"][i] for one in together] for i in requests]
    record |= {name: [one[name] for one in together] for name in shared}
    means = {
        f"{name} mean@{count}": float(np.mean([one[name] for one in together]))
        for name in shared
        if all(is_number(one[name]) for one in together)
    }
    others = [f"{name} mean@{count}" for name in shared]  # of which there is no mean
    return {**record, **means, "metrics": others}


def _renamed(metrics: Mapping[str, Any], count: int) -> dict[str, Any]:
    found = {}
    for key, value in metrics.items():
        metric, comma, filter_name = key.partition(",")
        plain = metric.removesuffix("_stderr")
        error = metric[len(plain) :]
        found[f"{plain} mean@{count}{error},{filter_name}" if comma else key] = value
    return found
