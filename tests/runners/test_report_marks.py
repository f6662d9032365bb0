"""From real evaluations to the page: cuts are marked, what is not finite is missing, two ways are told apart."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from boomspec.core.tasks import Cell, Compared, Comparison, Report
from boomspec.spec.sections.evaluation import EvaluateSpec
from boomspec.spec.validate import FieldError
from runners.report.collect import collect
from runners.report.findings import findings, outcome
from runners.report.format import Footnotes
from runners.report.page import draw, render
from runners.report.tables import files, group_table, model_table
from tests.messages import wording
from tests.runners.lm_eval_tasks import CHOICE, measured, model, row, source, strict, task

SIZES = {"student": 2, "interpolated": 3, "teacher": 4}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Evaluations of a good and a broken model: asked plainly, with two examples, and as a part of a group."""
    place = tmp_path_factory.mktemp("evaluations")
    rows = [row(4, label=i % 2) for i in range(6)] + [row(30)]
    tasks = task(place / "tasks", rows, {**CHOICE, "fewshot_split": "test"})
    (place / "tasks/both.yaml").write_text("group: both\ntask: [own]\naggregate_metric_list: [{metric: acc}]\n")
    tasks, both = source(place / "tasks"), source(place / "tasks", "both")
    good, bad = model(place / "good"), model(place / "bad", broken=True)
    found = {}
    for name, artifact in {"good": good, "bad": bad}.items():
        measured(place / f"{name}-plain", artifact, tasks)
        measured(place / f"{name}-few", artifact, tasks, num_fewshot=2, seed=0)
        measured(place / f"{name}-group", artifact, both, task="both")
        found |= {f"{name}-{way}": place / f"{name}-{way}" for way in ("plain", "few", "group")}
    return found


def results_of(folders: dict[str, Path], *, broken: str = "", few: str = "own (2-shot)") -> tuple[Any, Report]:
    ways = {"own": ("plain", None), few: ("few", "own"), "both": ("group", None)}
    cells, places = [], {}
    for series, layers in SIZES.items():
        for called, (way, own) in ways.items():
            role = f"{series} {layers}/{called}"
            size = {"parameters": layers * 1000, "bytes": layers * 4000}
            cells.append(Cell(series=series, layers=layers, measure=called, input=role, task=own, **size))
            places[role] = folders[f"{'bad' if series == broken else 'good'}-{way}"]
    record = Report(cells=tuple(cells), trainings={})
    return collect(record, places.__getitem__), record


def test_two_ways_of_asking_and_a_group_s_own_are_told_apart_everywhere(folders):
    results, _ = results_of(folders)
    names = ["own", "own (2-shot)", "both", "own (both)"]
    assert sorted({row.measure for row in results.trials[0].rows}) == sorted(names)
    assert len({(row.cell.series, row.measure, row.metric) for row in results.trials[0].rows}) == len(
        results.trials[0].rows
    )
    written = list(csv.DictReader(files(results, "t")["results.csv"].splitlines()))
    assert {line["measure"] for line in written} == set(names)
    drawings = draw(results)
    assert len({drawing.name for drawing in drawings}) == len(drawings) == 3
    heads = [name for name, _ in model_table(results, results.measures)["measures"]]
    assert heads == ["own", "own (2-shot)", "both"]
    assert {row.measure for row in results.rows if row.items is not None} == {"own", "own (2-shot)", "own (both)"}


def test_what_was_cut_is_marked_in_the_table_with_a_footnote_and_in_the_files(folders):
    results, _ = results_of(folders)
    shown = model_table(results, results.measures)
    assert shown["footnotes"][0] == {"mark": "a", "text": wording("report_marks.contexts_cut_model_positions")}
    assert all(cell["marks"] == "a" for line in shown["lines"] for cell in line["numbers"])
    page = render(results, title="t", drawings=[], files={})
    assert '<sup class="mark">a</sup>' in page
    assert wording("report_marks.contexts_cut_model_positions_2") in page
    written = files(results, "t")
    assert wording("report_marks.contexts_cut_model_positions_3") in written["results.csv"]
    assert strict(written["results.json"])["results"][0]["note"].endswith(
        wording("report_marks.contexts_cut_model_positions_4")
    )


@pytest.mark.parametrize("broken", SIZES)
def test_numbers_that_are_not_finite_are_missing_with_their_reason_and_in_no_sentence(folders, broken):
    results, _ = results_of(folders, broken=broken)
    assert all(row.cell.series != broken for row in results.trials[0].rows)
    reasons = {missing.reason for missing in results.trials[0].missing}
    assert reasons == {wording("report_marks.no_value_model_own")}
    assert {missing.measure for missing in results.trials[0].missing} >= {"own", "own (2-shot)", "both"}
    assert wording("report_marks.results_missing") in outcome(results)
    assert not any("nan" in text.lower() for text in [outcome(results), *findings(results)])
    content = strict(files(results, "t")["results.json"])
    assert {tuple(line["metrics"]) for line in content["missing"]} == {("acc",)}
    page = render(results, title="t", drawings=draw(results), files=files(results, "t"))
    assert wording("report_marks.documents_not_finite") in page
    assert "nan" not in page.lower().replace("finance", "").split("<tbody>")[1].split("</tbody>")[0]


def test_a_name_of_one_s_own_stands_for_the_task_and_behind_its_members(folders):
    cell = {"series": "teacher", "layers": 4, "parameters": 1, "bytes": 4}
    cells = [Cell(measure="easy ones", input="x", task="both", **cell)]
    results = collect(Report(cells=tuple(cells), trainings={}), lambda role: folders["good-group"])
    assert sorted(row.measure for row in results.rows) == ["easy ones", "own (easy ones)"]


def test_footnotes_of_one_kind_are_one_from_the_least_to_the_most():
    footnotes = Footnotes()
    assert (
        footnotes.letters(["2 of 40 contexts were cut", "5 of 40 contexts were cut; 1 of 9 generations were cut"])
        == "ab"
    )
    assert footnotes.letters([""]) == ""
    assert footnotes.letters(["7 of 40 contexts were cut"]) == "a"
    assert [line["text"] for line in footnotes.lines] == [
        wording("report_marks.contexts_cut"),
        wording("report_marks.generations_cut"),
    ]


def test_a_comparison_marks_what_was_cut_and_misses_what_is_not_finite(folders):
    found = {}
    for name, folder in folders.items():
        measure = {"type": "lm_eval", "task": "own", "num_fewshot": 2 if "few" in name else None}
        task = {"params": {"measure": measure}, "inputs": {"tasks": "t"}}
        (folder / "artifact.json").write_text(json.dumps({"task": task}))
    experiments = []
    for label in ("base", "other"):
        cells = []
        for series, layers in SIZES.items():
            role = f"{series} {layers}/own"
            cells.append(Cell(series=series, layers=layers, measure="own", input=role, parameters=layers, bytes=4))
            bad = label == "other" and series == "teacher"
            found[f"{label}/{role}"] = folders["bad-plain" if bad else "good-plain"]
        experiments.append(Compared(label=label, axes={"variant": label}, cells=tuple(cells)))
    compared = collect(Comparison(experiments=tuple(experiments)), found.__getitem__)
    shown = group_table(compared, "own")
    assert shown["footnotes"] == [{"mark": "a", "text": wording("report_marks.contexts_cut_model_positions_3")}]
    marks = {line["name"]: [cell["marks"] for cell in line["cells"]] for line in shown["lines"]}
    assert marks == {"base": ["a", "a", "a"], "other": ["a", "a", ""]}
    reasons = [cell["reason"] for line in shown["lines"] for cell in line["cells"] if cell["point"] is None]
    assert reasons == [wording("report_marks.no_value_model_own")]
    written = files(compared, "t")
    assert strict(written["results.json"])["missing"][0]["metrics"] == ["acc"]
    page = render(compared, title="t", drawings=[], files=written)
    assert page.count("contexts were cut") >= 1


# --- names in a spec -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tasks", "names"),
    [
        (["a", "b"], ["a", "b"]),
        ([{"task": "a", "num_fewshot": 5}], ["a"]),
        (["a", {"task": "a", "num_fewshot": 5}], ["a", "a (5-shot)"]),
        ([{"task": "a", "num_fewshot": 0}, {"task": "a", "num_fewshot": 5}], ["a (0-shot)", "a (5-shot)"]),
        ([{"task": "a", "limit": 10}, {"task": "a", "limit": 20}, "a"], ["a (first 10)", "a (first 20)", "a"]),
        (
            [{"task": "a", "limit": 10, "num_fewshot": 2}, {"task": "a", "limit": 10}],
            ["a (2-shot)", "a"],
        ),
        (["a", {"task": "a", "num_fewshot": 5, "name": "a with help"}], ["a", "a with help"]),
        ([{"task": "a", "name": "easy"}], ["easy"]),
    ],
)
def test_tasks_are_called_by_what_tells_them_apart(tasks, names):
    assert list(EvaluateSpec.model_validate({"tasks": tuple(tasks)}).names) == names


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["a", "a"], wording("report_marks.task_listed_twice", name="a")),
        (["a", {"task": "a", "name": "again"}], wording("report_marks.task_listed_twice", name="a")),
        (["a", {"task": "b", "name": "a"}], wording("report_marks.two_tasks_called", name="a")),
        ([{"task": "a", "name": "held_out"}], wording("report_marks.no_name_measure")),
        ([{"task": "a", "name": "x/y"}], wording("report_marks.no_name_measure")),
        ([{"task": "a", "name": "x: y"}], wording("report_marks.no_name_measure")),
        ([{"task": "a", "name": " "}], wording("report_marks.no_name_measure")),
    ],
)
def test_names_that_would_be_one_are_refused(tasks, message):
    with pytest.raises((FieldError, ValueError), match=message):
        EvaluateSpec.model_validate({"tasks": tuple(tasks)})


def test_the_files_of_a_page_hold_no_constant_that_is_no_json(folders):
    results, _ = results_of(folders, broken="teacher")
    for name, text in files(results, "t").items():
        if name.endswith(".json"):
            assert json.loads(text) == strict(text)
