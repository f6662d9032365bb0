"""One task in its worker, without Ray: outcomes, logs, waiting for another run."""

import multiprocessing
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from boomspec.core.execution import Execution, TrainingOptions
from boomspec.core.graph import Node, Source, Task
from boomspec.core.tasks import Evaluate, HeldOut, Tokenize
from boomspec.store import FolderStore
from runners.runtime.job import Input, Job
from runners.runtime.journal import log_file, progress_file
from runners.runtime.output import captured
from tests.messages import wording
from tests.runners.corpora import as_pipe, feed, record, tokenizer_source, wait_until, write_jsonl, write_texts
from tests.runners.small import execute_one

TRAINING = record()


def job(
    folder: Path, text: Source, record: Tokenize = TRAINING, *, tokenizer: Source | None = None, run: str = "run1"
) -> Job:
    sources = {"text": text} | ({"tokenizer": tokenizer} if tokenizer else {})
    node = Node(Task(record, {role: source.id for role, source in sources.items()}), "tokenize data")
    for name in ("logs", "progress"):
        (folder / "run" / name).mkdir(parents=True, exist_ok=True)
    return Job(
        node=node,
        inputs={role: Input(source.id, source=source) for role, source in sources.items()},
        input_kinds={},
        store=str(folder / "store"),
        reads=str(folder / "store"),
        run_folder=folder / "run",
        run=run,
        commit="c0ffee",
        hub=False,
    )


def test_a_task_is_made_once_and_then_reused(tmp_path: Path) -> None:
    made = job(tmp_path, write_texts(tmp_path / "texts"))
    assert execute_one(made).state == "made"
    assert execute_one(made).state == "reused"
    record = FolderStore(made.store).record("tokenize", made.node.id)
    assert record is not None
    provenance = record["provenance"]
    assert provenance["commit"] == "c0ffee"
    assert provenance["packages"]["tokenizers"]
    assert provenance["hardware"]["cpus"] == os.cpu_count()
    assert sorted(path.name for path in (Path(made.store) / "tokenize").iterdir()) == [made.node.id]


def test_an_error_of_the_body_is_an_outcome_and_its_trace_is_in_the_log(tmp_path: Path) -> None:
    failing = job(tmp_path, write_jsonl(tmp_path / "rows.jsonl", [{"body": "one"}]))
    outcome = execute_one(failing)
    assert (outcome.state, outcome.cause) == ("failed", "tokenize data")
    assert wording("executor.rows_jsonl_no_field", name="text") in outcome.error
    assert wording("worker.traceback_most_recent_call") in log_file(failing.run_folder, failing.node.id).read_text()
    assert not list((Path(failing.store) / "tokenize").iterdir())


def test_an_input_that_is_damaged_is_named(tmp_path: Path) -> None:
    tokens = job(tmp_path, write_texts(tmp_path / "texts"))
    execute_one(tokens)
    folder = FolderStore(tokens.store).path("tokenize", tokens.node.id)
    reader = Task(Evaluate(measure=HeldOut(sequence_length=8), precision="fp32"), {"tokens": tokens.node.id})
    reading = replace(
        tokens,
        node=Node(reader, "evaluate"),
        inputs={"tokens": Input(tokens.node.id)},
        input_kinds={tokens.node.id: "tokenize"},
    )
    (folder / "train.bin").unlink()
    outcome = execute_one(reading)
    assert outcome.state == "failed"
    assert "input tokens" in outcome.error
    assert "train.bin is missing" in outcome.error


def test_two_runs_of_one_task_at_the_same_time_make_it_once(tmp_path: Path) -> None:
    """The first is held in the middle by a text that comes through a pipe; the second waits and reuses."""
    source = write_texts(tmp_path / "texts")
    trained = job(tmp_path, source)
    execute_one(trained)
    tokenizer = tokenizer_source(FolderStore(trained.store).path("tokenize", trained.node.id) / "tokenizer")
    jobs = [
        job(tmp_path, source, record(train_tokenizer=None), tokenizer=tokenizer, run=run) for run in ("run1", "run2")
    ]
    pipe = Path(source.location["files"][0])
    text = as_pipe(pipe)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        outcomes = [pool.apply_async(execute_one, (job,)) for job in jobs]
        wait_until(lambda: "another run is at work" in _read(progress_file(jobs[0].run_folder, jobs[0].node.id)))
        feed(pipe, text)
        states = sorted(outcome.get(120).state for outcome in outcomes)
    assert states == ["made", "reused"]
    assert FolderStore(jobs[0].store).damage("tokenize", jobs[0].node.id, checksums=True) is None


def _read(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def test_execution_options_reach_neither_identity_nor_artifact_id(tmp_path: Path) -> None:
    plain = job(tmp_path, write_texts(tmp_path / "texts"))
    other = replace(
        plain, node=replace(plain.node, execution=Execution(cpus=2, training=TrainingOptions(micro_batch=1)))
    )
    assert execute_one(plain).state == "made"
    assert execute_one(other).state == "reused"


def test_what_a_task_prints_is_in_its_log_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG")
    log = tmp_path / "task.log"
    with captured(log):
        print("python says wJalrXUtnFEMI/K7MDENG")
        os.write(2, b"native code says wJalrXUtnFEMI/K7MDENG\nand this has no end")
    with captured(log):
        print("the next attempt")
    text = log.read_text()
    assert "python says <AWS_SECRET_ACCESS_KEY>\n" in text
    assert wording("worker.native_code_says_aws") in text
    assert text.endswith("the next attempt\n")


def test_a_log_can_be_read_while_its_task_still_runs(tmp_path: Path) -> None:
    log = tmp_path / "task.log"
    with captured(log):
        sys.stdout.write("step 1\n")
        sys.stdout.flush()
        wait_until(lambda: _read(log) == "step 1\n")
