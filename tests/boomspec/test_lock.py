"""`boomspec lock` without a hub: what is pinned, what counts as drift, what is refused."""

import importlib.metadata
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from boomspec.commands.cli import main
from boomspec.compile.lm_eval.tasks import read_task, stock_folder, task_index
from boomspec.core.machine import installed
from boomspec.models.checkpoint import encode_header
from boomspec.plan.lock import read_lock
from tests.boomspec.conftest import SPEC
from tests.messages import wording

TASK = """\
include: _template
task: {name}
dataset_path: maker/questions
process_docs: !function helpers.process
output_type: multiple_choice
training_split: train
test_split: test
metadata: {{version: 2.0}}
"""
GROUP = """\
group: exam
task:
  - one
  - task: two
    num_fewshot: 1
metadata:
  version: 1.0
"""
EXISTING = """\
boomspec: 1
name: tiny
teacher: {model: ./models/teacher}
student: {model: ./models/student, keep: [0, 2]}
"""


def boomspec(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def drifted(spec: Path, *options: str) -> dict[str, tuple[str | None, str | None]]:
    """What `--check` says has drifted: field -> (locked, now)."""
    done = boomspec("lock", "--check", "--json", *options, spec)
    answer = json.loads(done.output)
    assert answer["holds"] == (answer["drifted"] == [])
    assert done.exit_code == (0 if answer["holds"] else 1)
    return {"/".join(entry["field"]): (entry["locked"], entry["now"]) for entry in answer["drifted"]}


@pytest.fixture
def spec(folder: Path) -> Path:
    """A spec of eight text files with a task folder of its own."""
    tasks = folder / "tasks" / "exam"
    tasks.mkdir(parents=True)
    (tasks / "_template").write_text("output_type: multiple_choice\ntag: [quick]\n")
    for name in ("one", "two"):
        (tasks / f"{name}.yaml").write_text(TASK.format(name=name))
    (tasks / "exam.yaml").write_text(GROUP)
    (tasks / "helpers.py").write_text("def process(docs):\n    return docs\n")
    (tasks / "unused.yaml").write_text("task: unused\ndataset_path: maker/others\n")
    path = folder / "spec.yaml"
    path.write_text(SPEC.replace("held_out: {}\n", "held_out: {}\n  tasks: [exam]\n  tasks_folder: tasks\n"))
    return path


def lock_of(spec: Path) -> Path:
    return spec.with_name("spec.lock.json")


def test_a_lock_pins_texts_tasks_and_packages_and_says_what_is_not_known_yet(spec: Path) -> None:
    printed = boomspec("lock", spec).output
    assert "text *.txt: 8 files" in printed
    assert "rows: not read yet" in printed
    lock = read_lock(lock_of(spec))
    assert sorted(lock.texts["*.txt"].files) == [f"{i}.txt" for i in range(8)]
    assert lock.tasks["exam"].versions == {"exam": "1.0", "one": "2.0", "two": "2.0"}
    assert lock.tasks["exam"].datasets == {"maker/questions": None}
    assert list(lock.rows.values()) == [None]
    assert lock.packages.items() >= installed().items()
    assert drifted(spec) == {}


def test_specs_that_differ_in_their_ending_have_locks_of_their_own(spec: Path) -> None:
    other = spec.with_suffix(".yml")
    other.write_text(spec.read_text())
    boomspec("lock", spec)
    boomspec("lock", other)
    assert {path.name for path in spec.parent.glob("*.lock.json")} == {"spec.lock.json", "spec.yml.lock.json"}
    (spec.parent / "0.txt").write_text("another text")
    boomspec("lock", other)
    assert drifted(other) == {}
    assert drifted(spec)


def test_the_same_inputs_give_the_same_bytes_on_another_machine(spec: Path, tmp_path_factory, monkeypatch) -> None:
    boomspec("lock", spec)
    first = lock_of(spec).read_text()
    assert str(spec.parent) not in first
    other = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(spec.parent, other)
    lock_of(other / "spec.yaml").unlink()
    monkeypatch.chdir(other)
    boomspec("lock", "spec.yaml")
    assert lock_of(other / "spec.yaml").read_text() == first
    sections = json.loads(first)
    assert list(sections["texts"]["*.txt"]["files"]) == sorted(sections["texts"]["*.txt"]["files"])


def test_files_outside_of_the_specs_folder_are_named_without_their_machine(spec: Path, tmp_path_factory) -> None:
    corpus = tmp_path_factory.mktemp("corpus") / "pile"
    (corpus / "a").mkdir(parents=True)
    for name in ("a/1.txt", "2.txt"):
        (corpus / name).write_text("text " * 100)
    for i in range(4):
        (corpus / "a" / f"x{i}.txt").write_text("text " * 100)
    spec.write_text(spec.read_text().replace('"*.txt"', f'["{corpus}/**/*.txt", "0.txt"]'))
    boomspec("lock", spec)
    assert str(corpus) not in lock_of(spec).read_text()
    text = read_lock(lock_of(spec)).texts["pile/**/*.txt, 0.txt"]
    assert {"a/1.txt", "2.txt", "0.txt"} < set(text.files)


@pytest.mark.parametrize("old", ["lr: 3e-3", "weight: 0.1", "keep: [0, 2, 4]"])
def test_an_edit_that_no_name_hides_is_no_drift(spec: Path, old: str) -> None:
    boomspec("lock", spec)
    new = {"lr: 3e-3": "lr: 1e-3", "weight: 0.1": "weight: 0.3", "keep: [0, 2, 4]": "keep: [0, 3]"}[old]
    assert old in spec.read_text()
    spec.write_text(spec.read_text().replace(old, new))
    assert drifted(spec) == {}


def test_check_names_every_file_that_changed_came_or_went(spec: Path) -> None:
    boomspec("lock", spec)
    (spec.parent / "3.txt").write_text("another text\n" * 40)
    (spec.parent / "4.txt").unlink()
    (spec.parent / "9.txt").write_text("a new text\n" * 40)
    (spec.parent / "tasks" / "exam" / "helpers.py").write_text("def process(docs):\n    return docs[:1]\n")
    found = drifted(spec)
    files = "texts/*.txt/files"
    assert set(found) == {f"{files}/3.txt", f"{files}/4.txt", f"{files}/9.txt", "tasks/exam/sha256"}
    assert found[f"{files}/4.txt"][1] is None
    assert found[f"{files}/9.txt"][0] is None
    printed = boomspec("lock", "--check", spec)
    assert wording("lock.texts_txt_files_txt") in printed.output
    before = lock_of(spec).read_bytes()
    changed = boomspec("lock", spec).output
    assert "spec.lock.json: changed" in changed
    assert wording("lock.files_txt_nothing_sha") in changed
    assert lock_of(spec).read_bytes() != before
    assert drifted(spec) == {}
    assert "spec.lock.json: unchanged" in boomspec("lock", spec).output


def test_a_package_that_changes_results_is_drift_unless_packages_are_ignored(spec: Path) -> None:
    boomspec("lock", spec)
    data = json.loads(lock_of(spec).read_text())
    data["packages"] |= {"torch": "2.0.0", "ray": "2.0.0", "python": "3.11.0"}
    lock_of(spec).write_text(json.dumps(data))
    assert drifted(spec) == {"packages/torch": ("2.0.0", importlib.metadata.version("torch"))}
    assert drifted(spec, "--ignore-packages") == {}


def test_without_the_runners_a_lock_says_so_and_a_later_one_adds_their_packages(spec: Path, monkeypatch) -> None:
    version = importlib.metadata.version

    def without(package: str) -> str:
        if package in ("torch", "transformers"):
            raise importlib.metadata.PackageNotFoundError(package)
        return version(package)

    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", without)
        installed.cache_clear()
        assert "not installed here" in boomspec("lock", spec).output
        assert "torch" not in read_lock(lock_of(spec)).packages
    installed.cache_clear()
    assert drifted(spec) == {}
    assert f"packages: torch: (nothing) -> {version('torch')}" in boomspec("lock", spec).output


def model(folder: Path, layers: int) -> None:
    """A model that is only laid out: a config, a tokenizer file, and weights of zeros."""
    folder.mkdir(parents=True)
    names = {"model.embed_tokens.weight": (8, 4), "model.norm.weight": (4,), "lm_head.weight": (8, 4)}
    names |= {f"model.layers.{i}.mlp.weight": (4, 4) for i in range(layers)}
    entries, offset = {}, 0
    for name, shape in names.items():
        end = offset + 4 * (shape[0] * shape[1] if len(shape) == 2 else shape[0])
        entries[name] = ("F32", shape, offset, end)
        offset = end
    (folder / "model.safetensors").write_bytes(encode_header(entries) + bytes(offset))
    config = {"model_type": "llama", "num_hidden_layers": layers, "vocab_size": 8, "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")


def test_the_files_of_local_models_are_locked_one_by_one_tokenizers_too(folder: Path) -> None:
    spec = folder / "spec.yaml"
    spec.write_text(EXISTING)
    model(folder / "models" / "teacher", 4)
    model(folder / "models" / "student", 2)
    boomspec("lock", spec)
    lock = read_lock(lock_of(spec))
    assert set(lock.models) == {"./models/teacher", "./models/student"}
    assert set(lock.models["./models/teacher"].files) == {"config.json", "model.safetensors", "tokenizer.json"}
    (folder / "models" / "teacher" / "tokenizer.json").write_text('{"other": 1}')
    assert list(drifted(spec)) == ["models/./models/teacher/files/tokenizer.json"]


def test_one_lock_is_of_all_experiments_of_a_file(spec: Path) -> None:
    (spec.parent / "other").mkdir()
    for i in range(8):
        (spec.parent / "other" / f"{i}.txt").write_text(f"other {i}\n" * 40)
    spec.write_text(spec.read_text() + 'variants:\n  other: {data: {files: "other/*.txt"}}\n')
    boomspec("lock", spec)
    lock = read_lock(lock_of(spec))
    assert set(lock.texts) == {"*.txt", "other/*.txt"}
    assert len(lock.rows) == 2
    refused = boomspec("lock", f"{spec}#other")
    assert (refused.exit_code, wording("lock.lock_whole_file") in refused.output) == (2, True)
    # A run of one experiment needs only what that one names.
    (spec.parent / "0.txt").write_text("changed\n" * 40)
    refused = boomspec("run", "--locked", f"{spec}#base")
    assert refused.exit_code == 2
    assert wording("lock.texts_txt_files_txt_sha") in refused.output


# --- what is refused, and nothing is lost ----------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: "<<<<<<< HEAD\n" + text, wording("lock.cannot_read_lock")),
        (lambda text: "[]", "lock version None"),
        (
            lambda text: text.replace('"boomspec_lock": 1', '"boomspec_lock": 2'),
            wording("lock.lock_version_but_boomspec"),
        ),
        (lambda text: text.replace("sha256:", "md5:", 1), wording("lock.texts_txt_files_txt_string")),
        (lambda text: text.replace('"texts"', '"text"', 1), wording("diff.file_altered")),
        (
            lambda text: text.replace('"spec": "tiny"', '"spec": "large"'),
            wording("lock.lock_spec", name="large", name2="tiny"),
        ),
        (lambda text: "\udcff" * 3, wording("lock.cannot_read_lock")),
    ],
)
def test_a_lock_that_cannot_be_used_is_refused_and_stays_as_it_is(spec: Path, edit, message: str) -> None:
    boomspec("lock", spec)
    broken = edit(lock_of(spec).read_text()).encode("utf-8", "surrogateescape")
    lock_of(spec).write_bytes(broken)
    for command in (["lock"], ["lock", "--check"], ["run", "--locked"]):
        refused = boomspec(*command, spec)
        assert refused.exit_code == 2, command
        assert message in refused.output, command
        assert lock_of(spec).read_bytes() == broken
    assert not (spec.parent / "store" / "runs").exists()


def test_without_a_lock_check_and_a_locked_run_say_how_to_make_one(spec: Path) -> None:
    for command in (["lock", "--check"], ["run", "--locked"]):
        refused = boomspec(*command, spec)
        assert refused.exit_code == 2
        assert wording("lock.there_no_lock_yet") in refused.output
        assert f"boomspec lock {spec}" in refused.output
    answer = json.loads(boomspec("lock", "--check", "--json", spec).output)
    assert wording("lock.there_no_lock_yet") in answer["error"]["message"]


def test_a_compiled_graph_has_no_lock_to_keep_to(spec: Path) -> None:
    graph = spec.with_name("graph.json")
    boomspec("graph", spec, "-o", graph)
    refused = boomspec("run", "--locked", graph)
    assert (refused.exit_code, "--locked takes a spec" in refused.output) == (2, True)


def test_ignoring_packages_goes_with_comparing_them(spec: Path) -> None:
    for command in (["lock"], ["run"]):
        assert boomspec(*command, "--ignore-packages", spec).exit_code == 2


# --- the files of lm-eval tasks --------------------------------------------------------------------


def test_a_group_consists_of_its_members_what_they_include_and_their_functions(spec: Path) -> None:
    root = spec.parent / "tasks"
    assert task_index(root).names == {"exam", "one", "two", "unused", "quick"}
    parts = {path.name for path in read_task("exam", root).files}
    assert parts == {"exam.yaml", "one.yaml", "two.yaml", "_template", "helpers.py"}
    assert {path.name for path in read_task("one", root).files} == {"one.yaml", "_template", "helpers.py"}


def test_stock_tasks_are_known_with_their_versions_data_sets_and_modules() -> None:
    root = stock_folder()
    hellaswag = read_task("hellaswag", root)
    assert {path.name for path in hellaswag.files} == {"hellaswag.yaml", "utils.py"}
    assert hellaswag.datasets == {"Rowan/hellaswag": None}
    assert list(hellaswag.versions) == ["hellaswag"]
    mmlu = read_task("mmlu", root)
    assert len(mmlu.versions) >= 57
    assert list(mmlu.datasets) == ["cais/mmlu"]
    assert read_task("ai2_arc", root).versions.keys() == {"arc_easy", "arc_challenge"}


def test_the_index_of_stock_tasks_is_remembered_and_a_damaged_memory_is_read_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    task_index.cache_clear()
    read = task_index(stock_folder())
    (memory,) = tmp_path.rglob("lm-eval-tasks-*.json")
    data = json.loads(memory.read_text())
    data["defined"]["remembered"] = "somewhere.yaml"
    memory.write_text(json.dumps(data))
    task_index.cache_clear()
    assert task_index(stock_folder()).defined == {**read.defined, "remembered": "somewhere.yaml"}
    memory.write_text(memory.read_text()[:100])
    task_index.cache_clear()
    assert task_index(stock_folder()) == read
