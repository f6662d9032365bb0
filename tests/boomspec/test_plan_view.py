"""`boomspec plan`: what it shows of one experiment and of many, its JSON, and its exit codes."""

import json
from pathlib import Path

import jsonschema
import pytest

from boomspec.plan.plan_text import untied_cost
from boomspec.plan.rates import save_calibration
from boomspec.store import FolderStore
from tests.boomspec.test_cli import call
from tests.boomspec.test_costs import CALIBRATED
from tests.messages import wording

SWEEP = "sweep:\n  seed: [0, 1, 2]\n  distill.losses.kl.weight: [0.1, 0.5]\n"


@pytest.mark.parametrize("columns", [80, 120])
def test_a_plan_fits_the_terminal(specs, monkeypatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    path = specs.text(specs.SPEC)
    save_calibration(FolderStore(specs.folder / "store"), CALIBRATED)
    output = call("plan", path).output
    assert max(map(len, output.splitlines())) <= max(columns, len(f"Tasks (store: {specs.folder / 'store'})"))
    for text in ("+ run", "distill student", "not in the store", "Together at least", "By: the calibration"):
        assert text in output
    assert ("disk" in output.split("Tasks")[1].splitlines()[1]) == (columns == 120)


def test_a_reason_stands_below_the_first_task_that_it_holds_for(specs) -> None:
    output = call("plan", specs.text(specs.SPEC)).output
    assert output.count(wording("gc.not_store")) == 1


def test_without_a_calibration_no_time_is_made_up(specs) -> None:
    path = specs.text(specs.SPEC)
    assert wording("plan_view.time_not_known_yet") in call("plan", path).output
    plan = json.loads(call("plan", path, "--json").output)
    assert {task["seconds"] for task in plan["tasks"]} == {None}
    assert plan["time"]["without_a_time"] == len(plan["tasks"])


def test_tasks_that_ask_for_a_gpu_are_timed_on_several_kinds(specs) -> None:
    path = specs.text(specs.SPEC.replace("execution:", "execution:\n  distill: {gpus: 1}"))
    output = call("plan", path).output
    assert "1 h100" in output
    assert "1 rtx4090" in output
    plan = json.loads(call("plan", path, "--json", "--device", "t4", "--gpus", "2").output)
    assert list(plan["devices"]) == ["t4"]
    assert plan["machine"]["device"] == "t4"
    assert plan["machine"]["gpus"] == 2
    assert {t["seconds_from"] for t in plan["tasks"] if t["kind"] == "distill"} == {"table"}
    assert any(wording("plan_view.no_bf_units") in warning for warning in plan["warnings"])


def test_many_experiments_are_summarised_unless_all_tasks_are_asked_for(specs) -> None:
    path = specs.text(specs.SPEC + SWEEP)
    output = call("plan", path).output
    assert wording("plan_view.experiments_task_several_share") in output
    assert "seed=1" in output
    assert "weight=0.5" in output
    assert "distill student" not in output
    assert output.count("Sizes") == 1
    everything = call("plan", path, "--all").output
    assert everything.count("distill student") == 6


def test_an_axis_of_many_values_is_one_line(specs) -> None:
    values = ", ".join(str(i) for i in range(30))
    output = call("plan", specs.text(specs.SPEC + f"sweep:\n  seed: [{values}]\n")).output
    assert "seed: 30 values (0, 1, ...)" in output
    assert "seed=3" not in output


@pytest.mark.parametrize("edit", ["", SWEEP], ids=["one", "sweep"])
def test_the_json_is_what_its_schema_says(specs, edit: str) -> None:
    schema = json.loads(call("schema", "plan").output)
    jsonschema.Draft202012Validator.check_schema(schema)
    plan = json.loads(call("plan", specs.text(specs.SPEC + edit), "--json").output)
    jsonschema.validate(plan, schema)
    assert len(plan["experiments"]) == (6 if edit else 1)
    assert {i for e in plan["experiments"] for i in e["tasks"].values()} <= {task["id"] for task in plan["tasks"]}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**plan, "schema": 1}, schema)


def test_what_is_not_known_is_null(specs) -> None:
    plan = json.loads(call("plan", specs.text(specs.SPEC), "--json").output)
    cost = next(task["cost"] for task in plan["tasks"] if task["name"] == "evaluate teacher: held_out")
    assert (cost["flops"], cost["tokens"], cost["real_tokens"]) == (None, None, None)
    assert "known after tokenize" in cost["unknown"]
    assert plan["totals"]["incomplete"] > 0


def test_the_detailed_exit_code_says_whether_there_is_something_to_do(specs) -> None:
    path = specs.text(specs.SPEC)
    assert call("plan", path).exit_code == 0
    assert call("plan", path, "--detailed-exitcode").exit_code == 3
    plan = json.loads(call("plan", path, "--json").output)
    store = FolderStore(specs.folder / "store")
    for task in plan["tasks"]:
        with store.workspace(task["kind"], task["id"]) as workspace:
            store.publish(workspace, task["kind"], task["id"], {}, {})
    result = call("plan", path, "--detailed-exitcode")
    assert result.exit_code == 0, result.output
    assert wording("plan_view.run_reuse_blocked", len=len(plan["tasks"])) in result.output
    assert "Together" not in result.output
    assert call("plan", specs.text("boomspec: 1\n"), "--detailed-exitcode").exit_code == 2


def test_a_saved_plan_is_said_to_be_saved(specs, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    assert f"boomspec run {file}" in call("plan", specs.text(specs.SPEC), "--output", file).output
    assert json.loads(file.read_text())["boomspec_plan"] == 1


@pytest.mark.parametrize(
    ("keep", "interpolate", "says"),
    [
        ([0, 2, 4], {}, "student.keep: last: 1"),
        ([0, 2, 4, 5], {"order": "first_to_last"}, "interpolate.order: last_to_first"),
        ([0, 2, 4, 5], {"singletons": "reference"}, "interpolate.singletons: student"),
        ([0, 2, 4, 5], {}, None),
    ],
)
def test_sizes_with_a_head_of_their_own_beside_a_tied_teacher_are_explained(specs, keep, interpolate, says) -> None:
    tied = ("teacher.pretrain.tied_embeddings", True)
    family = specs.edited(tied, ("student.keep", keep), ("interpolate", interpolate)).family
    cost = untied_cost(family)
    assert (cost is None) is all(member.tied for member in family.members)
    assert (cost is None) if says is None else cost is not None and says in cost
