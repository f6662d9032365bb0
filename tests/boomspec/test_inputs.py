"""What a graph reads from folders, kept in a store in a folder and at a URL for machines that do not have it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from boomspec.core.errors import BoomspecError
from boomspec.core.graph import Source
from boomspec.core.identity import file_digest, folder_digest
from boomspec.core.task_data import digests
from boomspec.store import FolderStore, Store, open_store
from boomspec.store.sources import SOURCE, is_present, missing_files, readable_source, upload, upload_missing, uploaded
from tests.messages import wording
from tests.runners.corpora import text_source
from tests.runners.s3 import S3, s3_server


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with s3_server() as server:
        yield server


@pytest.fixture(params=["folder", "url"])
def store(request: pytest.FixtureRequest, tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "folder":
        return FolderStore(tmp_path / "store")
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("BOOMSPEC_CACHE", str(tmp_path / "cache"))
    return open_store(s3.make_bucket("b-" + format(abs(hash(request.node.name)), "x")[:12]))


def text(folder: Path) -> Source:
    folder.mkdir()
    files = [folder / "one.txt", folder / "two.txt"]
    for file in files:
        file.write_text(f"the text of {file.name}\n")
    return text_source(files)


def model(folder: Path) -> Source:
    (folder / "code").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "code/modeling.py"):
        (folder / name).write_text(name)
    files = {name: file_digest(folder / name) for name in ("config.json", "model.safetensors")}
    trusted = {"code/modeling.py": file_digest(folder / "code" / "modeling.py")}
    return Source("model", {"sha256": files, "code": trusted}, {"folder": str(folder), "name": "models/tiny"})


def tasks(folder: Path) -> Source:
    (folder / "own").mkdir(parents=True)
    (folder / "own" / "task.yaml").write_text("task: own\n")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "utils.pyc").write_text("compiled")
    return Source("lm_eval_tasks", {"folder": folder_digest(folder)}, {"folder": str(folder)})


def tasks_with_data(folder: Path) -> Source:
    """A folder of tasks; beside it a file and a folder with data, which a task names."""
    source = tasks(folder / "tasks")
    (folder / "data" / "part").mkdir(parents=True)
    (folder / "data" / "part" / "rows.json").write_text('["a"]')
    (folder / "more.json").write_text('["b"]')
    paths = [folder / "data", folder / "more.json"]
    asks = {"dataset_kwargs": {"data_files": {"test": [str(paths[1]), str(folder / "tasks" / "own" / "x.json")]}}}
    places = [{"path": str(path), "is_file": path.is_file()} for path in paths]
    return Source(
        source.kind,
        {**source.identity, "data": [digests(path) for path in paths]},
        {**source.location, "data": places, "asks": {"own": asks}},
    )


def only_data(folder: Path) -> Source:
    """The data of a task that comes with lm-eval."""
    folder.mkdir()
    (folder / "rows.json").write_text("[a]")
    data = {"data": [digests(folder)]}
    return Source("lm_eval_tasks", {"lm_eval": "1", **data}, {"data": [{"path": str(folder), "is_file": False}]})


SOURCES = pytest.mark.parametrize("make", [text, model, tasks, tasks_with_data, only_data])


@SOURCES
def test_what_was_kept_is_read_from_the_store_where_it_is_not_on_the_machine(make, store: Store, tmp_path: Path):
    source = make(tmp_path / "there")
    assert list(upload_missing(store, [source])) == [(source, keep_size(tmp_path / "there"))]
    assert list(upload_missing(store, [source])) == []
    shutil.rmtree(tmp_path / "there")
    assert missing_files(source)
    elsewhere = readable_source(store, source)
    assert elsewhere == source
    assert is_present(elsewhere)
    assert str(tmp_path / "there") not in str(elsewhere.location)


def keep_size(folder: Path) -> int:
    files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return sum(path.stat().st_size for path in files)


@SOURCES
def test_a_machine_reads_its_own_files_where_they_are_what_the_graph_says(make, store: Store, tmp_path: Path):
    source = make(tmp_path / "here")
    upload(store, source)
    assert readable_source(store, source) is source


@SOURCES
def test_other_files_in_the_same_place_are_not_taken_for_them(make, store: Store, tmp_path: Path):
    source = make(tmp_path / "here")
    upload(store, source)
    changed = next(path for path in (tmp_path / "here").rglob("*.*") if path.suffix in (".txt", ".json", ".yaml"))
    changed.write_bytes(changed.read_bytes().swapcase())
    assert not is_present(source)
    assert is_present(readable_source(store, source))


@SOURCES
def test_what_is_nowhere_stays_as_it_is(make, store: Store, tmp_path: Path):
    source = make(tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone")
    assert readable_source(store, source) is source
    assert uploaded(store, [source]) == set()
    assert list(upload_missing(store, [source])) == []


def test_tasks_from_the_store_name_the_data_that_lies_there(store: Store, tmp_path: Path):
    source = tasks_with_data(tmp_path / "there")
    upload(store, source)
    shutil.rmtree(tmp_path / "there")
    found = readable_source(store, source).location
    outside, inside = found["asks"]["own"]["dataset_kwargs"]["data_files"]["test"]
    assert Path(outside).read_text() == '["b"]'
    assert Path(inside).parent == Path(found["folder"]) / "own"
    assert (Path(found["data"][0]["path"]) / "part" / "rows.json").is_file()


def test_a_file_that_was_added_to_a_folder_of_data_is_noticed(tmp_path: Path):
    source = only_data(tmp_path / "data")
    assert is_present(source)
    (tmp_path / "data" / "more.json").write_text("[]")
    assert not is_present(source)


def test_weights_that_have_changed_are_not_kept(store: Store, tmp_path: Path):
    """A large file is not read to see whether it is here, but it is read when it is copied."""
    source = model(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(b"0" * (1 << 20 | 1))
    source.identity["sha256"][weights.name] = file_digest(weights)
    weights.write_bytes(b"1" * (1 << 20 | 1))
    assert is_present(source)
    with pytest.raises(BoomspecError, match=wording("inputs.changed_since_spec_compiled", weights=weights)):
        upload(store, source)
    assert uploaded(store, [source]) == set()


def test_the_hub_is_not_copied(store: Store):
    source = Source("model", {"hub": "owner/name", "revision": "0" * 40}, {"hub": "owner/name", "asked": None})
    assert list(upload_missing(store, [source])) == []
    assert readable_source(store, source) is source
    assert SOURCE not in {path.name for path in store.root.glob("*")}
