"""Every kind of figure follows Vega-Lite's own schema, has a look of its own for each series, and can be drawn."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import altair
import jsonschema
import pytest

from boomspec.core.tasks import Cell
from boomspec.store import FolderStore
from runners.report.chart import Figure, interactive, static
from runners.report.collect import collect
from runners.report.cost_figures import cost_figure
from runners.report.during_figure import held_out_figure
from runners.report.figures import GROUP_LOOKS, LOOKS, difference_lines, size_figure, size_lines
from runners.report.process_figures import search_figure, similarity_figure, training_figure
from runners.report.study import SERIES, SPEED, PatchSearch, Row, Size, Study, TrainingCurves, Trial
from runners.report.sweep_figures import axis_figure, grid_figure, marginal_figure
from runners.report.vega import write_figure
from tests.runners.drawn import said_of
from tests.runners.experiments import Experiments, Made


def study_of(folder: Path, **axes: list[str]) -> Study:
    values = enumerate(product(*axes.values()))
    made = Experiments(FolderStore(folder), *(Made(dict(zip(axes, at, strict=True)), 0.01 * i) for i, at in values))
    return collect(made.record, made.find)


def deployed() -> Study:
    """A family of which all that a picture needs was measured. The 6 layers are slower than the 7."""
    rows, speeds, cells = [], [], {}
    for layers, loss, speed in ((4, 3.8, 2000.0), (6, 3.6, 900.0), (7, 3.5, 1000.0), (8, 3.3, 800.0)):
        series = {4: "student", 8: "teacher"}.get(layers, "interpolated")
        size = {"layers": layers, "parameters": 1000 * layers, "bytes": 4000 * layers}
        cell = Cell(series=series, measure="held_out", input=f"{series} {layers}/held_out", **size)  # type: ignore[arg-type]
        timed = Cell(series=series, measure=SPEED, input=f"{series} {layers}/speed", **size)  # type: ignore[arg-type]
        cells |= {cell: Size(layers), timed: Size(layers)}
        rows.append(Row(cell, Size(layers), Path(), "", "held_out", "loss", loss, 0.01, False))
        for metric, value in (("decode_tokens_per_second", speed), ("peak_memory_bytes", 5000.0 * layers)):
            speeds.append(Row(timed, Size(layers), Path(), "a CPU", SPEED, metric, value, None, True))
    return Study([Trial("", {}, cells, tuple(rows), speeds=tuple(speeds))], {})


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Figure]:
    folder = tmp_path_factory.mktemp("figures")
    few, grid = study_of(folder / "few", lr=["1e-3", "1e-4"]), study_of(folder / "grid", lr=["1", "2"], wd=["a", "b"])
    steps = tuple({"step": i, "loss": 1 / (i + 1), "kl": 0.1, "hidden_cosine": 0.5} for i in range(9))
    pairs = tuple({"student": f"layer {i}", "teacher": f"layer {2 * i}", "before": 0.2, "after": 0.9} for i in range(3))
    held_out = tuple({"step": i, "student": 4 - i / 9, "6 layers": 3.9 - i / 9} for i in range(0, 9, 2))
    training = TrainingCurves("student", steps, pairs, held_out=held_out)
    search = PatchSearch("order", (2.0, 1.0), {"first to last": (2.0, 1.5)}, ((0, 2.0), (1, 1.2), (1, 1.0)))
    made = {
        "size": size_figure(deployed(), "held_out"),
        "cost": cost_figure(deployed(), "held_out"),
        "sizes": size_lines(few, "held_out"),
        "difference": difference_lines(few, "held_out"),
        "axis": axis_figure(few, "held_out", "lr"),
        "grid": grid_figure(grid, "held_out"),
        "axes": marginal_figure(grid, "held_out"),
        "training": training_figure(training),
        "during": held_out_figure(training),
        "similarity": similarity_figure(training),
        "search": search_figure(search),
    }
    return {name: figure for name, figure in made.items() if figure is not None}


KINDS = ("size", "cost", "sizes", "difference", "axis", "grid", "axes", "training", "during", "similarity", "search")


@pytest.fixture(scope="module")
def valid() -> Any:
    path = Path(altair.__file__).parent / "vegalite/v6/schema/vega-lite-schema.json"
    return jsonschema.Draft7Validator(json.loads(path.read_text()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_figure_is_vega_lite_and_can_be_drawn(
    kind: str, figures: dict[str, Figure], valid: Any, tmp_path: Path
) -> None:
    figure = figures[kind]
    assert [error.message[:300] for error in valid.iter_errors(static(figure))] == []
    write_figure(figure, tmp_path / "drawn")
    drawn = (tmp_path / "drawn.svg").read_text()
    for word in (*figure.label.split(), *(name for entry in figure.entries for name in entry.name.split())):
        assert word in drawn
    for panel, spec in zip(figure.panels, interactive(figure), strict=True):
        assert spec["width"] == "container"
        assert len(spec["layer"]) == len(panel.layers) + figure.sizes  # the mark of the chosen size
        assert spec["params"][0]["name"] == "hidden"


def test_no_two_series_look_alike() -> None:
    assert {SERIES[name] for name in LOOKS} == {entry.name for entry in LOOKS.values()}
    assert len({(entry.color, entry.shape) for entry in LOOKS.values()}) == len(LOOKS)
    assert LOOKS.keys() == SERIES.keys() - {"student", "teacher"}
    assert len(set(GROUP_LOOKS)) == len(GROUP_LOOKS)


def test_size_memory_and_latency_are_three_pictures_of_one_family() -> None:
    figure = cost_figure(deployed(), "held_out")
    assert figure is not None
    assert [panel.title for panel in figure.panels] == ["Size", "Memory", "Latency"]
    said = [one for one in said_of(figure) if one["layers"] == "6"]
    assert [next(one[name] for name in ("parameters", "peak memory") if name in one) for one in said[:1]] == ["6.00K"]
    assert said[1]["peak memory"] == "29.3 KiB"
    assert said[2]["time per token"] == "1.11 ms"
    assert {one["value"] for one in said} == {"3.600 nats per token"}


def test_without_speeds_there_is_no_picture_of_what_sizes_cost(tmp_path: Path) -> None:
    assert cost_figure(study_of(tmp_path, lr=["1", "2"]), "held_out") is None
