"""Every shipped spec of a scheme of distillation, made tiny, runs to its report: real Ray, through `boomspec run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from runners.training.on_policy import is_on_policy
from tests.runners import small
from tests.runners.here import boomspec

SPECS = Path(__file__).parents[2] / "specs"
TINY: dict[str, Any] = {
    "teacher": {
        "pretrain": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "attention_heads": 2,
            "tokenizer": {"vocabulary": 300, "train_on": "4KB"},
            "tokens": 512,
            "batch_tokens": 256,
        }
    },
    "data": {"corpus": None, "files": "texts/*.txt", "sequence_length": 16, "held_out": {"every": 4}},
    "distill": {"tokens": 512, "batch_tokens": 256},
    "evaluate": {"held_out": {"max_tokens": 200}},
}


def tiny_spec(folder: Path, name: str, **distill: Any) -> Path:
    """The shipped spec of this name, with a tiny teacher, little text and few tokens; without its variants."""
    small.write_texts(folder)
    spec = folder / "spec.yaml"
    sections = {**TINY, "distill": {**TINY["distill"], **distill}}
    spec.write_text(yaml.safe_dump({"extends": str(SPECS / f"{name}.yaml"), "name": name, **sections}))
    return spec


def made(connected: None, folder: Path, name: str, **distill: Any) -> dict[str, Any]:
    """The results of a run of the spec, and the tasks that it names done."""
    done = boomspec("run", tiny_spec(folder, name, **distill), "--store", folder / "store", "--plain")
    assert done.returncode == 0, done.stdout + done.stderr
    page = Path(done.stdout.split("report: ")[-1].strip())
    results: dict[str, Any] = json.loads(page.with_name("results.json").read_text())
    assert results["missing"] == []
    assert {row["series"] for row in results["results"]} >= {"teacher", "student", "interpolated"}
    return results | {"output": done.stdout, "page": page.read_text()}


def test_a_teacher_assistant(connected: None, tmp_path: Path) -> None:
    assistants = [{"keep": [0, 1, 2, 3, 4, 6]}, {"size": "5 layers", "tokens": 256}]
    found = made(connected, tmp_path, "teacher-assistant", assistants=assistants)
    for label in ("assistant 1", "student before assistant 2", "student"):
        assert f"distill {label}" in found["output"]
        assert label in found["page"]


def test_generations(connected: None, tmp_path: Path) -> None:
    found = made(connected, tmp_path, "born-again")
    for label in ("student generation 1", "student generation 2", "student"):
        assert f"distill {label}" in found["output"]
        assert label in found["page"]


@pytest.mark.parametrize("name", ["sequence-level", "data-free"])
def test_text_that_the_teacher_writes(connected: None, tmp_path: Path, name: str) -> None:
    prompts = {} if name == "data-free" else {"prompt_tokens": 4}
    found = made(connected, tmp_path, name, generated={"tokens": 512, **prompts})
    assert "generate text" in found["output"]
    (written,) = (tmp_path / "store").glob("generate/*/meta.json")
    meta = json.loads(written.read_text())
    assert meta["rows_written"]["unlabelled"] == (1 if name == "data-free" else 4)
    student = next(path for path in (tmp_path / "store").glob("distill/*/artifact.json"))
    assert written.parent.name in json.dumps(json.loads(student.read_text())["task"]["inputs"])
    measured = [json.loads(path.read_text()) for path in (tmp_path / "store").glob("evaluate/*/artifact.json")]
    (text,) = (path.name for path in (tmp_path / "store").glob("tokenize/*") if len(path.name) == 64)
    assert {record["task"]["inputs"]["tokens"] for record in measured} == {text}


def test_an_offline_teacher(connected: None, tmp_path: Path) -> None:
    found = made(connected, tmp_path, "offline-teacher")
    assert "teacher outputs" in found["output"]
    [folder] = [path for path in (tmp_path / "store" / "teacher_outputs").iterdir() if (path / "meta.json").is_file()]
    assert json.loads((folder / "meta.json").read_text())["rows"] == 32


def test_text_that_the_student_writes(connected: None, tmp_path: Path) -> None:
    on_policy = {"share": 0.5, "prompt_tokens": 4, "teacher_share": 0.2}
    made(connected, tmp_path, "on-policy", on_policy=on_policy, tokens=1024)
    (metrics,) = (tmp_path / "store").glob("distill/*/metrics.jsonl")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [row["on_policy"] for row in rows] == [int(is_on_policy(0, step, 0.5)) for step in range(4)]
    assert {row["on_policy"] for row in rows} == {0, 1}


def test_minillm(connected: None, tmp_path: Path) -> None:
    """The variant of that name: its fields, in the place of those of the base."""
    on_policy = {"share": 0.5, "prompt_tokens": 4, "teacher_share": 0.2, "long_range": 1.0}
    losses = {"kl": None, "reverse_kl": {"weight": 1.0}}
    made(connected, tmp_path, "on-policy", on_policy=on_policy, losses=losses, tokens=1024)
    (metrics,) = (tmp_path / "store").glob("distill/*/metrics.jsonl")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [row["long_range"] != 0 for row in rows] == [is_on_policy(0, step, 0.5) for step in range(4)]


def test_two_teachers(connected: None, tmp_path: Path) -> None:
    found = made(connected, tmp_path, "two-teachers")
    assert "pretrain teacher 2" in found["output"]
    assert "teacher 2" in found["page"]
