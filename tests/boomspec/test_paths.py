"""What comes as data (records, graphs, indices, task folders) never leads out of its folder."""

import ast
import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from boomspec.core.errors import BoomspecError, SpecError
from boomspec.core.graph_file import read_graph
from boomspec.models.checkpoint import read_checkpoint
from boomspec.models.folder import INDEX
from boomspec.models.trust import warnings
from boomspec.store import RECORD, FolderStore, Store
from boomspec.store.record import is_inside
from tests.boomspec.conftest import SPEC, Writer
from tests.messages import wording

ROOT = Path(__file__).parents[2]
KIND, TASK = "tokenize", "ab" * 32
IDENTITY = {"kind": KIND, "version": 1, "params": {}, "inputs": {}}
LEADING_OUT: tuple[object, ...] = (
    "../secret",
    "../../secret",
    "/etc/passwd",
    "model/../../secret",
    "",
    ".",
    "a//b",
    "a\\b",
    "a\0b",
    None,
    7,
)


@pytest.fixture
def artifact(tmp_path: Path) -> tuple[Store, Path]:
    store = FolderStore(tmp_path / "store")
    (store.root / KIND).mkdir(parents=True)
    (store.root / KIND / "secret").write_text("tokens")
    with store.workspace(KIND, TASK) as workspace:
        (workspace.path / "train.bin").write_text("tokens")
        folder = store.publish(workspace, KIND, TASK, IDENTITY, {})
    assert store.damage(KIND, TASK, checksums=True) is None
    return store, folder


@pytest.mark.parametrize("name", LEADING_OUT)
def test_a_record_names_files_of_its_own_folder_only(artifact: tuple[Store, Path], name: object) -> None:
    store, folder = artifact
    record = json.loads((folder / RECORD).read_text())
    record["files"][0]["path"] = name
    (folder / RECORD).write_text(json.dumps(record))
    assert not is_inside(name)
    assert store.record(KIND, TASK) is None
    assert not store.has(KIND, TASK)
    assert store.damage(KIND, TASK) == wording("paths.missing_unreadable", record=RECORD)


def test_names_below_a_folder_are_inside() -> None:
    assert all(map(is_inside, ("a", "model/config.json", "a/b..c/...", ".hidden")))


@pytest.mark.parametrize("target", ["../secret", "/etc/hostname"])
def test_a_link_that_leads_out_of_an_artifact_is_damage(artifact: tuple[Store, Path], target: str) -> None:
    store, folder = artifact
    (folder / "train.bin").unlink()
    (folder / "train.bin").symlink_to(target)
    record = json.loads((folder / RECORD).read_text())
    record["files"][0]["bytes"] = (folder / "train.bin").stat().st_size
    (folder / RECORD).write_text(json.dumps(record))
    assert store.damage(KIND, TASK) == wording("paths.train_bin_link_leads")


def test_a_store_may_be_named_by_a_link(artifact: tuple[Store, Path], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("store")
    for root in (tmp_path / "link", tmp_path / "store" / ".." / "link"):
        assert FolderStore(root).damage(KIND, TASK, checksums=True) is None


@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "a/b", "..", ".hidden", "", "a\nb", "x" * 65])
def test_the_name_of_a_graph_is_that_of_one_folder(specs: Writer, tmp_path: Path, name: str) -> None:
    path = tmp_path / "graph.json"
    specs.compiled().graph.write(path)
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "name": name}))
    with pytest.raises(BoomspecError, match=wording("paths.no_name_graph_file")):
        read_graph(path)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "a/model.safetensors"])
def test_shards_lie_beside_their_index(tmp_path: Path, shard: str) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(BoomspecError, match=wording("paths.index_no_file_folder", shard=shard)):
        read_checkpoint(tmp_path)


# --- lm-eval tasks are code: templates, and Python by !function ------------------------------------


CHOICE = "task: one\noutput_type: multiple_choice\ntest_split: test\n"


def tasks(folder: Path, text: str) -> str:
    """A spec whose task folder holds one task of this text."""
    (folder / "tasks").mkdir()
    (folder / "tasks" / "one.yaml").write_text(CHOICE + text)
    return SPEC.replace("held_out: {}\n", "held_out: {}\n  tasks: [one]\n  tasks_folder: tasks\n")


def test_a_task_takes_functions_and_templates_of_its_own_folder(specs: Writer, folder: Path) -> None:
    spec = tasks(folder, "include: _base\nprocess_docs: !function helpers.process\n")
    (folder / "tasks" / "_base").write_text("output_type: multiple_choice\n")
    (folder / "tasks" / "helpers.py").write_text("def process(docs):\n    raise SystemExit\n")
    graph = specs.compiled(spec).graph
    assert warnings(graph) == []
    before = graph.id
    (folder / "tasks" / "helpers.py").write_text("def process(docs):\n    return docs\n")
    assert specs.compiled(spec).graph.id != before  # the code is part of what identifies a result


def outside_include(folder: Path) -> str:
    (folder / "other.yaml").write_text("doc_to_text: '{{ x }}'\n")
    return "include: ../other.yaml\n"


def outside_function(folder: Path) -> str:
    (folder / "elsewhere.py").write_text("def process(docs): ...\n")
    (folder / "tasks" / "helpers.py").symlink_to("../elsewhere.py")
    return "process_docs: !function helpers.process\n"


def absolute_include(folder: Path) -> str:
    (folder / "other.yaml").write_text("doc_to_text: x\n")
    return f"include: {folder / 'other.yaml'}\n"


@pytest.mark.parametrize("make", [outside_include, outside_function, absolute_include])
def test_what_a_task_takes_from_elsewhere_is_an_error(specs: Writer, folder: Path, make) -> None:
    spec = tasks(folder, "")
    text = make(folder)
    (folder / "tasks" / "one.yaml").write_text(CHOICE + text)
    with pytest.raises(SpecError, match=wording("paths.takes_something_outside_folder")):
        specs.compiled(spec)


def test_lm_evals_own_templates_may_be_included(specs: Writer, folder: Path) -> None:
    stock = Path(importlib.util.find_spec("lm_eval").origin).parent / "tasks" / "arc" / "arc_easy.yaml"
    assert specs.compiled(tasks(folder, f"include: {stock}\ndataset_path: owner/name\n")).graph


@pytest.mark.parametrize("metric", ["metric: someone/theirs", "metric: f1\n    hf_evaluate: true"])
def test_a_metric_that_is_code_of_the_hub_is_an_error(specs: Writer, folder: Path, metric: str) -> None:
    with pytest.raises(SpecError, match=wording("paths.code_hub")):
        specs.compiled(tasks(folder, f"metric_list:\n  - {metric}\n"))
    (folder / "tasks" / "one.yaml").write_text(CHOICE + "metric_list:\n  - metric: acc\n")
    assert specs.compiled(tasks_again := specs.SPEC.replace("held_out: {}\n", "tasks: [one]\n  tasks_folder: tasks\n"))
    (folder / "tasks" / "helpers.py").write_text("def score(doc, results):\n    return {'score': 1.0}\n")
    (folder / "tasks" / "one.yaml").write_text(
        CHOICE + "process_results: !function helpers.score\nmetric_list:\n  - metric: score\n"
    )
    assert specs.compiled(tasks_again)  # there it is a name for what the function returns


def test_a_task_folder_elsewhere_is_said_aloud(folder: Path) -> None:
    spec = tasks(folder, "")
    (folder / "inner").mkdir()
    for file in folder.glob("*.txt"):
        file.rename(folder / "inner" / file.name)
    graph = Writer(folder / "inner").compiled(spec.replace("tasks_folder: tasks", "tasks_folder: ../tasks")).graph
    assert warnings(graph) == [wording("paths.lm_eval_tasks_tasks")]


@pytest.mark.parametrize(
    ("named", "is_said"),
    [
        ("{folder}/tasks", True),  # an absolute path
        ("sub/../../tasks", True),
        ("link", True),
        ("{folder}/inner/tasks", False),
        ("../inner/tasks", False),
    ],
)
def test_where_a_task_folder_lies_counts_and_not_how_it_is_named(folder: Path, named: str, is_said: bool) -> None:
    spec = tasks(folder, "")
    inner = folder / "inner"
    (inner / "sub").mkdir(parents=True)
    shutil.copytree(folder / "tasks", inner / "tasks")
    (inner / "link").symlink_to("../tasks")
    for file in folder.glob("*.txt"):
        file.rename(inner / file.name)
    text = spec.replace("tasks_folder: tasks", f"tasks_folder: {named.format(folder=folder)}")
    said = warnings(Writer(inner).compiled(text).graph)
    assert [wording("paths.outside_spec_own_folder") in line for line in said] == [True] * is_said


# --- nothing is unpickled --------------------------------------------------------------------------


_REFUSED_CALLS = ("torch.load", "np.load", "numpy.load", "eval", "exec", "yaml.unsafe_load", "yaml.full_load")


def test_no_module_reads_what_can_run_code_when_it_is_read() -> None:
    """pickle and its relatives, torch.load, numpy's pickled arrays, YAML that makes objects."""
    refused = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    files = [path for room in ("boomspec", "runners") for path in (ROOT / room).rglob("*.py")]
    assert len(files) > 150
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                assert not refused & {name.split(".")[0] for name in names}, path
            if isinstance(node, ast.Call):
                called, keywords = ast.unparse(node.func), {keyword.arg for keyword in node.keywords}
                assert called not in ("torch.load", "eval", "exec", "yaml.unsafe_load", "yaml.full_load"), (
                    path,
                    called,
                )
                assert "allow_pickle" not in keywords, path
                if called.endswith("from_pretrained") and "Tokenizer" not in called and "Config" not in called:
                    assert "use_safetensors" in keywords, path
