"""What a run would do with each task, and the reason that it gives."""

import errno
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from boomspec.commands.cli import main
from boomspec.core.graph import Node, Source, Task, TaskGraph
from boomspec.core.identity import file_digest
from boomspec.core.tasks import Evaluate, HeldOut, Record, Tokenize
from boomspec.plan.plan import RunPlan, plan_tasks
from boomspec.store import RECORD, FolderStore
from tests.boomspec.conftest import Writer
from tests.boomspec.troubled_disk import failing
from tests.messages import wording

CHAIN = ("tokens", "model", "score")


class Chain:
    """text -> tokens -> model -> score, beside text -> other; score and other are targets."""

    def __init__(self, folder: Path) -> None:
        self.text = folder / "text.txt"
        self.text.write_text("words")
        self.store = FolderStore(folder / "store")
        source = Source(
            "text",
            {"files": [{"sha256": file_digest(self.text), "bytes": 5}], "format": "text"},
            {"files": [str(self.text)]},
        )
        tokens = Task(_tokenize(), {"text": source.id})
        other = Task(_tokenize(skip=1), {"text": source.id})
        model = Task(_evaluate(8), {"model": tokens.id})
        score = Task(_evaluate(16), {"model": model.id, "tokens": tokens.id})
        self.tasks = {"tokens": tokens, "other": other, "model": model, "score": score}
        nodes = {task.id: Node(task, name) for name, task in self.tasks.items()}
        self.graph = TaskGraph("chain", nodes, {source.id: source}, (score.id, other.id))

    def make(self, *names: str) -> None:
        for name in names:
            task = self.tasks[name]
            with self.store.workspace(task.kind, task.id) as workspace:
                (workspace.path / "payload").write_text(name)
                self.store.publish(workspace, task.kind, task.id, task.identity(), {})

    def payload(self, name: str) -> Path:
        return self.store.path(self.tasks[name].kind, self.tasks[name].id) / "payload"

    def plan(self, *, checksums: bool = False) -> RunPlan:
        return plan_tasks(self.graph, self.store, checksums=checksums)

    def actions(self, *, checksums: bool = False) -> dict[str, str]:
        return {name: self.plan(checksums=checksums).steps[task.id].action for name, task in self.tasks.items()}

    def reason(self, name: str, *, checksums: bool = False) -> str:
        return self.plan(checksums=checksums).steps[self.tasks[name].id].reason


def _tokenize(skip: int = 0) -> Record:
    return Tokenize(text_field="text", skip=skip, held_out_every=0, held_out_offset=0)


def _evaluate(sequence_length: int) -> Record:
    return Evaluate(measure=HeldOut(sequence_length=sequence_length), precision="fp32")


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain(tmp_path)


def test_everything_runs_in_an_empty_store(chain: Chain) -> None:
    assert chain.actions() == dict.fromkeys(("tokens", "other", "model", "score"), "run")
    assert chain.reason("score") == wording("gc.not_store")
    assert not chain.store.root.exists()  # planning writes nothing


def test_a_target_that_is_there_needs_nothing_of_what_it_was_made_from(chain: Chain) -> None:
    chain.make("score", "other")
    assert chain.actions() == {"tokens": "unneeded", "model": "unneeded", "score": "reuse", "other": "reuse"}
    assert chain.reason("tokens") == wording("plan.not_store_but_nothing")


def test_what_is_there_is_reused_whether_or_not_it_is_needed(chain: Chain) -> None:
    chain.make("tokens", "model", "score", "other")
    assert set(chain.actions().values()) == {"reuse"}


def test_only_what_is_missing_runs_and_only_what_it_needs_is_reused(chain: Chain) -> None:
    chain.make("tokens", "model", "other")
    assert chain.actions() == {"tokens": "reuse", "model": "reuse", "score": "run", "other": "reuse"}
    chain.store.discard("tokenize", chain.tasks["other"].id)
    assert chain.actions()["other"] == "run"


def test_a_damaged_artifact_is_made_anew_and_says_what_is_wrong_with_it(chain: Chain) -> None:
    chain.make(*CHAIN, "other")
    chain.payload("score").unlink()
    assert chain.actions() == {"tokens": "reuse", "model": "reuse", "score": "run", "other": "reuse"}
    assert chain.reason("score") == "damaged: payload is missing"
    assert (chain.payload("score").parent / RECORD).exists()  # planning removes nothing


def test_changed_contents_are_found_only_when_checksums_are_asked_for(chain: Chain) -> None:
    chain.make(*CHAIN, "other")
    chain.payload("score").write_text("SCORE")
    assert chain.actions()["score"] == "reuse"
    assert chain.actions(checksums=True)["score"] == "run"
    assert chain.reason("score", checksums=True) == wording("plan.damaged_payload_does_not")


def test_a_source_that_is_gone_blocks_what_reads_it_and_all_behind(chain: Chain) -> None:
    chain.text.unlink()
    assert chain.actions() == dict.fromkeys(("tokens", "other", "model", "score"), "blocked")
    assert chain.reason("tokens") == wording("plan.text_gone_does_not", text=chain.text)
    assert chain.reason("model") == wording("plan.input_tokens_blocked")
    assert chain.reason("score") == wording("plan.input_model_blocked")


def test_a_source_that_is_gone_does_not_matter_once_its_artifacts_are_there(chain: Chain) -> None:
    chain.make("tokens", "other")
    chain.text.unlink()
    assert chain.actions() == {"tokens": "reuse", "other": "reuse", "model": "run", "score": "run"}


def test_a_plan_lists_its_tasks_in_the_order_of_the_graph(chain: Chain) -> None:
    chain.make("tokens")
    plan = chain.plan()
    assert list(plan.steps) == list(chain.graph.nodes)
    assert plan.ids("run") == [chain.tasks[name].id for name in ("other", "model", "score")]


@pytest.mark.parametrize("reason", [errno.EACCES, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("name", [RECORD, "payload"])
def test_what_cannot_be_read_and_is_not_needed_is_named_and_stops_nothing(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, name: str, reason: int
) -> None:
    chain.make("tokens", "model", "score")
    file = chain.payload("model").with_name(name)
    failing(monkeypatch, file, reason)
    assert chain.actions() == {"tokens": "reuse", "other": "run", "model": "unneeded", "score": "reuse"}
    assert chain.reason("model") == wording("plan.cannot_read_but_nothing", file=file, strerror=os.strerror(reason))
    assert [i for i, step in chain.plan().steps.items() if step.unread] == [chain.tasks["model"].id]


@pytest.mark.parametrize("name", [RECORD, "payload"])
def test_what_cannot_be_read_and_is_needed_blocks_what_needs_it_and_nothing_else(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    chain.make("tokens", "model")
    file = chain.payload("model").with_name(name)
    failing(monkeypatch, file, errno.EIO)
    assert chain.actions() == {"tokens": "reuse", "other": "run", "model": "blocked", "score": "blocked"}
    assert chain.reason("model") == wording("plan.cannot_read_input_output", file=file)
    assert chain.reason("score") == wording("plan.input_model_blocked")
    monkeypatch.undo()
    assert chain.actions()["model"] == "reuse"  # nothing has touched it


def test_a_kind_whose_folder_cannot_be_listed_is_named(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    chain.make("other", "tokens", "model", "score")
    place, scandir = chain.store.root / "evaluate", os.scandir

    def refusing(path: Path) -> object:
        if Path(path) == place:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert chain.actions() == {"tokens": "reuse", "other": "reuse", "model": "unneeded", "score": "blocked"}
    assert chain.reason("score") == wording("plan.cannot_read_permission_denied", place=place)


def test_the_command_warns_of_what_cannot_be_read(specs: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = specs.compiled()
    store = FolderStore(specs.folder / "store")
    for node in compiled.graph.nodes.values():
        with store.workspace(node.task.kind, node.id) as workspace:
            store.publish(workspace, node.task.kind, node.id, node.task.identity(), {})
    teacher = next(node for node in compiled.graph.nodes.values() if node.task.kind == "pretrain")
    file = store.path("pretrain", teacher.id) / RECORD
    failing(monkeypatch, file, errno.EIO)
    planned = CliRunner().invoke(main, ["plan", str(specs.folder / "spec.yaml"), "--json"], catch_exceptions=False)
    assert planned.exit_code == 0
    warned = json.loads(planned.stdout)["warnings"]
    assert wording("plan.cannot_read_input_output_error", name=teacher.name, file=file) in warned
