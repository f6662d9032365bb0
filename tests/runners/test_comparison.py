"""Experiments compared, with hand-made numbers: groups, spread, what is said and what is not, and the files."""

import csv
import json
import re
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from boomspec.store import FolderStore, Store
from runners.report.collect import collect
from runners.report.compare import differences, ranked
from runners.report.figures import MOST_LINES, difference_lines, size_lines
from runners.report.findings import findings, outcome
from runners.report.page import draw, publish_run
from runners.report.study import Size, Study
from runners.report.sweep_figures import axis_places, numeric
from runners.report.tables import files, group_table
from runners.runtime.context import Context
from runners.runtime.job import Input
from runners.tasks import comparison
from tests.messages import wording
from tests.runners.drawn import layers_of, lines_of
from tests.runners.experiments import Experiments, Made
from tests.runners.family import LOSS, NOISE

JITTER = (0.010, -0.010, 0.003, -0.003, 0.0)  # of the seeds


def repeated(worse: dict[str, float], *, seeds: int = 3, **more) -> list[Made]:
    """Variants at some seeds: a seed moves all variants alike, and each a little by itself."""
    return [
        Made({"variant": variant, "seed": str(seed)}, shift + JITTER[seed] + 0.1 * JITTER[seed - number], **more)
        for number, (variant, shift) in enumerate(worse.items())
        for seed in range(seeds)
    ]


@cache  # several tests read the same
def read(experiments: Experiments) -> Study:
    return collect(experiments.record, experiments.find)


@pytest.fixture
def store(tmp_path) -> Store:
    return FolderStore(tmp_path / "store")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Experiments:
    """Three variants at three seeds; one result is missing."""
    everything = repeated({"base": 0.0, "no-kl": 0.05, "long": -0.02})
    gone = Made(everything[4].axes, everything[4].worse, leave_out=["interpolated 6 held_out"])
    meaning = {"base": {"kl": {"weight": 0.1}}, "no-kl": {}, "long": {"kl": {"weight": 0.1}, "tokens": 5}}
    everything[4] = gone
    variants = [Made(**{**vars(one), "meaning": {"losses": meaning[one.axes["variant"]]}}) for one in everything]
    return Experiments(FolderStore(tmp_path_factory.mktemp("made") / "store"), *variants, whole=True)


# --- groups and spread -----------------------------------------------------------------------------


def test_experiments_that_differ_in_their_seed_are_one_group(made):
    found = read(made)
    assert [(group.label, len(group.trials)) for group in found.groups] == [("base", 3), ("no-kl", 3), ("long", 3)]
    assert found.axes == {"variant": ("base", "no-kl", "long"), "seed": ("0", "1", "2")}


def test_every_axis_but_the_seed_makes_groups_and_each_is_compared_with_base_at_its_point(store):
    points = product(("base", "no-kl"), ("1e-3", "1e-4"), ("0", "1"))
    found = read(Experiments(store, *(Made({"variant": v, "lr": lr, "seed": s}) for v, lr, s in points)))
    assert [group.label for group in found.groups] == ["base,lr=1e-3", "base,lr=1e-4", "no-kl,lr=1e-3", "no-kl,lr=1e-4"]
    references = [found.reference(group) for group in found.groups]
    assert [other and other.label for other in references] == [None, None, "base,lr=1e-3", "base,lr=1e-4"]


def test_without_variants_the_first_value_is_what_others_are_compared_with(store):
    found = read(Experiments(store, Made({"lr": "1e-3"}), Made({"lr": "1e-4"})))
    assert [other and other.label for other in map(found.reference, found.groups)] == [None, "lr=1e-3"]


def test_the_spread_of_few_seeds_is_their_range(made):
    found = read(made)
    point = found.points(found.groups[0], "held_out")[Size(5)]
    values = [LOSS["interpolated"][5] + 1.1 * jitter for jitter in JITTER[:3]]
    assert point.mean == pytest.approx(np.mean(values))
    assert point.spread == pytest.approx((min(values), max(values)))


def test_the_spread_of_many_seeds_is_their_standard_deviation(store):
    found = read(Experiments(store, *repeated({"base": 0.0}, seeds=5)))
    point = found.points(found.groups[0], "held_out")[Size(5)]
    deviation = np.std([1.1 * jitter for jitter in JITTER], ddof=1)
    assert point.spread == pytest.approx((point.mean - deviation, point.mean + deviation))


def test_an_artifact_that_seeds_share_is_one_value_without_spread(made):
    found = read(made)
    teacher = found.points(found.groups[0], "held_out")[Size(8)]
    pruned = found.points(found.groups[0], "held_out", "naive_pruning")[Size(5)]
    assert (teacher.values, teacher.spread) == ((3.3,), None)
    assert (pruned.values, pruned.spread) == ((3.9,), None)


# --- differences -----------------------------------------------------------------------------------


def test_differences_are_taken_at_the_same_seed(made):
    """The seeds move both alike; what is left of the spread is what each does by itself."""
    found = read(made)
    base, _, long = found.groups
    compared = {d.size: d for d in differences(found, long, base, "held_out")}
    own = [0.1 * (JITTER[seed - 2] - JITTER[seed]) for seed in range(3)]
    difference = compared[Size(5)]
    assert difference.gains == pytest.approx([0.02 - shift for shift in own])
    assert difference.interval == pytest.approx(stats.t.ppf(0.975, 2) * np.std(own, ddof=1) / np.sqrt(3), rel=1e-3)
    assert difference.clear
    assert compared[Size(8)].same  # one teacher


def test_a_difference_is_not_clear_where_the_seeds_disagree(store):
    worse = {"base": [0, 0, 0], "no-kl": [0.05, 0.01, 0.0]}
    made = [Made({"variant": v, "seed": str(s)}, worse[v][s]) for v in worse for s in range(3)]
    found = read(Experiments(store, *made))
    difference = differences(found, found.groups[1], found.groups[0], "held_out")[0]
    assert difference.gain == pytest.approx(-0.02)
    assert not difference.clear


def test_a_difference_is_not_clear_where_the_items_disagree_though_the_seeds_agree(store):
    other = {"student": [-0.5, 0.5, -0.3, 0.3, -0.1, 0.1]}
    base = [Made({"variant": "base", "seed": str(s)}, JITTER[s]) for s in range(3)]
    changed = [Made({"variant": "x", "seed": str(s)}, 0.02 + JITTER[s], noise=other) for s in range(3)]
    found = read(Experiments(store, *base, *changed))
    student, *_ = differences(found, found.groups[1], found.groups[0], "held_out")
    assert student.items == pytest.approx(np.std(np.subtract(other["student"], NOISE), ddof=1) / np.sqrt(6))
    assert student.interval == pytest.approx(0, abs=1e-9)
    assert not student.clear


def test_a_seed_that_only_one_of_them_has_is_left_out(store):
    made = [Made({"variant": v, "seed": s}, 0.01) for v, s in [("base", "0"), ("base", "1"), ("x", "1"), ("x", "2")]]
    found = read(Experiments(store, *made))
    assert {len(d.gains) for d in differences(found, found.groups[1], found.groups[0], "held_out")} == {1, 0}


# --- what it says ----------------------------------------------------------------------------------


def test_a_variant_that_is_worse_is_said_to_be_by_how_much_and_how_surely(store):
    sentence = outcome(read(Experiments(store, *repeated({"base": 0.0, "no-kl": 0.05}))))
    assert sentence.startswith(wording("comparison.no_kl_worse_than"))
    assert sentence.endswith(wording("comparison.all_more_than_spread"))


def test_where_it_does_not_hold_is_said_too(store):
    mixed = {4: 0.05, 5: 0.04, 6: -0.02, 7: 0.01}
    made = [Made({"variant": v, "seed": str(s)}, mixed if v == "x" else 0.0) for v in ("base", "x") for s in range(2)]
    sentence = outcome(read(Experiments(store, *made)))
    assert sentence.startswith(wording("comparison.worse_than_base_sizes"))
    assert wording("comparison.better_layers_nats_per") in sentence


def test_one_seed_says_nothing_about_another(store):
    found = read(Experiments(store, Made({"variant": "base"}), Made({"variant": "no-kl"}, 0.05)))
    assert outcome(found).endswith(wording("comparison.all_more_than_two"))
    assert findings(found)[-1] == wording("comparison.there_one_seed_each")


def test_a_variant_that_changes_nothing_is_said_to_be_the_same(store):
    found = read(Experiments(store, Made({"variant": "base"}, student=0), Made({"variant": "same"}, student=0)))
    assert outcome(found) == wording("comparison.same_base_same_artifacts")


def test_the_best_of_several_is_named_with_its_lead(made):
    assert outcome(read(made)) == (wording("comparison.held_out_loss_long"))


# What is left of an experiment whose student failed is the teacher's and that of naive pruning.
OWN = ["student 4 held_out", *(f"interpolated {layers} held_out" for layers in (5, 6, 7))]


@pytest.mark.parametrize("failed", ["base", "no-kl", "long"])
def test_one_that_has_failed_does_not_keep_the_others_from_being_compared(store, failed):
    worse = {"base": 0.0, "no-kl": 0.05, "long": -0.02, "short": 0.1}
    made = [Made({"variant": v}, shift, leave_out=OWN if v == failed else ()) for v, shift in worse.items()]
    found = read(Experiments(store, *made))
    assert len(list(found.missing)) == len(OWN)
    said = [outcome(found), *findings(found)]
    others = [name for name in worse if name != failed]
    best = min(others, key=worse.__getitem__)
    assert said[0].startswith(wording("comparison.held_out_loss_best", best=best))
    first = "base" if failed != "base" else "no-kl"
    for name in others:
        word = "better" if worse[name] < worse[first] else "worse"
        assert name == first or any(
            s.startswith(wording("comparison.than_all_sizes", name=name, word=word, first=first)) for s in said
        )
    assert not any(s.startswith(f"{failed} ") and " than " in s for s in said)
    assert not any("same artifacts" in s for s in said)
    stands_in = "base has no results of its own, so the others are compared with no-kl."
    assert (stands_in in said) is (failed == "base")


def test_a_size_that_one_lacks_is_still_ranked_among_the_others(store):
    worse = {"base": 0.0, "no-kl": 0.05, "long": -0.02}
    lacks = "interpolated 6 held_out"
    made = [Made({"variant": v}, shift, leave_out=[lacks] if v == "long" else ()) for v, shift in worse.items()]
    found = read(Experiments(store, *made))
    order = {size.layers: [group.label for group in groups] for size, groups in ranked(found, "held_out").items()}
    assert order.pop(6) == ["base", "no-kl"]
    assert set(map(tuple, order.values())) == {("long", "base", "no-kl")}
    assert "best of 2 to 3" in outcome(found)


def test_a_tie_has_no_winner(store):
    found = read(Experiments(store, *(Made({"variant": name}) for name in ("base", "a", "b"))))
    assert outcome(found) == wording("comparison.held_out_loss_best_tie")


def test_what_was_measured_on_other_text_is_not_compared(store):
    other = dict.fromkeys(LOSS, NOISE[:4])
    found = read(Experiments(store, Made({"tokens": "1M"}), Made({"tokens": "2M"}, 0.1, noise=other)))
    assert all(d.same for d in differences(found, found.groups[1], found.groups[0], "held_out"))  # the teacher
    expected = "Not compared on held-out loss: tokens=2M was measured on other held-out text than tokens=1M."
    assert expected in findings(found)


def test_of_many_groups_there_are_counts_instead_of_sentences(store):
    shifts = {"base": 0.0, **{f"v{i}": 0.03 * (i - 2.5) for i in range(8)}}
    found = read(Experiments(store, *(Made({"variant": v}, shift) for v, shift in shifts.items())))
    expected = "Of 8 compared with base on held-out loss, 3 are clearly better at every size and 5 clearly worse"
    assert any(sentence.startswith(expected) for sentence in findings(found))


def test_seeds_alone_are_reported_with_how_far_they_lie_apart(store):
    found = read(Experiments(store, *(Made({"seed": str(s)}, JITTER[s]) for s in range(3))))
    assert outcome(found).startswith(wording("comparison.between_seeds_one_experiment"))
    assert group_table(found, "held_out")["lines"][0]["name"] == "every seed"


# --- figures ---------------------------------------------------------------------------------------


def test_the_figure_has_the_mean_of_every_group_and_a_band(made):
    found = read(made)
    figure = size_lines(found, "held_out")
    lines, looks = lines_of(figure), {entry.name: entry for entry in figure.entries}
    for group in found.groups:
        assert [y for _, y in lines[group.label]] == [p.mean for p in found.points(group, "held_out").values()]
    (band,) = layers_of(figure.panels[0], "area")
    assert {row["series"] for row in band["data"]["values"]} == {group.label for group in found.groups}
    assert looks["naive pruning (base)"].opacity < 1 == looks["base"].opacity
    assert len({(looks[g.label].color, looks[g.label].shape) for g in found.groups}) == 3


def test_the_difference_is_drawn_to_base_without_base(made):
    figure = difference_lines(read(made), "held_out")
    assert figure is not None
    assert [entry.name for entry in figure.entries] == ["no-kl", "long"]


def test_one_group_has_no_figure_of_differences(store):
    assert difference_lines(read(Experiments(store, Made({"seed": "0"}), Made({"seed": "1"}))), "held_out") is None


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ({"lr": ["1e-3", "1e-4"]}, ["size", "difference"]),
        ({"lr": ["1e-3", "1e-4", "1e-5"]}, ["size", "difference", "axis"]),
        ({"lr": [f"{i}e-4" for i in range(1, MOST_LINES + 2)]}, ["axis"]),
        ({"variant": ["base", "x"], "lr": [f"{i}e-4" for i in range(1, 6)]}, ["axis"]),
        ({"lr": [f"{i}e-4" for i in range(1, 8)], "wd": [f"0.{i}" for i in range(1, 8)]}, ["grid"]),
        ({"lr": ["1", "2", "3"], "wd": ["1", "2", "3"], "order": ["a", "b", "c"]}, ["axes"]),
    ],
)
def test_the_figures_fit_what_was_varied(store, axes, expected):
    made = [Made(dict(zip(axes, values, strict=True)), 0.01 * i) for i, values in enumerate(product(*axes.values()))]
    drawings = draw(read(Experiments(store, *made)))
    assert [drawing.name for drawing in drawings if drawing.group == "hero"] == [
        f"{kind}-held_out" for kind in expected
    ]


def test_axis_values_are_placed_as_the_numbers_that_they_are():
    assert [numeric(text) for text in ("3e-4", "4.2M", "5%", "1,5", "last_to_first")] == [3e-4, 4.2e6, 0.05, None, None]
    assert axis_places(["1e-2", "1e-4"]) == pytest.approx({"1e-2": -2, "1e-4": -4})
    assert axis_places(["0", "2"]) == {"0": 0, "2": 2}
    assert axis_places(["a", "10"]) == {"a": 0, "10": 1}


# --- the files -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(made, tmp_path_factory) -> Path:
    gone = next(i for i, node in made.nodes.items() if node.name == "no-kl,seed=1: interpolated 6 held_out")
    failures = {gone: "ValueError: <broken>"}
    return publish_run(made.graph, made.store, tmp_path_factory.mktemp("run"), failures).parent


def test_the_page_names_what_is_missing_in_which_experiment(published):
    content = json.loads((published / "results.json").read_text())
    assert [(entry["experiment"], entry["name"], entry["reason"]) for entry in content["missing"]] == [
        ("no-kl,seed=1", "interpolated, 6 layers, held_out", "ValueError: <broken>")
    ]
    page = (published / "report.html").read_text()
    assert "no-kl,seed=1" in page
    assert "ValueError: &lt;broken&gt;" in page
    assert ">2 seeds<" in page  # of the mean that lacks one


def test_the_page_lists_what_each_variant_changes_and_what_all_share(published):
    page = (published / "report.html").read_text()
    assert "<h1>family</h1>" in page
    assert "losses.kl.weight" in page
    assert "losses.tokens" in page
    assert wording("comparison.experiments_tasks_all") in page
    assert wording("comparison.all_them_share_teacher") in page


def test_names_are_text_on_the_page_whatever_they_look_like(store, tmp_path):
    hostile = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    made = Experiments(
        store, Made({"variant": "base"}), Made({"variant": hostile}, worse=0.1, meaning={"name": hostile, hostile: 1})
    )
    page = publish_run(made.graph, made.store, tmp_path / "run", {"x" * 64: hostile}).read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page
    assert page.count("<script") == 4
    assert "<img src=x" not in page
    written = {path.name for path in (tmp_path / "run").rglob("*")}
    assert not any(set(name) & set("<>/&") for name in written)


@pytest.mark.parametrize("values", [2, MOST_LINES + 2])
def test_what_only_baselines_have_results_of_still_gets_a_page(store, tmp_path, values):
    family = [
        f"{name} held_out" for name in ("student 4", "interpolated 5", "interpolated 6", "interpolated 7", "teacher 8")
    ]
    made = Experiments(store, *(Made({"lr": f"{i}e-4"}, leave_out=family) for i in range(1, values + 1)))
    page = publish_run(made.graph, made.store, tmp_path / "run", {})
    content = json.loads(page.with_name("results.json").read_text())
    assert content["outcome"].startswith(wording("comparison.no_two_experiments_can"))
    assert len(content["missing"]) == 5 * values


def test_a_set_that_made_nothing_still_gets_a_page(store, tmp_path):
    everything = [
        node.name for node in Experiments(FolderStore(tmp_path / "other"), Made({"seed": "0"})).nodes.values()
    ]
    made = Experiments(store, *(Made({"seed": seed}, leave_out=everything) for seed in "01"))
    page = publish_run(made.graph, made.store, tmp_path / "run", {})
    assert json.loads(page.with_name("results.json").read_text())["outcome"] == (
        wording("comparison.there_no_results_results")
    )
    assert wording("comparison.not_been_run") in page.read_text()


def test_the_tables_have_a_column_for_each_axis(published):
    with (published / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:4] == ["experiment", "variant", "seed", "series"]
    assert {(row["variant"], row["seed"]) for row in rows} == set(product(("base", "no-kl", "long"), "012"))
    with (published / "groups.csv").open(newline="") as file:
        groups = list(csv.DictReader(file))
    chosen = [
        r for r in groups if (r["group"], r["layers"], r["metric"], r["series"]) == ("no-kl", "6", "loss", "family")
    ]
    assert [row["seeds"] for row in chosen] == ["2"]


def test_an_axis_that_is_called_as_a_column_is_told_apart(store):
    written = files(read(Experiments(store, Made({"layers": "4"}), Made({"layers": "5"}))), "x")
    header = written["results.csv"].splitlines()[0].split(",")
    assert header[:4] == ["experiment", "axis layers", "series", "layers"]


def test_every_figure_of_the_page_lies_beside_it(published):
    names = [f"{kind}-{measure}" for kind in ("difference", "size") for measure in ("held_out", "quiz")]
    for ending in ("png", "svg", "pdf"):
        assert sorted(path.name for path in published.glob(f"*.{ending}")) == [f"{name}.{ending}" for name in names]
    assert re.findall(r'<figure id="([^"]*)"', (published / "report.html").read_text()) == [
        "size-held_out", "difference-held_out", "size-quiz", "difference-quiz"
    ]  # fmt: skip


def test_the_comparison_task_gives_the_same_bytes_again_and_knows_no_run(store, tmp_path):
    made = Experiments(store, Made({"variant": "base"}), Made({"variant": "no-kl"}, 0.05))
    inputs = {role: Input(i, made.find(role)) for role, i in made.node.task.inputs.items()}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        comparison.run(Context(record=made.record, inputs=inputs, path=tmp_path / name, resume=tmp_path / "resume"))
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert {"report.html", "results.csv", "groups.csv", "figures/size-held_out.png"} <= {str(file) for file in files}
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_of_very_many_groups_the_page_shows_the_best_and_folds_the_rest(store):
    made = [Made({"lr": f"{i}e-5"}, 0.01 * abs(i - 30)) for i in range(1, 43)]
    found = group_table(read(Experiments(store, *made)), "held_out")
    assert len(found["all"]) == 42
    assert found["lines"][0]["name"] == "lr=30e-5"
    assert sum(not line["faint"] for line in found["lines"]) == 10
