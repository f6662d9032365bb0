"""Where lm-eval is not installed a spec is planned all the same, and nothing of it is run."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from boomspec.commands.cli import main
from boomspec.compile.compiler import Compiled
from boomspec.core.errors import BoomspecError
from boomspec.core.graph_file import read_graph
from boomspec.core.machine import install_line
from boomspec.store import FolderStore
from tests.boomspec.conftest import SPEC
from tests.boomspec.past import past_run
from tests.messages import wording

TASK = "task: own\noutput_type: multiple_choice\ntest_split: test\nmetric_list: [{metric: acc}]\n"
EVALUATE = {
    "held_out": {},
    "tasks_folder": "tasks",
    "tasks": ["own", "arc_easy", {"task": "gsm8k", "generation": {"max_tokens": 8}}],
}
STOCK = ("arc_easy", "gsm8k")


def hide(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "lm_eval" else find(name, *more)
    )


def call(*arguments: object):
    return CliRunner().invoke(main, [*map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def spec(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (folder / "tasks").mkdir()
    (folder / "tasks" / "own.yaml").write_text(TASK)
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(SPEC), "evaluate": EVALUATE}, sort_keys=False))
    monkeypatch.chdir(folder)
    return path


def is_stock(name: str) -> bool:
    return name.endswith(STOCK)


def test_it_is_planned_and_only_what_lm_eval_decides_has_other_ids(spec, monkeypatch):
    known = read_graph(written(spec))
    hide(monkeypatch)
    planned = call("plan", spec)
    assert planned.exit_code == 0
    assert planned.stderr.count(wording("without_lm_eval.not_checked")) == 1
    assert install_line("run") in planned.stderr
    ids = [{node.name: i for i, node in graph.nodes.items()} for graph in (known, read_graph(written(spec)))]
    assert ids[0].keys() == ids[1].keys()
    differing = {name for name in ids[0] if ids[0][name] != ids[1][name]}
    assert differing == {name for name in ids[0] if is_stock(name)} | {"report"}
    assert sum(map(is_stock, differing)) > 4
    steps = {task["name"]: task for task in json.loads(call("plan", spec, "--json").stdout)["tasks"]}
    for name in filter(is_stock, steps):
        assert steps[name]["cost"]["flops"] is None
        assert wording("without_lm_eval.reason") in steps[name]["reason"]


def test_what_is_in_the_store_is_never_taken_for_what_is_not_known(spec, monkeypatch):
    past_run(FolderStore("store"), read_graph(written(spec)))
    assert "0 to run" in call("plan", spec).stdout
    hide(monkeypatch)
    steps = json.loads(call("plan", spec, "--json").stdout)["tasks"]
    assert {step["name"] for step in steps if step["action"] == "run"} == {
        step["name"] for step in steps if is_stock(step["name"]) or step["name"] == "report"
    }


def written(spec: Path) -> Path:
    call("graph", spec, "-o", spec.with_name("graph.json"))
    return spec.with_name("graph.json")


def test_nothing_is_run_or_submitted_and_the_line_that_installs_it_is_named(spec, monkeypatch):
    hide(monkeypatch)
    call("plan", spec, "--output", "plan.json")
    for command in (
        ("run", spec),
        ("run", "plan.json"),
        ("run", written(spec)),
        ("submit", spec, "--address", "http://nowhere:1", "--store", spec.parent / "store"),
        ("submit", spec, "--slurm", "--store", spec.parent / "store"),
        ("report", spec),
    ):
        if command[0] == "report":
            past_run(FolderStore("store"), read_graph(written(spec)))
        refused = call(*command)
        assert refused.exit_code == 2, command
        assert wording("without_lm_eval.refused") in refused.output
        assert install_line("run") in refused.output
        assert command[0] == "report" or not (spec.parent / "store" / "artifacts").exists()
    graph = read_graph(written(spec))
    with pytest.raises(BoomspecError, match=wording("without_lm_eval.refused")):
        graph.check_known()
    graph.until("distill").check_known()  # which does not ask lm-eval
    monkeypatch.undo()
    monkeypatch.chdir(spec.parent)
    assert wording("without_lm_eval.refused") in call("run", "graph.json").output  # it stays unknown


def test_other_commands_go_on_and_a_lock_which_pins_the_tasks_does_not(spec, monkeypatch):
    hide(monkeypatch)
    for command in (("validate", spec), ("show", spec), ("diff", spec, spec), ("graph", spec, "--format", "mermaid")):
        assert call(*command).exit_code == 0, command
    assert wording("without_lm_eval.shown") in call("show", spec).output
    assert install_line("run") in call("lock", spec).output


@pytest.mark.parametrize(
    "more",
    [
        {"tasks": ["gsm8k"], "generation": {"temperature": 0.7}, "samples": 3},
        {"tasks": [{"task": "gsm8k", "generation": {"top_k": 3}}, "arc_easy"]},
        {"tasks": ["gsm8k"], "backend": "vllm", "thinking": "strip"},
        {"tasks": ["a_task_that_nobody_knows"]},
    ],
)
def test_what_depends_on_what_a_task_says_is_not_judged(specs, monkeypatch, more):
    hide(monkeypatch)
    gpus = ("execution.evaluate", {"gpus": 1})
    compiled: Compiled = specs.edited(("evaluate", more), gpus)
    assert compiled.graph.unknown


def test_tasks_of_the_spec_itself_are_known_and_checked(specs, monkeypatch):
    (specs.folder / "tasks").mkdir()
    (specs.folder / "tasks" / "own.yaml").write_text(TASK)
    hide(monkeypatch)
    assert not specs.edited(("evaluate", {"tasks_folder": "tasks", "tasks": ["own"]})).graph.unknown
    with pytest.raises(BoomspecError, match=wording("without_lm_eval.no_text")):
        specs.edited(("evaluate", {"tasks_folder": "tasks", "tasks": ["own"], "samples": 2}))
