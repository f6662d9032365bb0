"""A number that is not finite is an error or missing, and never NaN or Infinity in a file that is called JSON."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from boomspec.core.errors import BoomspecError
from boomspec.core.json_text import computed_json, json_text, transformers_floats
from boomspec.core.losses import CrossEntropy, Losses
from boomspec.core.tasks import Baseline, Calibration, Distill, Evaluate, HeldOut, LaCo, LayerChoice, PatchOrder, Search
from runners.evaluation.held_out import WindowLosses, metrics
from runners.runtime.context import Progress
from runners.tasks import baseline, distill, evaluate, search
from tests.messages import wording
from tests.runners import tiny
from tests.runners.lm_eval_tasks import strict, table

ROOT = Path(__file__).parents[2]
# What these write are texts, paths and counts, or a config as it was read: no number that was computed.
PLAIN = {
    "boomspec/commands/cli.py", "boomspec/commands/kuberay.py",
    "boomspec/commands/slurm.py", "boomspec/compile/lm_eval/tasks.py", "boomspec/core/graph.py",
    "boomspec/models/checkpoint.py", "boomspec/models/outline.py", "boomspec/plan/changes.py", "boomspec/spec",
    "boomspec/store/leases.py", "boomspec/store/local_cache.py", "runners/assembly/checkpoint_writer.py",
    "runners/checking/tiny.py", "runners/cli/export.py", "runners/cli/submit.py", "runners/data/text_tokenizer.py",
    "runners/data/tokens.py", "runners/report/collect.py", "runners/report/run_notes.py",
}  # fmt: skip
CALIBRATION = Calibration(sequences=4, sequence_length=12, seed=0)


def test_whatever_writes_numbers_as_json_refuses_those_that_are_none() -> None:
    loose = []
    for path in sorted(path for room in ("boomspec", "runners") for path in (ROOT / room).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if any(name == plain or name.startswith(f"{plain}/") for plain in PLAIN):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) not in ("json.dumps", "json.dump"):
                continue
            strictly = any(k.arg == "allow_nan" and ast.unparse(k.value) == "False" for k in node.keywords)
            of_environment = "os.environ" in path.read_text(encoding="utf-8") and ast.unparse(node.args[0]) == "value"
            if not strictly and not of_environment:
                loose.append(f"{name}:{node.lineno}")
    assert loose == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_text_holds_null_where_a_number_is_none(value: float) -> None:
    assert strict(json_text({"a": [1.5, value], "b": {"c": (value,)}})) == {"a": [1.5, None], "b": {"c": [None]}}
    assert json_text({"a": 1.5}) == '{"a": 1.5}'
    with pytest.raises(BoomspecError, match=wording("not_finite.search_scores_not_finite")):
        computed_json({"scores": [1.0, {"x": value}]}, "the search")
    written = json.dumps(transformers_floats({"limit": [0.0, value]}), allow_nan=False)
    assert strict(written)["limit"][1].keys() == {"__float__"}


def test_progress_is_json_whatever_it_is_told(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "progress.jsonl", every_seconds=0.0)
    progress.record({"step": 0, "loss": math.inf})
    progress.update(1, 2, unit="tokens", loss=math.nan)
    [line] = [strict(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert (line["loss"], line["rows"]) == (None, [{"step": 0, "loss": None}])


# --- a teacher that gives NaN ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.token_artifact(tmp_path_factory.mktemp("tokens") / "artifact")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, tokens: Path) -> Path:
    """An artifact whose second layer gives NaN, as weights that overflowed do."""
    folder = tmp_path_factory.mktemp("teacher")
    model = tiny.model(layers=4)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    model.save_pretrained(folder / "model")
    return folder


def student(folder: Path) -> Path:
    tiny.model(layers=2, seed=1).save_pretrained(folder / "model")
    return folder


SEARCHES = {
    "layers": LayerChoice(method="block_influence", count=2),
    "layers one by one": LayerChoice(method="cosine_greedy", count=3),
    "order": PatchOrder(
        method="klpatch", kept=(0, 2), direction="teacher_to_candidate", positions="all", reduction="token_mean"
    ),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_that_measures_no_numbers_chooses_nothing(teacher, tokens, tmp_path, name) -> None:
    record = Search(choice=SEARCHES[name], calibration=CALIBRATION, precision="fp32")
    context = tiny.context(tmp_path, record, teacher=teacher, tokens=tokens, student=student(tmp_path / "student"))
    with pytest.raises(BoomspecError, match=wording("not_finite.search_not_finite")):
        search.run(context)
    assert not (context.path / "search.json").exists()


def test_laco_that_measures_no_numbers_merges_nothing(teacher, tokens, tmp_path) -> None:
    record = LaCo(
        layers=3, merge=2, lowest=0, highest=4, interval=1, threshold=0.5, calibration=CALIBRATION, precision="fp32"
    )
    with pytest.raises(BoomspecError, match=wording("not_finite.laco_similarity_without_layers")):
        baseline.run(tiny.context(tmp_path, Baseline(build=record), teacher=teacher, tokens=tokens))


def test_a_training_stops_at_its_first_step_and_makes_no_student_of_nan(teacher, tokens, tmp_path) -> None:
    losses = Losses(cross_entropy=CrossEntropy())
    record = Distill(
        kept=(0, 1), initial="teacher", train_embedding=True, losses=losses, recipe=tiny.recipe(precision="fp32")
    )
    with pytest.raises(BoomspecError, match=wording("not_finite.training_stopped_step_loss")) as caught:
        distill.run(tiny.context(tmp_path, record, teacher=teacher, tokens=tokens))
    assert "lower optimizer.lr" in str(caught.value)
    assert not list((tmp_path / "payload").rglob("metrics.jsonl"))


def test_held_out_text_of_a_model_that_gives_no_numbers_is_missing(teacher, tokens, tmp_path) -> None:
    record = Evaluate(measure=HeldOut(sequence_length=16), precision="fp32")
    context = tiny.context(tmp_path, record, model=teacher, tokens=tokens)
    evaluate.run(context)
    results = strict((context.path / "results.json").read_text())
    assert {line["metric"]: line["value"] for line in table(context.path)} == dict.fromkeys(
        ("loss", "perplexity", "bits_per_byte"), ""
    )
    assert all(line["note"] == wording("evaluate_counts.no_value_not_finite_nan") for line in table(context.path))
    assert results["results"]["held_out"]["loss,none"] is None
    assert results["missing"]["held_out"].keys() == {"loss,none", "perplexity,none", "bits_per_byte,none"}
    assert any("no value" in note for note in tiny.notes(context))


def test_a_perplexity_beyond_what_a_float_holds_is_infinite_and_the_loss_is_not() -> None:
    found = metrics(WindowLosses(np.array([800.0, 900.0]), np.array([4, 4])), text_bytes=8)
    assert found["loss,none"] == 850.0
    assert found["perplexity,none"] == math.inf
