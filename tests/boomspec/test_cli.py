"""The commands as a person types them: what they print, and what their exit codes mean."""

import json
import subprocess
import sys

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from boomspec.commands.cli import main
from boomspec.commands.shared import runner, runner_output
from boomspec.compile.compiler import compile_experiments
from boomspec.core.errors import BoomspecError
from boomspec.spec.experiments import load_spec
from boomspec.spec.json_schema import json_schema
from boomspec.store import FolderStore
from tests.messages import wording

HEAVY = ["torch", "ray", "transformers", "datasets", "numpy", "vl_convert", "lm_eval", "runners"]


def call(*arguments: object):
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def test_importing_the_command_line_loads_no_heavy_package():
    code = (
        "import sys, click; from boomspec.commands.cli import main; context = click.Context(main)\n"
        "for name in main.list_commands(context): main.get_command(context, name)\n"
        f"print([m for m in {[*HEAVY, 'rich', 'huggingface_hub']} if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_validating_and_planning_load_no_heavy_package(specs):
    path = specs.text(specs.SPEC)
    code = (
        "import sys; from boomspec.commands.cli import main\n"
        f"for command in ('validate', 'plan'): main([command, {str(path)!r}], standalone_mode=False)\n"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip().splitlines()[-1] == "[]"


def test_validate_says_valid(specs):
    path = specs.text(specs.SPEC)
    result = call("validate", path)
    assert (result.exit_code, result.output) == (0, f"{path}: valid\n")
    assert json.loads(call("validate", path, "--json").output) == {
        "valid": True,
        "teacher_checked": True,
        "experiments": [""],
    }


def test_a_teacher_that_is_not_here_is_left_to_the_plan(specs):
    data = {**yaml.safe_load(specs.SPEC), "teacher": {"model": "nobody/nothing"}}
    path = specs.text(yaml.safe_dump(data))
    result = call("validate", path)
    assert result.exit_code == 0
    assert wording("cli.layers_sizes_not_checked") in result.output
    planned = call("plan", path)
    assert planned.exit_code == 2
    assert wording("cli.teacher_model_model_cannot", name="nobody/nothing") in planned.output


def test_plan_shows_exact_sizes_and_why_each_task_runs(specs):
    result = call("plan", specs.text(specs.SPEC))
    assert result.exit_code == 0
    for text in ("s0-1 t4-5", "untied", "pretrain teacher", "not in the store", "to run, 0 to reuse, 0 blocked."):
        assert text in result.output
    family = specs.compiled().family
    for member in family.members:
        assert f"{member.parameters:,}" in result.output


def test_plan_for_programs_has_a_schema_version(specs):
    plan = json.loads(call("plan", specs.text(specs.SPEC), "--json").output)
    assert plan["schema"] == 2
    assert [size["layers"] for size in plan["experiments"][0]["sizes"]] == [3, 4, 5, 6]
    assert {task["action"] for task in plan["tasks"]} == {"run"}


def test_a_wrong_spec_exits_with_2_and_prints_json_where_asked(specs):
    path = specs.text("boomspec: 1\nname: x\nstudnt: {}\n")
    result = call("validate", path)
    assert result.exit_code == 2
    assert wording("cli.did_you_mean", name="student") in result.output
    problems = json.loads(call("validate", path, "--json").output)["error"]["problems"]
    assert (3, 1) in [(problem["line"], problem["column"]) for problem in problems]


@pytest.mark.parametrize("command", ["validate", "plan", "run", "report", "graph"])
def test_a_missing_file_is_an_error_not_a_traceback(command, tmp_path):
    result = call(command, tmp_path / "none.yaml")
    assert result.exit_code == 2
    assert "none.yaml" in result.output


def test_of_many_specs_beside_a_missing_one_some_are_named(tmp_path):
    for name in "abcdefg":
        (tmp_path / f"{name}.yaml").touch()
    assert wording("cli.yaml_files_yaml_yaml", tmp_path=tmp_path) in call("plan", tmp_path / "no").output
    (tmp_path / "f.yaml").unlink()
    (tmp_path / "g.yaml").unlink()
    assert "e.yaml\n" in call("plan", tmp_path / "no").output


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("plan",), "Missing argument 'SPEC'.", "plan --help"),
        (("nonsense",), wording("cli.no_such_command", name="nonsense"), "--help"),
        (("plann", "x.yaml"), wording("cli.no_such_command_did", name="plann", name2="plan"), "--help"),
        (("gc", "--keep-last", "x"), wording("cli.not_valid_integer_range", name="x"), "gc --help"),
        (("plan", "x.yaml", "--gpus", "nan"), wording("cli.nan_no_number_gpus"), "plan --help"),
    ],
)
def test_a_call_that_is_wrong_prints_json_where_asked(arguments, message, hint):
    result = call(*arguments, "--json")
    assert result.exit_code == 2
    error = json.loads(result.stdout)["error"]
    assert message in error["message"]
    assert error["hint"].endswith(hint)
    assert call(*arguments).stdout == ""


def test_what_the_runners_complain_of_last_is_the_reason():
    with pytest.raises(BoomspecError) as error:
        runner_output("runners.nothing")
    assert error.value.message.startswith("runners.nothing failed: ")
    assert error.value.message.endswith(wording("cli.no_module_named_runners"))


def test_graph_prints_json_and_mermaid(specs):
    path = specs.text(specs.SPEC)
    graph = json.loads(call("graph", path).output)
    assert graph["boomspec_graph"] == 2
    drawing = call("graph", path, "--format", "mermaid").output
    assert drawing.startswith("flowchart LR")
    assert drawing.count("[") >= len(graph["tasks"])


def test_report_before_a_run_says_what_to_do(specs):
    result = call("report", specs.text(specs.SPEC))
    assert result.exit_code == 2
    assert "not run yet" in result.output


def test_the_json_schema_accepts_what_the_language_accepts(specs):
    schema = json.loads(call("schema").output)
    assert schema == json_schema()
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    validator.validate(yaml.safe_load(specs.SPEC))
    wrong = {**yaml.safe_load(specs.SPEC), "studnt": 1}
    assert not validator.is_valid(wrong)


@pytest.mark.parametrize("secret", ["0123456789abcdef", 'a "quoted\\ one', "ein Schlüssel"])
def test_a_spec_that_quotes_a_secret_is_not_run(specs, folder, monkeypatch, secret):
    uri = json.dumps(f"http://mlflow.example/{secret}")
    graph = compile_experiments([load_spec(specs.text(f"{specs.SPEC}  tracking: {{mlflow: {{uri: {uri}}}}}\n"))]).graph
    store = FolderStore(folder / "store")
    assert runner(graph, store)
    monkeypatch.setenv("MLFLOW_API_KEY", secret)
    with pytest.raises(BoomspecError, match=wording("cli.spec_quotes_secret_mlflow")):
        runner(graph, FolderStore(folder / "another"))
    assert not list((folder / "another").rglob("graph.json"))
    assert not list((folder / "another").glob("runs/*"))


def test_the_environment_names_the_store_where_neither_the_call_nor_the_spec_does(specs, tmp_path, monkeypatch):
    monkeypatch.setenv("BOOMSPEC_STORE", str(tmp_path / "mine"))
    without = {name: value for name, value in yaml.safe_load(specs.SPEC).items() if name != "execution"}
    plain, own = specs.text(yaml.safe_dump(without)), tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump(without | {"execution": {"store": "theirs"}}), encoding="utf-8")
    assert json.loads(call("plan", plain, "--json").output)["store"] == str(tmp_path / "mine")
    assert json.loads(call("plan", own, "--json").output)["store"] == str(tmp_path / "theirs")
    asked = call("plan", own, "--json", "--store", tmp_path / "asked").output
    assert json.loads(asked)["store"] == str(tmp_path / "asked")


def test_a_graph_until_a_kind_has_what_that_needs_and_nothing_else(specs):
    graph = specs.edited().graph
    until = graph.until("distill")
    assert {node.task.kind for node in until.nodes.values()} == {"tokenize", "pretrain", "distill"}
    assert {until.nodes[i].task.kind for i in until.targets} == {"distill"}
    assert until.id != graph.id
    with pytest.raises(BoomspecError, match=wording("cli.no_task_kind", name="distil")) as caught:
        graph.until("distil")
    assert "distill" in str(caught.value.hint)
