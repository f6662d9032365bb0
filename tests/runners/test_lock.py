"""A lock of what lies on a hub: the branch moves, the hub goes away, and a run that keeps to its lock."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from boomspec.core.errors import BoomspecError
from boomspec.core.execution import Execution
from boomspec.plan.lock import read_lock
from runners.tasks import tokenize
from tests.messages import wording
from tests.runners import tiny
from tests.runners.corpora import context, record, write_jsonl, write_texts
from tests.runners.hub_server import COMMIT, hub_of

MOVED = "f" * 40
SPEC = {
    "boomspec": 1,
    "name": "locked",
    "teacher": {"model": "maker/teacher"},
    "student": {"model": "./student", "keep": [0, 2]},
    "data": {"files": "text/*.txt", "sequence_length": 16, "held_out": {"every": 3}},
    "evaluate": {"held_out": {}, "precision": "fp32"},
    "execution": {"store": "store", "cpus": 1},
}


def call(folder: Path, endpoint: str, *command: str) -> subprocess.CompletedProcess:
    """Run `boomspec` with the hub at `endpoint`; "": a hub that gives no answer."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint or "http://127.0.0.1:9",
        "HF_HOME": str(folder / "cache"),
        "HF_HUB_OFFLINE": "0",
    }
    command = (sys.executable, "-m", "boomspec", *command)
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A spec with a teacher on the hub (of which there are two commits), a student and a text."""
    for name, seed in {"teacher": 1, "moved": 2}.items():
        tiny.model(layers=4, seed=seed).save_pretrained(tmp_path / name)
        for file in (tiny.token_artifact(tmp_path / f"{name}-tokens") / "tokenizer").iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    tiny.model(layers=2, seed=3).save_pretrained(tmp_path / "student")
    (tmp_path / "text").mkdir()
    for i in range(6):
        (tmp_path / "text" / f"{i}.txt").write_text("1 2 3 " * 40)
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(SPEC))
    return tmp_path


def test_a_locked_run_keeps_its_commit_when_the_branch_moves_and_works_when_the_hub_is_gone(folder: Path) -> None:
    heads: dict[str, str] = {}
    models = {"maker/teacher": folder / "teacher"}
    with hub_of(models, heads=heads, versions={MOVED: folder / "moved"}) as (endpoint, log):
        written = call(folder, endpoint, "lock", "spec.yaml")
        assert written.returncode == 0, written.stderr
        lock = read_lock(folder / "spec.lock.json")
        teacher = lock.models["maker/teacher"]
        assert teacher.revision == COMMIT
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(teacher.files)
        assert teacher.files["model.safetensors"].startswith("sha256:")
        assert teacher.files["config.json"].startswith("git:")
        assert not any(line.startswith("GET") and "safetensors" in line and "bytes" not in line for line in log)

        heads["maker/teacher"] = MOVED
        checked = call(folder, endpoint, "lock", "--check", "spec.yaml", "--json")
        assert checked.returncode == 1
        drifted = {tuple(entry["field"][2:]): entry for entry in json.loads(checked.stdout)["drifted"]}
        assert set(drifted) == {("revision",), ("files", "model.safetensors")}
        assert next(iter(drifted)) == ("revision",)
        assert (drifted["revision",]["locked"], drifted["revision",]["now"]) == (COMMIT, MOVED)

        run = call(folder, endpoint, "run", "--locked", "spec.yaml", "--plain")
        assert run.returncode == 0, run.stdout + run.stderr
        (run_folder,) = (folder / "store" / "runs").iterdir()
        used = read_lock(run_folder / "lock.json")
        assert used.models["maker/teacher"] == teacher
        assert used.models["./student"].files["model.safetensors"].startswith("sha256:")
        assert used.packages == lock.packages
        (rows,) = used.rows.values()
        assert rows is not None
        assert (rows.train.documents, rows.held_out.documents) == (4, 2)
        assert lock.rows == dict.fromkeys(used.rows)  # they were not read yet

        heads["maker/teacher"] = COMMIT
        filled = call(folder, endpoint, "lock", "spec.yaml")
        assert wording("lock.nothing_documents_train_documents") in filled.stdout
        assert read_lock(folder / "spec.lock.json") == used

    before = (folder / "spec.lock.json").read_bytes()
    for command in (["lock"], ["lock", "--check"], ["run", "--locked", "--plain"]):
        offline = call(folder, "", *command, "spec.yaml")
        assert offline.returncode == 0, (command, offline.stdout, offline.stderr)
    assert (folder / "spec.lock.json").read_bytes() == before
    (folder / "text" / "0.txt").write_text("4 5 6 " * 40)
    refused = call(folder, "", "run", "--locked", "spec.yaml")
    assert refused.returncode == 2
    assert wording("lock.texts_text_txt_files") in refused.stderr
    assert "nothing was run" in refused.stderr


def test_a_data_set_is_locked_by_its_commit_and_says_what_is_missing_without_hub_or_lock(tmp_path: Path) -> None:
    pretrain = {"layers": 4, "hidden_size": 16, "intermediate_size": 32, "attention_heads": 2, "tokens": 1024}
    pretrain |= {"batch_tokens": 128, "tokenizer": {"vocabulary": 300, "train_on": "1KB"}}
    training = {"tokens": 1024, "batch_tokens": 128}
    spec = {"boomspec": 1, "name": "hub", "teacher": {"pretrain": pretrain}, "student": {"keep": 2}}
    spec |= {"data": {"dataset": "maker/text", "sequence_length": 16, "max_tokens": 1025}, "distill": training}
    spec |= {"evaluate": {"tasks": ["arc_easy"]}}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    missing = call(tmp_path, "", "lock", "spec.yaml")
    assert missing.returncode == 2
    assert wording("lock.data_dataset_data_set", name="maker/text") in missing.stderr
    heads: dict[str, str] = {}
    with hub_of({}, ["maker/text", "allenai/ai2_arc"], heads=heads) as (endpoint, _):
        assert call(tmp_path, endpoint, "lock", "spec.yaml").returncode == 0
        lock = read_lock(tmp_path / "spec.lock.json")
        assert lock.datasets == {"maker/text": COMMIT, "allenai/ai2_arc": COMMIT}
        heads |= {"maker/text": MOVED, "allenai/ai2_arc": MOVED}
        checked = call(tmp_path, endpoint, "lock", "--check", "spec.yaml")
        assert checked.returncode == 1
        moved = f"{COMMIT[:12]} -> {MOVED[:12]}"
        assert checked.stdout.splitlines()[1:] == [
            f"  datasets: allenai/ai2_arc: {moved}",
            f"  datasets: maker/text: {moved}",
        ]
        # The commit of the text comes from the lock; lm-eval loads its data sets itself, so that one must not move.
        refused = call(tmp_path, endpoint, "run", "--locked", "spec.yaml")
        assert refused.returncode == 2
        assert f"datasets: allenai/ai2_arc: {moved}" in refused.stderr
        assert "maker/text" not in refused.stderr
    offline = call(tmp_path, "", "lock", "--check", "spec.yaml")
    assert offline.returncode == 0, offline.stdout + offline.stderr


# --- rows ------------------------------------------------------------------------------------------


def rows(folder: Path) -> dict:
    return json.loads((folder / "meta.json").read_text())["rows"]


def test_the_digest_of_the_rows_is_of_the_documents_and_their_order_and_not_of_their_files(tmp_path: Path) -> None:
    texts = ["one", "two", "", "three", "four"]
    sources = {
        "text": write_texts(tmp_path / "text", texts),
        "rows": write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in texts]),
        "turned": write_texts(tmp_path / "turned", [*texts[:3], "four", "three"]),
        "joined": write_texts(tmp_path / "joined", ["onetwo", "", "", "three", "four"]),
    }
    found = {}
    for name, source in sources.items():
        made = context(tmp_path / f"{name}-made", record(held_out_every=0), text=source)
        tokenize.run(made)
        found[name] = rows(made.path)["train"]
    assert found["text"] == found["rows"]
    assert found["text"]["documents"] == 4
    assert len({found[name]["sha256"] for name in ("text", "turned", "joined")}) == 3


def test_rows_that_are_not_those_of_the_lock_fail_the_task(tmp_path: Path) -> None:
    first = context(tmp_path / "first", record(), text=write_texts(tmp_path / "a"))
    tokenize.run(first)
    again = context(tmp_path / "again", record(), text=write_texts(tmp_path / "a"))
    again.execution = Execution(rows=rows(first.path))
    tokenize.run(again)
    other = context(tmp_path / "other", record(), text=write_texts(tmp_path / "b", ["another text"] * 8))
    other.execution = Execution(rows=rows(first.path))
    with pytest.raises(BoomspecError, match=wording("lock.rows_train_text_not")):
        tokenize.run(other)
