"""The shipped spec of blockwise distillation, made tiny, runs to its page on Ray; its blocks run side by side."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from boomspec.core.graph_file import read_graph
from boomspec.core.tasks import DistillBlock
from boomspec.store import FolderStore
from runners.modeling.models import MODEL
from tests.runners import small
from tests.runners.here import Done, boomspec
from tests.runners.test_schemes_run import SPECS, TINY


def tiny_spec(folder: Path) -> Path:
    """The shipped spec and its variants, with a tiny teacher, little text and few tokens."""
    small.write_texts(folder)
    shipped = SPECS / "quickstart-blockwise.yaml"
    variants: dict[str, Any] = yaml.safe_load(shipped.read_text())["variants"]
    variants["polished"]["distill"] |= {"tokens": 256, "blockwise": {"polish": {"tokens": 256}}}
    spec = folder / "spec.yaml"
    spec.write_text(yaml.safe_dump({"extends": str(shipped), "name": "blocks", **TINY, "variants": variants}))
    return spec


@pytest.fixture(scope="module")
def ran(connected: None, no_figures: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Done]:
    folder = tmp_path_factory.mktemp("blocks")
    spec = tiny_spec(folder)
    done = boomspec("run", spec, "--store", folder / "store", "--plain")
    assert done.returncode == 0, done.stdout + done.stderr
    return spec, folder / "store", done


def test_every_size_of_every_variant_has_its_number(ran: tuple[Path, Path, Done]) -> None:
    _, store, _ = ran
    with next(store.glob("comparison/*/results.csv")).open(newline="") as file:
        rows = list(csv.DictReader(file))
    sizes = {label: {row["layers"] for row in rows if row["experiment"] == label} for label in ("base", "blocks")}
    assert sizes["base"] == sizes["blocks"] == {"4", "5", "6", "7", "8"}
    assert {row["experiment"] for row in rows} == {"base", "blocks", "polished"}


def test_blocks_report_their_own_progress_and_run_side_by_side(ran: tuple[Path, Path, Done]) -> None:
    _, store, _ = ran
    graph = read_graph(next(store.glob("runs/*/graph.json")))
    blocks = [node for node in graph.nodes.values() if isinstance(node.task.record, DistillBlock)]
    assert len(blocks) == 8
    for node in blocks:
        lines = (store / "runs").glob(f"*/progress/{node.id}.jsonl")
        reported = [json.loads(line) for line in next(lines).read_text().splitlines()]
        assert any(line.get("unit") == "tokens" and line["done"] == line["total"] for line in reported)
    events = [json.loads(line) for line in next(store.glob("runs/*/events.jsonl")).read_text().splitlines()]
    started = [event for event in events if event["event"] == "task_started"]
    assert len({event["pid"] for event in started if event["task"] in {node.id for node in blocks}}) == 2


def test_the_page_of_one_variant_shows_the_student_and_its_blocks(ran: tuple[Path, Path, Done]) -> None:
    spec, store, _ = ran
    done = boomspec("report", f"{spec}#polished", "--store", store, "--json")
    assert done.returncode == 0, done.stderr
    page = Path(json.loads(done.stdout)["results"]).with_name("report.html").read_text()
    assert "student, block by block" in page


def test_a_size_can_be_exported_and_an_interpolated_one_is_a_model(
    ran: tuple[Path, Path, Done], tmp_path: Path
) -> None:
    spec, store, _ = ran
    done = boomspec("export", f"{spec}#blocks", "5 layers", tmp_path / "model", "--store", store)
    assert done.returncode == 0, done.stdout + done.stderr
    kept = json.loads((tmp_path / "model" / "config.json").read_text())
    assert kept["num_hidden_layers"] == 5
    assert kept["tie_word_embeddings"]


def test_what_is_made_already_is_not_made_again(ran: tuple[Path, Path, Done]) -> None:
    spec, store, _ = ran
    graph = read_graph(next(store.glob("runs/*/graph.json")))
    [states] = [node for node in graph.nodes.values() if node.name == "states before layer 4"]
    kept = FolderStore(store)
    before = kept.path("block_states", states.id).stat().st_mtime_ns
    again = boomspec("run", spec, "--store", store, "--plain")
    assert again.returncode == 0
    assert kept.path("block_states", states.id).stat().st_mtime_ns == before
    assert (
        kept.path("join_blocks", next(n.id for n in graph.nodes.values() if n.task.kind == "join_blocks")) / MODEL
    ).is_dir()
