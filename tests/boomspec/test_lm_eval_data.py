"""Data that lm-eval tasks name in files: part of their identity wherever it lies, or an error at `plan`."""

import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from boomspec.commands.cli import main
from boomspec.compile.compiler import Compiled
from boomspec.core.errors import SpecError
from boomspec.core.graph import Source
from boomspec.core.task_data import ASKS, DATA
from boomspec.plan.changes import compare
from boomspec.plan.origins import side
from tests.boomspec.conftest import Writer

TASK = """\
task: own
dataset_path: {path}
{options}
output_type: multiple_choice
test_split: test
metric_list: [{{metric: acc}}]
"""


def text_of(*, path: str, options: str) -> str:
    """A task's YAML; files without the name of a split are the split `train`."""
    text = TASK.format(path=path, options=options)
    return text.replace("split: test", "split: train") if re.search(r'data_files"?: (?!\{)', text) else text


ROWS = '{"context": "x", "choices": ["a", "b"], "label": 0}\n'


class Tasks:
    """A folder of tasks beside a spec, and data beside that folder."""

    def __init__(self, specs: Writer) -> None:
        self.specs, self.folder = specs, specs.folder
        self.write("outside/rows.jsonl", ROWS)
        self.write("outside/more.jsonl", ROWS)
        self.write("tasks/inside.jsonl", ROWS)

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def compiled(self, path: str = "json", options: object = None, *, task: str = "own", yaml: str = "") -> Compiled:
        named = "" if options is None else f"dataset_kwargs: {json.dumps(options)}"
        self.write("tasks/own.yaml", yaml or text_of(path=path, options=named))
        evaluate = {"tasks_folder": "tasks", "tasks": [task]}
        return self.specs.edited(("evaluate", evaluate))

    def source(self, *arguments: object, **named: str) -> Source:
        found = self.compiled(*arguments, **named).graph.sources.values()
        return next(source for source in found if source.kind == "lm_eval_tasks")

    def says(self, *arguments: object, **named: str) -> str:
        with pytest.raises(SpecError) as caught:
            self.compiled(*arguments, **named)
        return str(caught.value)


@pytest.fixture
def tasks(specs: Writer) -> Tasks:
    return Tasks(specs)


OUTSIDE = {
    "a file": ("json", {"data_files": "../outside/rows.jsonl"}),
    "a list": ("json", {"data_files": ["../outside/more.jsonl", "../outside/rows.jsonl"]}),
    "files by split": ("json", {"data_files": {"test": "../outside/rows.jsonl", "train": ["inside.jsonl"]}}),
    "a pattern": ("json", {"data_files": {"test": "../outside/*.jsonl"}}),
    "a deep pattern": ("json", {"data_files": {"test": "../**/rows.jsonl"}}),
    "a folder": ("json", {"data_dir": "../outside"}),
    "files of a folder": ("json", {"data_dir": "../outside", "data_files": {"test": "rows.jsonl"}}),
    "a folder as data set": ("../outside", None),
    "a part of a folder as data set": ("../outside", {"data_files": {"test": "rows.jsonl"}}),
    "a file for a hub's data set": ("owner/name", {"data_files": {"test": "ABSOLUTE/outside/rows.jsonl"}}),
}


def ask(tasks: Tasks, name: str) -> tuple[str, object]:
    path, options = OUTSIDE[name]
    return path, json.loads(json.dumps(options).replace("ABSOLUTE", str(tasks.folder)))


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_edit_of_data_outside_of_the_folder_is_another_task(tasks: Tasks, name: str) -> None:
    before = tasks.source(*ask(tasks, name))
    assert tasks.source(*ask(tasks, name)).id == before.id
    tasks.write("outside/rows.jsonl", ROWS.replace('"label": 0', '"label": 1'))
    assert tasks.source(*ask(tasks, name)).id != before.id


@pytest.mark.parametrize("name", [name for name in OUTSIDE if "ABSOLUTE" not in json.dumps(OUTSIDE[name][1])])
def test_where_the_data_lies_is_no_part_of_the_identity(tasks: Tasks, name: str, tmp_path_factory) -> None:
    before = tasks.source(*ask(tasks, name))
    elsewhere = tmp_path_factory.mktemp("moved") / "deep"
    shutil.copytree(tasks.folder, elsewhere)
    after = Tasks(Writer(elsewhere)).source(*ask(tasks, name))
    assert after.id == before.id
    assert str(tasks.folder) not in json.dumps(after.location)
    assert str(tasks.folder) not in json.dumps(after.identity)


def test_what_nobody_reads_is_no_part_of_it(tasks: Tasks) -> None:
    before = tasks.source("json", {"data_files": {"test": "../outside/rows.jsonl"}})
    tasks.write("outside/more.jsonl", "{}")
    tasks.write("outside/.hidden", "{}")
    assert tasks.source("json", {"data_files": {"test": "../outside/rows.jsonl"}}).id == before.id
    whole = tasks.source("../outside")
    tasks.write("outside/.git/objects", "1")
    assert tasks.source("../outside").id == whole.id


def test_data_inside_of_the_folder_is_named_absolutely_and_covered_by_its_digest(tasks: Tasks) -> None:
    source = tasks.source("json", {"data_files": {"test": "inside.jsonl"}})
    assert DATA not in source.identity
    named = source.location[ASKS]["own"]["dataset_kwargs"]["data_files"]
    assert named == {"test": [str((tasks.folder / "tasks" / "inside.jsonl").resolve())]}
    tasks.write("tasks/inside.jsonl", ROWS * 2)
    assert tasks.source("json", {"data_files": {"test": "inside.jsonl"}}).id != source.id


def test_paths_start_at_the_folder_of_the_file_that_says_them(tasks: Tasks) -> None:
    """Of an included file, of a group's own words for a member, and of the task itself."""
    tasks.write("tasks/deep/base.yaml", text_of(path="json", options="dataset_kwargs: {data_files: rows.jsonl}"))
    tasks.write("tasks/deep/rows.jsonl", ROWS)
    tasks.write(
        "tasks/groups/all.yaml",
        "group: all\ntask: [{task: own, dataset_kwargs: {data_files: ../../outside/more.jsonl}}, {task: new, "
        "output_type: multiple_choice, test_split: train, dataset_path: json, "
        "dataset_kwargs: {data_files: ../../outside/rows.jsonl}}]\n",
    )
    found = tasks.source(yaml="task: own\ninclude: deep/base.yaml\n").location[ASKS]["own"]
    assert found["dataset_kwargs"]["data_files"] == [str((tasks.folder / "tasks/deep/rows.jsonl").resolve())]
    found = tasks.source(yaml="task: own\ninclude: deep/base.yaml\n", task="all").location[ASKS]
    named = {name: Path(ask["dataset_kwargs"]["data_files"][0]).name for name, ask in found.items()}
    assert named == {"own": "more.jsonl", "all::new": "rows.jsonl"}


def test_a_link_in_the_folder_to_data_outside_is_followed(tasks: Tasks) -> None:
    (tasks.folder / "tasks" / "linked").symlink_to(tasks.folder / "outside")
    before = tasks.source("json", {"data_files": "linked/rows.jsonl"})
    tasks.write("outside/rows.jsonl", ROWS * 3)
    assert tasks.source("json", {"data_files": "linked/rows.jsonl"}).id != before.id


def test_a_folder_with_brackets_is_no_pattern(tasks: Tasks) -> None:
    tasks.write("exp[1]/rows.jsonl", ROWS)
    tasks.write("exp1/rows.jsonl", ROWS * 2)
    found = tasks.source("json", {"data_files": "../exp[1]/rows.jsonl"}).location[DATA]
    assert [Path(place["path"]).parent.name for place in found] == ["exp[1]"]


REFUSED = {
    "a missing file": ("json", {"data_files": {"test": "nowhere.jsonl"}}, "there is no data at 'nowhere.jsonl'"),
    "a pattern that matches nothing": ("json", {"data_files": "*.csv"}, r"there is no data at '*.csv'"),
    "one of several that is missing": ("json", {"data_files": ["inside.jsonl", "x.jsonl"]}, "no data at 'x.jsonl'"),
    "a missing folder": ("./nowhere", None, "there is no data at './nowhere'"),
    "a missing folder of files": ("json", {"data_dir": "nowhere"}, "there is no data at 'nowhere'"),
    "a file as data set": ("../outside/rows.jsonl", None, "is a file, and lm-eval takes folders"),
    "a folder as file": ("json", {"data_files": "../outside"}, "is a folder"),
    "no files at all": ("json", None, "reads files, and none are named"),
    "a web address": ("json", {"data_files": "https://example.org/x.json"}, "can change without anybody noticing"),
    "a hub file of a branch": ("json", {"data_files": "hf://datasets/a/b/x.json"}, "can change without anybody"),
    "a hub file of a name": ("json", {"data_files": "hf://datasets/a/b@main/x.json"}, "can change without anybody"),
    "an empty folder": ("../empty", None, "there is no data in"),
    "a saved data set": ("../saved", None, "was written by save_to_disk"),
    "a loading script": ("../script", None, "is a loading script"),
    "a folder that looks like a pattern": ("../exp[1]", None, "takes *, ? and [ in its path for patterns"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_data_that_cannot_be_read_or_known_is_an_error_at_the_task_s_line(tasks: Tasks, name: str) -> None:
    (tasks.folder / "empty").mkdir()
    tasks.write("saved/test/state.json", "{}")
    tasks.write("script/script.py", "")
    tasks.write("exp[1]/rows.jsonl", ROWS)
    path, options, message = REFUSED[name]
    said = tasks.says(path, options)
    assert message in said
    assert "lm-eval task 'own'" in said
    assert "evaluate.tasks[0]" in said or "evaluate.tasks.0" in said
    assert "hint" in said.lower() or "\n" in said


def test_a_hub_file_of_a_commit_is_pinned(tasks: Tasks) -> None:
    pinned = f"hf://datasets/owner/name@{'0' * 40}/x.json"
    found = tasks.source("json", {"data_files": {"test": pinned}}).location[ASKS]["own"]
    assert found["dataset_kwargs"]["data_files"] == {"test": [pinned]}


def test_names_on_the_hub_stay_names(tasks: Tasks) -> None:
    source = tasks.source("owner/name", {"data_files": {"test": "data/x.json"}})
    assert source.location.keys() & {ASKS, DATA} == set()


def test_a_plan_and_a_lock_notice_answers_that_were_edited(tasks: Tasks) -> None:
    """The command line: what is stored is not taken for the edited task's, and the lock does not hold."""
    tasks.compiled("json", {"data_files": {"test": "../outside/rows.jsonl"}})
    spec = str(tasks.folder / "spec.yaml")

    def run(*command: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, command)
        return done.exit_code, done.output

    assert run("lock", spec)[0] == 0
    assert run("lock", "--check", "--ignore-packages", spec)[0] == 0
    tasks.write("outside/rows.jsonl", ROWS.replace('"label": 0', '"label": 1'))
    code, said = run("lock", "--check", "--ignore-packages", spec)
    assert code == 1
    assert "rows.jsonl" in said


def test_tasks_that_read_the_same_file_are_each_told_where_it_is(tasks: Tasks) -> None:
    options = "dataset_kwargs: {data_files: ../outside/rows.jsonl}"
    text = text_of(path="json", options=options)
    tasks.write("tasks/own.yaml", text)
    tasks.write("tasks/other.yaml", text.replace("task: own", "task: other"))
    found = tasks.specs.edited(("evaluate", {"tasks_folder": "tasks", "tasks": ["own", "other"]})).graph
    for node in found.nodes.values():
        if node.task.kind == "evaluate":
            source = found.sources[node.task.inputs["tasks"]]
            assert node.task.record.measure.task in source.location[ASKS]


def test_an_edit_concerns_the_tasks_that_read_it_alone_and_diff_says_so(tasks: Tasks) -> None:
    for name, file in (("own", "rows"), ("other", "more")):
        text = text_of(path="json", options=f"dataset_kwargs: {{data_files: ../outside/{file}.jsonl}}")
        tasks.write(f"tasks/{name}.yaml", text.replace("task: own", f"task: {name}"))
    evaluate = ("evaluate", {"tasks_folder": "tasks", "tasks": ["own", "other"]})
    for file, name in (("rows", "own"), ("more", "other")):
        before = tasks.specs.edited(evaluate)
        tasks.write(f"outside/{file}.jsonl", ROWS * 2)
        after = tasks.specs.edited(evaluate)
        changes = compare(*(side(compiled, compiled.graph.experiments[0]) for compiled in (before, after)))
        changed = {task.name for task in changes.of("changed")} - {"report"}
        assert changed
        assert all(task.endswith(f": {name}") for task in changed)
        assert {field.name: field.kind for field in changes.fields} == {"sources.lm_eval_tasks": "results"} or {
            field.name.split(".")[1] for field in changes.fields
        } == {"lm_eval_tasks"}
        assert all(task.fields for task in changes.of("changed"))
