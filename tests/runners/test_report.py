"""The report of a family with hand-made numbers: what it says, what it admits, and that it stands alone."""

import base64
import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from boomspec.store import FolderStore, Store
from runners.report.closing import closing
from runners.report.collect import collect
from runners.report.compare import baseline_gains
from runners.report.figures import size_figure
from runners.report.findings import findings, outcome
from runners.report.page import publish_run
from runners.report.run_notes import opening
from runners.report.sizes import sizes_of
from runners.report.vega import library
from runners.runtime.context import Context
from runners.runtime.job import Input
from runners.tasks import report
from tests.messages import wording
from tests.runners.drawn import ends_of, lines_of, said_of, texts_of
from tests.runners.family import LOSS, Family


@pytest.fixture
def store(tmp_path) -> Store:
    return FolderStore(tmp_path / "store")


def results_of(family: Family):
    inputs = family.nodes[family.id("report")].task.inputs

    def find(role: str) -> Path | str:
        node = family.nodes[inputs[role]]
        made = family.store.has(node.task.kind, node.id)
        return family.store.path(node.task.kind, node.id) if made else "it failed"

    return collect(family.record, find)


def publish(family: Family, folder: Path, failures: dict[str, str] | None = None) -> Path:
    return publish_run(family.graph, family.store, folder, failures or {}).parent


# --- what it says ----------------------------------------------------------------------------------


def test_the_outcome_claims_a_win_where_there_is_one(store):
    results = results_of(Family(store))
    expected = "All 3 interpolated sizes beat naive pruning on held-out loss, by 0.050 to 0.200 nats per token"
    assert outcome(results).startswith(expected)


def test_the_outcome_admits_a_loss(store):
    worse = {**LOSS, "naive_pruning": {5: 3.60, 6: 3.50, 7: 3.40}}
    expected = "None of the 3 interpolated sizes beats naive pruning on held-out loss: behind by 0.050 to 0.100"
    assert outcome(results_of(Family(store, loss=worse))).startswith(expected)


def test_the_outcome_says_at_which_sizes_it_does_not_hold(store):
    mixed = {**LOSS, "naive_pruning": {5: 3.90, 6: 3.50, 7: 3.40}}
    sentence = outcome(results_of(Family(store, loss=mixed)))
    assert sentence.startswith(wording("report.interpolated_sizes_beats_naive"))
    assert wording("report.behind_layers") in sentence


def test_a_tie_is_no_win(store):
    same = {**LOSS, "naive_pruning": LOSS["interpolated"]}
    assert outcome(results_of(Family(store, loss=same))).startswith(wording("report.no_clear_difference_pruning"))


def test_where_the_teacher_is_no_better_than_the_student_that_is_said_first(store):
    swapped = {**LOSS, "teacher": {8: 3.75}, "student": {4: 3.30}}
    assert outcome(results_of(Family(store, loss=swapped))).startswith(wording("report.teacher_no_better"))


def test_accuracy_is_better_when_it_is_higher(store):
    results = results_of(Family(store))
    gains = baseline_gains(results, "quiz", series="interpolated", against="naive_pruning")
    assert sorted(difference.gain for difference in gains) == pytest.approx([0, 0.05, 0.05])


def test_sizes_are_compared_item_by_item(store):
    """Windows that are hard for one model are hard for all: the difference is surer than the two numbers."""
    results = results_of(Family(store, noise={"naive_pruning": [0.5, -0.5, 0.3, -0.3, 0.11, -0.11]}))
    stderr = np.std([0, 0, 0, 0, 0.01, -0.01], ddof=1) / np.sqrt(6)
    gains = baseline_gains(results, "held_out", series="interpolated", against="naive_pruning")
    assert [d.size.layers for d in gains] == [5, 6, 7]
    assert [d.items for d in gains] == pytest.approx([stderr] * 3)
    assert wording("report.each_more_than_two") in outcome(results)


def test_a_difference_within_its_standard_error_is_not_called_sure(store):
    results = results_of(Family(store, noise={"naive_pruning": [-0.5, 0.5, -0.3, 0.3, -0.1, 0.1]}))
    assert outcome(results).startswith(wording("report.no_clear_difference_pruning"))


def test_the_control_is_reported_as_worse_where_it_is(store):
    expected = "None of the 3 randomly initialised sizes beats naive pruning on held-out loss: behind by 1.000 to 2.170"
    assert any(sentence.startswith(expected) for sentence in findings(results_of(Family(store))))


def test_without_a_baseline_the_outcome_speaks_of_the_end_points_only(store):
    alone = {name: LOSS[name] for name in ("student", "interpolated", "teacher")}
    sentence = outcome(results_of(Family(store, loss=alone)))
    assert sentence == wording("report.all_interpolated_sizes_lie")


def test_the_metric_that_is_drawn_is_the_first_with_a_standard_error(store):
    results = results_of(Family(store))
    assert {measure: results.primary[measure] for measure in results.measures} == {"held_out": "loss", "quiz": "acc"}


# --- what is missing -------------------------------------------------------------------------------


def test_missing_cells_are_named_with_the_reason(store, tmp_path):
    gone = ["naive_pruning 6 held_out", "random_init 5", "random_init 5 held_out", "interpolated 5 quiz"]
    family = Family(store, leave_out=gone)
    failures = {
        family.id("naive_pruning 6 held_out"): "ValueError: <broken>",
        family.id("random_init 5"): "OSError: no space",
        family.id("random_init 5 held_out"): "needs random_init 5, which failed",
    }
    folder = publish(family, tmp_path / "run", failures)
    missing = {entry["name"]: entry["reason"] for entry in json.loads((folder / "results.json").read_text())["missing"]}
    assert missing == {
        "naive pruning, 6 layers, held_out": "ValueError: <broken>",
        "random initialisation, 5 layers, held_out": wording("report.needs_random_init_failed"),
        "interpolated, 5 layers, quiz": wording("comparison.not_been_run"),
    }
    page = (folder / "report.html").read_text()
    assert all(name in page for name in missing)
    assert "ValueError: &lt;broken&gt;" in page


def test_the_outcome_names_sizes_that_could_not_be_compared(store):
    sentence = outcome(results_of(Family(store, leave_out=["naive_pruning 6 held_out"])))
    assert sentence.startswith(wording("report.both_interpolated_sizes_beat"))
    assert wording("report.layers_result_missing") in sentence
    assert sentence.endswith(wording("report.results_missing"))


def test_a_run_that_made_nothing_still_gets_a_report(store, tmp_path):
    everything = [node.name for node in Family(FolderStore(tmp_path / "other")).nodes.values()]
    folder = publish(Family(store, leave_out=everything), tmp_path / "run")
    content = json.loads((folder / "results.json").read_text())
    assert content["outcome"] == wording("report.there_no_results_results")
    assert content["results"] == []


# --- the files -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """The report folder of a whole run."""
    folder = tmp_path_factory.mktemp("published")
    return publish(Family(FolderStore(folder / "store")), folder / "run")


class Links(HTMLParser):
    """Collects the elements of a page and every place it refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []
        self.elements: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.places += [value or "" for name, value in attrs if name.split(":")[-1] in ("src", "href", "srcset")]


def test_the_page_needs_nothing_but_itself(published):
    page = (published / "report.html").read_text()
    links = Links()
    links.feed(page)
    beside = {path.name for path in published.iterdir()}  # what is offered, and not needed
    assert all(place.startswith(("#", "data:")) or place in beside for place in links.places)
    assert not {"link", "img", "iframe"} & set(links.elements)
    assert links.elements.count("script") == 4  # of sizes, of figures, the library, the page's own
    without_library = page.replace(library(), "")
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest|<script[^>]* src", without_library)
    assert links.elements.count("figure") == 4  # two measures, one training, one similarity
    assert "prefers-color-scheme: dark" in page


def test_the_page_shows_the_spec_as_text_and_opens_with_its_question(published):
    page = (published / "report.html").read_text()
    assert "<h1>family</h1>" in page
    assert "Does it grow?</p>" in page
    assert "A second paragraph.</p>" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "order: [3, 2, 1, 0]" in page
    assert "torch 2.13.0" in page
    assert "abc123" in page


def test_csv_json_and_downloads_hold_the_same_numbers(published):
    with (published / "results.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    content = json.loads((published / "results.json").read_text())["results"]
    assert [{name: "" if v is None else str(v) for name, v in row.items()} for row in content] == table
    held_out = {
        (r["series"], r["layers"]): r["value"] for r in content if (r["measure"], r["metric"]) == ("held_out", "loss")
    }
    assert held_out == {(series, layers): v for series, sizes in LOSS.items() for layers, v in sizes.items()}
    page = (published / "report.html").read_text()
    embedded = re.search(r'href="data:text/csv;base64,([^"]*)"', page)
    assert embedded is not None
    assert base64.b64decode(embedded[1]) == (published / "results.csv").read_bytes()


def test_every_figure_lies_beside_the_page_for_papers_and_is_linked(published):
    names = ["similarity-student", "size-held_out", "size-quiz", "training-student"]
    page = (published / "report.html").read_text()
    for ending, opening_ in (("png", b"\x89PNG"), ("svg", b"<svg"), ("pdf", b"%PDF")):
        assert sorted(path.stem for path in published.glob(f"*.{ending}")) == names
        assert all((published / f"{name}.{ending}").read_bytes().startswith(opening_) for name in names)
        assert all(f'href="{name}.{ending}"' in page for name in names)
    drawn = (published / "size-held_out.svg").read_text()
    assert "student 3.750</text>" in drawn  # text stays text
    assert "var(--" not in drawn  # colours of paper


def test_the_family_is_one_line_from_student_to_teacher(store):
    figure = size_figure(results_of(Family(store)), "held_out")
    sizes, losses = [4000, 5000, 6000, 7000, 8000], [3.75, 3.70, 3.60, 3.45, 3.30]
    assert lines_of(figure)["interpolated"] == list(zip(sizes, losses, strict=True))
    assert figure.label == wording("report.held_out_loss_nats")
    assert size_figure(results_of(Family(store)), "quiz").label == "quiz acc   (↑ better)"


def test_where_one_points_at_a_mark_its_numbers_are_said(store):
    said = said_of(size_figure(results_of(Family(store)), "held_out"))
    (found,) = [one for one in said if one["series"] == "interpolated" and one["layers"] == "6"]
    assert found == {
        "series": "interpolated",
        "layers": "6",
        "parameters": "6.00K",
        "weights": "23.4 KiB",
        "value": "3.600 nats per token",
        "standard error": found["standard error"],
    }
    assert float(found["standard error"]) > 0
    assert {one["series"] for one in said} >= {"student", "teacher", "naive pruning", "random initialisation"}


def test_a_control_far_off_does_not_flatten_the_curves(store):
    figure = size_figure(results_of(Family(store)), "held_out")
    assert ends_of(figure.panels[0])[1] < 4.9
    assert {"4.900", "5.900", "5.200"} <= texts_of(figure)
    assert {"4.900 nats per token", "5.900 nats per token"} <= {one["value"] for one in said_of(figure)}


def test_the_report_task_gives_the_same_bytes_again_and_knows_no_run(store, tmp_path):
    family = Family(store)
    node = family.nodes[family.id("report")]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        folders = {role: store.path(family.nodes[i].task.kind, i) for role, i in node.task.inputs.items()}
        inputs = {role: Input(family.id("report"), folder) for role, folder in folders.items()}
        report.run(Context(record=family.record, inputs=inputs, path=tmp_path / name, resume=tmp_path / "resume"))
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert {str(file) for file in files} >= {"report.html", "results.csv", "results.json", "figures/size-held_out.png"}
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert "<h1>A model family of 4 to 8 layers</h1>" in (tmp_path / "one/report.html").read_text()


def test_what_a_spec_tells_an_editor_is_no_part_of_its_question():
    spec = "# yaml-language-server: $schema=boomspec.schema.json\n# Does it\n# grow?\n#\n# Yes.\nboomspec: 1\n# no\n"
    assert opening(spec) == ["Does it grow?", "Yes."]


def test_a_run_ends_with_its_sizes_the_headline_and_a_command_in_80_columns(store):
    results = results_of(Family(store))
    text = closing(results, sizes_of(results))
    assert all(len(line) <= 80 for line in text.splitlines())
    first, *rows = text.splitlines()
    assert first.split()[:3] == ["size", "parameters", "of"]
    values = [line.split()[-2] for line in rows[:5]]
    assert values == ["3.750", "3.700", "3.600", "3.450", "3.300"]
    assert "quiz acc" in first
    assert outcome(results).split(",")[0] in text.replace("\n", " ")
    entry = {
        "label": "",
        "sizes": [{"kind": "interpolated", "values": [], "export": "boomspec export tiny '5 layers' x"}],
    }
    assert closing(results, [entry]).rstrip().endswith("boomspec export tiny '5 layers' x")
