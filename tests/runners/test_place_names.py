"""Errors name the teacher, not the hidden folder of the store that something was made of it in."""

from __future__ import annotations

from pathlib import Path

import pytest

from boomspec.core.errors import BoomspecError
from boomspec.core.graph import Source, TaskGraph
from boomspec.store import FolderStore, Store
from boomspec.store.sources import readable_source, upload
from runners.executor import worker
from runners.runtime.job import Input, Job
from runners.runtime.journal import make_subfolders
from runners.runtime.task_errors import named, names_of, renamed
from tests.messages import wording
from tests.runners import foreign, small, tiny

_SECTIONS = {"teacher": {"pretrain": None, "model": "teacher"}, "student": {"keep": [0, 3]}}


def _graph(folder: Path, store: Store) -> TaskGraph:
    foreign.write(folder / "teacher", native=True, tokenizer=False)
    foreign.without_a_weight(folder / "teacher")
    return small.compiled(small.write_spec(folder, **_SECTIONS), store).graph


def _failure(folder: Path, store: Store) -> str:
    """Why the distillation of a teacher that lacks a weight of its last layer fails, as its worker says."""
    graph = _graph(folder, store)
    node = next(node for node in graph.nodes.values() if node.task.kind == "distill")
    tokens = node.task.inputs["tokens"]
    with store.workspace("tokenize", tokens) as workspace:
        tiny.token_artifact(workspace.path / "made", vocabulary=300)
        for path in (workspace.path / "made").iterdir():
            path.rename(workspace.path / path.name)
        (workspace.path / "made").rmdir()
        store.publish(workspace, "tokenize", tokens, graph.nodes[tokens].task.identity(), {})
    inputs = {role: Input(i, source=graph.sources.get(i)) for role, i in node.task.inputs.items()}
    address = str(store.root)
    job = Job(node, inputs, {tokens: "tokenize"}, address, address, Path("runs/x"), "", None, False)
    make_subfolders(job.folder(store))
    outcome = worker.execute([job])[node.id]
    assert outcome.state == "failed"
    return outcome.error


def test_a_model_that_is_made_in_a_hidden_folder_is_named_by_its_teacher(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    said = _failure(tmp_path, store)
    assert wording("place_names.model_distill_student_makes") in said
    assert str(store.root) not in said


def test_a_teacher_that_the_store_keeps_is_called_as_the_spec_calls_it(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    graph = _graph(tmp_path, store)
    source = next(source for source in graph.sources.values() if source.kind == "model")
    upload(store, source)
    (tmp_path / "teacher").rename(tmp_path / "elsewhere")
    found = readable_source(store, source)
    folder = Path(found.location["folder"])
    assert store.root in folder.parents
    names = names_of("distill student", {"teacher": Input(source.id, source=found)}, tmp_path / "store" / ".hidden")
    with pytest.raises(BoomspecError) as caught, named(names):
        raise BoomspecError(f"{folder}: holds nothing", hint=f"look into {folder / 'config.json'}")
    assert str(caught.value) == wording("place_names.model_teacher_holds_nothing")


def test_a_teacher_in_its_own_folder_keeps_its_path(tmp_path: Path) -> None:
    source = Source("model", {"sha256": {}}, {"folder": str(tmp_path / "mine"), "name": "mine"})
    names = names_of("x", {"teacher": Input(source.id, source=source)}, tmp_path / ".work")
    assert renamed(f"{tmp_path}/mine: is empty", names) == f"{tmp_path}/mine: is empty"
    assert renamed(f"{tmp_path}/.work/model/config.json: bad", names) == (
        wording("place_names.model_makes_model_mine", name="x")
    )


def test_a_folder_of_the_hubs_cache_is_called_by_its_repository() -> None:
    cached = f"/root/.cache/huggingface/hub/models--maker--my-model/snapshots/{'0a' * 20}"
    assert renamed(f"{cached}: 2 weights; see '{cached}/config.json'", {}) == (
        wording("place_names.maker_my_model_weights", name="maker/my-model/config.json")
    )


def test_the_errors_of_libraries_are_named_too(tmp_path: Path) -> None:
    names = {tmp_path: "the model of teacher"}
    with pytest.raises(OSError, match="no file named") as caught, named(names):
        raise OSError(f"no file named model.safetensors found in directory {tmp_path}.")
    assert str(caught.value) == wording("place_names.no_file_named_model")
    with pytest.raises(FileNotFoundError) as caught, named(names):
        (tmp_path / "gone").read_text()
    assert str(caught.value) == wording("place_names.errno_no_such_file")
