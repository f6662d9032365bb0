"""How large each term of a loss was at its first step: on the page, and in the files beside it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from boomspec.store import FolderStore
from runners.report.loss_terms import terms_at_start
from runners.report.page import publish_run
from tests.runners import small
from tests.runners.family import Family
from tests.runners.test_report import publish

ROW = {
    "step": 0,
    "tokens": 8,
    "loss": 9.5,
    "cross_entropy": 8.0,
    "kl": 0.5,
    "weight.kl": 3.0,
    "lr": 0.1,
    "grad_norm": 2,
}


def test_a_weight_that_changes_is_that_of_the_row_and_others_those_of_the_task() -> None:
    params = {"losses": {"cross_entropy": {"weight": 1.0}, "kl": {"weight": {"start": 3.0, "end": 1.0}}}}
    one, other = terms_at_start("student", params, ROW)
    assert one == {
        "training": "student",
        "term": "cross_entropy",
        "unit": "nats per token",
        "value": 8.0,
        "weight": 1.0,
        "weighted": 8.0,
        "share": pytest.approx(8 / 9.5),
    }
    assert (other["value"], other["weight"], other["weighted"]) == (0.5, 3.0, 1.5)
    # What the student wrote itself says nothing to a term that does not read the teacher.
    left_out, whole = terms_at_start("student", params, {**ROW, "on_policy": 1})
    assert (left_out["weight"], left_out["share"], whole["share"]) == (0.0, 0.0, 1.0)
    (alone,) = terms_at_start("teacher", {}, {"loss": 7.0, "cross_entropy": 7.0})  # a pretraining has no weights
    assert (alone["weight"], alone["share"]) == (1.0, 1.0)


def test_they_are_on_the_page_and_in_its_files(tmp_path: Path) -> None:
    folder = publish(Family(FolderStore(tmp_path / "store")), tmp_path / "run")
    (term,) = json.loads((folder / "results.json").read_text())["losses"]
    assert (term["term"], term["value"], term["weight"]) == ("hidden_cosine", 0.1, 2.0)
    (row,) = csv.DictReader((folder / "losses.csv").read_text().splitlines())
    assert (row["training"], row["term"], float(row["weighted"])) == ("student", "hidden_cosine", 0.2)
    page = (folder / "report.html").read_text()
    assert 'id="terms"' in page
    assert ">0.200<" in page


def test_those_of_several_experiments_are_on_the_page_of_their_run(tmp_path: Path) -> None:
    """From the spec to the page: balanced terms are equal at their first step, or shares where weights are written."""
    equal = {"losses": {"cross_entropy": {}, "jsd": {}, "tvd": {}}, "balance": "start"}
    shares = {"losses": {"cross_entropy": {}, "jsd": {"weight": 3}}, "balance": "running"}
    falling = {"losses": {"cross_entropy": {}, "taid": {"weight": {"start": 2.0, "end": 0.5, "over": "50%"}}}}
    variants = {"equal": {"distill": equal}, "shares": {"distill": shares}, "falling": {"distill": falling}}
    store = FolderStore(tmp_path / "store")
    compiled = small.compiled(small.write_spec(tmp_path, variants=variants, baselines=None), store)
    small.execute(compiled.graph, store)
    folder = publish_run(compiled.graph, store, tmp_path / "run", {}).parent
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in json.loads((folder / "results.json").read_text())["losses"]:
        found.setdefault(row["training"], {})[row["term"]] = row
    plain, *others = [terms for name, terms in found.items() if "distill" in name]
    assert set(plain) == {"cross_entropy", "kl", "hidden_cosine"}
    by_kinds = {tuple(terms): {kind: row["share"] for kind, row in terms.items()} for terms in others}
    assert by_kinds["cross_entropy", "jsd", "tvd"] == pytest.approx(dict.fromkeys(equal["losses"], 1 / 3))
    assert by_kinds["cross_entropy", "jsd"] == pytest.approx({"cross_entropy": 0.25, "jsd": 0.75})
    assert next(terms["taid"]["weight"] for terms in others if "taid" in terms) == 2.0
    assert "The terms of each loss" in (folder / "report.html").read_text()
