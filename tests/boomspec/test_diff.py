"""`boomspec diff`: what may stand on a side, what is printed, and what the exit codes mean."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from boomspec.compile.compiler import compile_experiments
from boomspec.core.errors import BoomspecError
from boomspec.core.graph_file import read_graph
from boomspec.diff.git import revision
from boomspec.plan.plan import SavedPlan, plan_tasks
from boomspec.spec.experiments import load_experiments
from boomspec.store import FolderStore
from tests.boomspec.conftest import Writer
from tests.boomspec.test_cli import call
from tests.messages import wording


@pytest.fixture
def here(specs: Writer, monkeypatch: pytest.MonkeyPatch) -> Writer:
    """A folder with data and a spec, in which we are."""
    monkeypatch.chdir(specs.folder)
    monkeypatch.setenv("COLUMNS", "160")
    specs.text(specs.SPEC, "a.yaml")
    return specs


@pytest.fixture
def repository(here: Writer) -> Writer:
    git(here.folder, "init", "-q", "-b", "main")
    for key, value in (("user.email", "a@example.org"), ("user.name", "a"), ("core.pager", "cat")):
        git(here.folder, "config", key, value)
    commit(here.folder, "first")
    return here


def git(folder: Path, *arguments: str, check: bool = True) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=check)
    return done.stdout


def commit(folder: Path, message: str) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", message)


def edit(specs: Writer, old: str, new: str, name: str = "b.yaml") -> Path:
    assert old in specs.SPEC
    return specs.text(specs.SPEC.replace(old, new), name)


def fields(old: object, new: object, *options: object) -> dict[str, str]:
    """The fields that differ between two sides, and their classes."""
    (pair,) = data(old, new, *options)["experiments"]
    return {field["field"]: field["class"] for field in pair["fields"]}


def data(old: object, new: object, *options: object) -> dict:
    return json.loads(call("diff", old, new, "--json", *options).output)


# What is said


def test_specs_that_mean_the_same_exit_with_0(here: Writer) -> None:
    edit(here, "tokens: 2048", "tokens: 2.048k  # as many")
    result = call("diff", "a.yaml", "b.yaml")
    assert (result.exit_code, wording("diff.they_mean_same") in result.output) == (0, True)


def test_a_field_that_changes_results_exits_with_1_and_is_shown_with_what_it_costs(here: Writer) -> None:
    edit(here, "kl: {weight: 0.1}", "kl: {weight: 0.2}")
    result = call("diff", "a.yaml", "b.yaml")
    assert result.exit_code == 1
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    assert lines[:2] == ["a.yaml -> b.yaml", wording("diff.field_changes_results")]
    assert "distill.losses.kl.weight 0.1 -> 0.2 13 tasks" in lines
    assert "Tasks: 13 done anew, 9 the same" in lines
    assert "~ distill student distill.losses.kl.weight" in lines
    assert any(line.startswith(wording("diff.make_what_new_tasks")) and "FLOP" in line for line in lines)


def test_execution_and_names_are_shown_and_exit_with_0(here: Writer) -> None:
    edit(here, "store: store", "store: other\n  retries: 0")
    result = call("diff", "a.yaml", "b.yaml")
    assert result.exit_code == 0
    assert wording("diff.they_mean_same_results") in result.output
    assert "Execution only" in result.output
    assert fields("a.yaml", "b.yaml") == {"execution.store": "execution", "execution.retries": "execution"}


def test_json_has_a_schema_version_and_every_task(here: Writer) -> None:
    edit(here, "kl: {weight: 0.1}", "kl: {weight: 0.2}")
    found = data("a.yaml", "b.yaml")
    assert (found["schema"], found["differs"], found["environment"], found["results"]) == (1, True, None, None)
    (pair,) = found["experiments"]
    (field,) = pair["fields"]
    assert (field["old"], field["new"], field["exact"]) == (0.1, 0.2, True)
    assert field["tasks"] == ["distill student", "distill random_init"]
    student = next(task for task in pair["tasks"] if task["name"] == "distill student")
    assert student["parameters"] == [{"parameter": "losses.kl.weight", "old": 0.1, "new": 0.2}]
    graph = compile_experiments(load_experiments("b.yaml")).graph
    assert {task["id"] for task in found["anew"]["tasks"]} == {task["id"] for task in pair["tasks"]} <= set(graph.nodes)
    assert found["anew"]["flops"] > 0


def test_markdown_has_tables_and_escapes_what_markdown_reads(here: Writer) -> None:
    edit(here, "kl: {weight: 0.1}", "kl: {weight: 0.2}")
    result = call("diff", "a.yaml", "b.yaml", "--markdown")
    assert result.exit_code == 1
    assert wording("diff.distill_losses_kl_weight") in result.output
    assert wording("diff.distill_random_init_changed") in result.output
    assert result.output.count("<details>") == result.output.count("</details>") == 1


def test_sizes_are_compared_by_their_layers_and_parameters(here: Writer) -> None:
    edit(here, "keep: [0, 2, 4]", "keep: [0, 3]")
    (pair,) = data("a.yaml", "b.yaml")["experiments"]
    assert [size["label"] for size in pair["sizes"]] == ["2 layers", "3 layers", "4 layers", "5 layers"]
    sizes = {size["label"]: size for size in pair["sizes"]}
    assert sizes["2 layers"]["old"] is None
    assert (sizes["4 layers"]["old"]["plan"], sizes["4 layers"]["new"]["plan"]) == ("s0-1 t4-5", "s0 t3-5")


# What may stand on a side


def test_a_compiled_graph_a_saved_plan_and_a_runs_folder_are_sides(here: Writer) -> None:
    graph = compile_experiments(load_experiments("a.yaml")).graph
    graph.write(here.folder / "graph.json")
    store = FolderStore(here.folder / "store")
    SavedPlan(graph, plan_tasks(graph, store), store.address).save(here.folder / "plan.json")
    folder = store.run_folder(graph.name, graph.id)
    folder.mkdir(parents=True)
    graph.write(folder / "graph.json")
    edit(here, "kl: {weight: 0.1}", "kl: {weight: 0.2}")
    for side in ("graph.json", "plan.json", folder):
        assert call("diff", "a.yaml", side).exit_code == 0
        assert fields(side, "b.yaml") == {"distill.losses.kl.weight": "results"}
    assert call("diff", folder.name, "b.yaml", "--store", "store").exit_code == 1
    assert data(folder.name, "b.yaml", "--store", "store")["old"]["run"] is True


def test_a_spec_at_a_revision_is_a_side(repository: Writer) -> None:
    (repository.folder / "a.yaml").write_text(repository.SPEC.replace("weight: 0.1", "weight: 0.3"))
    assert fields("HEAD:a.yaml", "a.yaml") == {"distill.losses.kl.weight": "results"}
    commit(repository.folder, "second")
    assert fields("HEAD~1:a.yaml", "main:a.yaml") == {"distill.losses.kl.weight": "results"}
    assert call("diff", "HEAD:a.yaml", "a.yaml").exit_code == 0
    assert wording("diff.files_reads_those_lie") in call("diff", "HEAD:a.yaml", "a.yaml").output


def test_a_path_with_a_hash_sign_is_found_at_a_revision(repository: Writer) -> None:
    (repository.folder / "a b#c.yaml").write_text(repository.SPEC)
    commit(repository.folder, "second")
    assert call("diff", "HEAD:a b#c.yaml", "a.yaml").exit_code == 0


def test_what_a_spec_extends_is_that_of_its_revision(repository: Writer) -> None:
    base = repository.folder / "a.yaml"
    (repository.folder / "b.yaml").write_text("extends: a.yaml\nname: b\n")
    commit(repository.folder, "second")
    base.write_text(repository.SPEC.replace("weight: 0.1", "weight: 0.3"))
    assert fields("HEAD:b.yaml", "b.yaml") == {"distill.losses.kl.weight": "results"}
    assert fields("HEAD:a.yaml", "HEAD:b.yaml") == {"name": "cosmetic"}


def test_a_revision_is_read_from_a_folder_below_as_git_does(
    repository: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = repository.folder / "below"
    below.mkdir()
    spec = repository.SPEC.replace('"*.txt"', '"../*.txt"')
    (below / "c.yaml").write_text(spec)
    commit(repository.folder, "second")
    (below / "c.yaml").write_text(spec.replace("weight: 0.1", "weight: 0.3"))
    monkeypatch.chdir(below)
    for side in ("HEAD:below/c.yaml", "HEAD:./c.yaml", "HEAD:c.yaml"):
        assert fields(side, "c.yaml") == {"distill.losses.kl.weight": "results"}
    assert call("diff", "HEAD:a.yaml", "../a.yaml").exit_code == 0


def test_one_experiment_of_a_spec_is_a_side(repository: Writer) -> None:
    text = repository.SPEC + "variants:\n  no-kl: {distill: {losses: {kl: null}}}\nsweep: {seed: [0, 1]}\n"
    repository.text(text, "v.yaml")
    commit(repository.folder, "second")
    assert fields("v.yaml#base,seed=0", "v.yaml#no-kl,seed=0") == {"distill.losses.kl": "results"}
    assert fields("a.yaml", "v.yaml#no-kl,seed=1") == {"distill.losses.kl": "results", "seed": "results"}
    assert fields("HEAD:v.yaml#no-kl,seed=1", "v.yaml#base,seed=1") == {"distill.losses.kl": "results"}
    compile_experiments(load_experiments("v.yaml")).graph.write(repository.folder / "v.json")
    assert fields("v.json#base,seed=0", "a.yaml") == {}


def test_experiments_are_compared_by_their_labels(here: Writer) -> None:
    here.text(here.SPEC + "variants: {no-kl: {distill: {losses: {kl: null}}}, bf: {seed: 2}}\n", "v.yaml")
    text = here.SPEC.replace("tokens: 2048", "tokens: 4096")
    here.text(text + "variants: {no-kl: {distill: {losses: {kl: null}}}, new: {seed: 3}}\n", "w.yaml")
    found = data("v.yaml", "w.yaml")
    assert [(pair["old"], pair["new"]) for pair in found["experiments"]] == [("base", "base"), ("no-kl", "no-kl")]
    assert (found["added"], found["removed"]) == (["new"], ["bf"])
    assert {f["field"] for pair in found["experiments"] for f in pair["fields"]} == {"distill.tokens"}
    names = [task["name"] for task in found["anew"]["tasks"]]
    assert {"distill student", "no-kl: distill student", "new: distill student", "comparison"} <= set(names)
    printed = call("diff", "v.yaml", "w.yaml")
    assert printed.exit_code == 1
    assert "base, no-kl" in printed.output  # they differ alike, which is said once
    assert printed.output.count("distill.tokens") == 3  # the field, and the two trainings


def test_a_plain_spec_is_compared_with_the_files_own_experiment(here: Writer) -> None:
    here.text(here.SPEC + "variants: {no-kl: {distill: {losses: {kl: null}}}}\n", "v.yaml")
    found = data("a.yaml", "v.yaml")
    (pair,) = found["experiments"]
    assert ((pair["old"], pair["new"]), pair["fields"]) == (("", "base"), [])
    assert (found["added"], found["differs"]) == (["no-kl"], True)


# Sides that cannot be compiled here, or not yet


def test_what_cannot_be_compiled_is_compared_by_what_it_says(here: Writer) -> None:
    parsed = yaml.safe_load(here.SPEC)
    for name, text in (("c.yaml", here.SPEC), ("d.yaml", here.SPEC.replace("weight: 0.1", "weight: 0.3"))):
        here.text(text.replace('"*.txt"', '"gone/*.txt"'), name)
    found = data("c.yaml", "d.yaml")
    assert (found["old"]["compiled"], found["new"]["compiled"]) == (False, False)
    assert wording("diff.no_file_matches", name="gone/*.txt") in found["old"]["problem"]
    (pair,) = found["experiments"]
    (field,) = pair["fields"]
    assert (field["field"], field["class"], field["exact"]) == ("distill.losses.kl.weight", "results", False)
    assert pair["tasks"] == []
    printed = call("diff", "c.yaml", "d.yaml")
    assert printed.exit_code == 1
    assert wording("diff.cannot_compiled_here_so") in printed.output
    assert "by its section" in printed.output
    # One side that can be compiled is taken back to what it says: a rule stays a rule.
    parsed["student"]["keep"] = {"every": 2, "first": 1, "last": 0}
    parsed["data"]["files"] = "gone/*.txt"
    here.text(yaml.safe_dump(parsed), "e.yaml")
    assert fields("a.yaml", "e.yaml").keys() == {"student.keep", "data.files"}


def test_an_unreachable_hub_still_leaves_the_meanings(here: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    parsed = {**yaml.safe_load(here.SPEC), "teacher": {"model": "nobody/nothing"}}
    here.text(yaml.safe_dump(parsed), "c.yaml")
    parsed["execution"] = {"retries": 5, "store": "store"}
    here.text(yaml.safe_dump(parsed), "d.yaml")
    found = data("c.yaml", "d.yaml")
    assert "nobody/nothing" in found["old"]["problem"]
    assert (fields("c.yaml", "d.yaml"), found["differs"]) == ({"execution.retries": "execution"}, False)


def test_behind_a_search_tasks_are_not_compared_and_classes_are_by_section(here: Writer) -> None:
    edit(here, "keep: [0, 2, 4]", "keep: {block_influence: 3}", "c.yaml")
    edit(here, "keep: [0, 2, 4]", "keep: {block_influence: 2}", "d.yaml")
    (pair,) = data("a.yaml", "c.yaml")["experiments"]
    assert pair["waiting"] is True
    assert [(task["name"], task["state"]) for task in pair["tasks"]] == [("search layers by block_influence", "added")]
    assert {f["field"]: (f["class"], f["exact"]) for f in pair["fields"]} == {"student.keep": ("results", True)}
    (pair,) = data("c.yaml", "d.yaml")["experiments"]
    assert [(f["field"], f["exact"]) for f in pair["fields"]] == [("student.keep.block_influence", True)]
    here.text(here.SPEC.replace("keep: [0, 2, 4]", "keep: {block_influence: 3}").replace("weight: 0.1", "weight: 0.3"))
    (pair,) = data("c.yaml", "spec.yaml")["experiments"]
    assert [(f["field"], f["class"], f["exact"]) for f in pair["fields"]] == [
        ("distill.losses.kl.weight", "results", False)
    ]


def test_what_a_search_found_is_a_field(here: Writer) -> None:
    text = here.SPEC + "interpolate: {order: {search: klpatch}}\n"
    path = here.text(text, "c.yaml")
    files = load_experiments(path)
    (search,) = [n for n in compile_experiments(files).graph.nodes.values() if n.task.kind == "search"]
    for name, sets in (("x.json", [[], [2], [2, 1], [2, 1, 0]]), ("y.json", [[], [0], [0, 1], [0, 1, 2]])):
        answers = {search.id: {"sets": sets}}
        compile_experiments(files, answers.get).graph.write(here.folder / name)
    (pair,) = data("x.json", "y.json")["experiments"]
    assert [(f["field"], f["old"], f["new"]) for f in pair["fields"]] == [
        ("interpolate.order.found", [2, 1, 0], [0, 1, 2])
    ]
    assert "interpolate 4 layers" in pair["fields"][0]["tasks"]
    assert read_graph(here.folder / "x.json").experiments[0].meaning["interpolate"]["order"]["search"] == "klpatch"


# What cannot be a side


@pytest.mark.parametrize(
    ("side", "message"),
    [
        ("none.yaml", "none.yaml: no such file"),
        ("HEAD:none.yaml", wording("diff.there_no_revision_head", name="none.yaml", name2="wrong.yaml")),
        ("HEAD:0123456789", wording("diff.hint_specs_there_yaml")),
        ("mian:a.yaml", wording("diff.no_revision_repository", name="mian")),
        ("a.yaml#no-kl", wording("diff.one_experiment_no", name="no-kl")),
        ("graph.json#no-kl", wording("diff.one_experiment_no", name="no-kl")),
        ("old.json", wording("diff.graph_version_but_boomspec")),
        ("broken.json", wording("diff.cannot_read_compiled_graph")),
        ("altered.json", wording("diff.file_altered")),
        ("plan.json", wording("diff.plan_version_but_boomspec")),
        ("folder", wording("diff.folder_holds_no_graph")),
        ("HEAD:wrong.yaml", "at revision HEAD: "),
        ("HEAD:0.txt", "at revision HEAD: "),
        ("wrong.yaml", wording("cli.did_you_mean", name="student")),
        ("store", wording("diff.hint_name_run_store")),
        ("store/runs/x-1", wording("diff.graph_version_but_boomspec")),
    ],
)
def test_a_side_that_is_none_is_a_clear_error(repository: Writer, side: str, message: str) -> None:
    folder = repository.folder
    (folder / "folder").mkdir()
    run = folder / "store" / "runs" / "x-1"
    run.mkdir(parents=True)
    compile_experiments(load_experiments("a.yaml")).graph.write(folder / "graph.json")
    text = (folder / "graph.json").read_text()
    (folder / "altered.json").write_text(text.replace('"held_out_every": 4', '"held_out_every": 5'))
    (folder / "broken.json").write_text("{")
    (folder / "plan.json").write_text('{"boomspec_plan": 99}')
    for path in (folder / "old.json", run / "graph.json"):
        path.write_text('{"boomspec_graph": 1}')
    (folder / "wrong.yaml").write_text(repository.SPEC.replace("student:", "studnt:"))
    git(folder, "add", "wrong.yaml")
    git(folder, "commit", "-q", "-m", "wrong")
    for sides in ((side, "a.yaml"), ("a.yaml", side)):
        result = call("diff", *sides)
        assert (result.exit_code, message in result.output) == (2, True), result.output
    assert "error" in json.loads(call("diff", side, "a.yaml", "--json").output)


def test_what_looks_like_an_option_of_git_is_no_revision(repository: Writer) -> None:
    with pytest.raises(BoomspecError, match=wording("diff.help_no_revision")):
        revision("--help")


def test_a_close_name_of_a_revision_is_offered(repository: Writer) -> None:
    assert wording("cli.did_you_mean", name="main") in call("diff", "mian:a.yaml", "a.yaml").output


def test_outside_of_a_repository_a_revision_is_an_error(here: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(here.folder.parent))
    result = call("diff", "HEAD:a.yaml", "a.yaml")
    assert (result.exit_code, wording("diff.not_git_repository") in result.output) == (2, True)


def test_without_git_a_revision_is_an_error(here: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(here.folder))
    result = call("diff", "HEAD:a.yaml", "a.yaml")
    assert (result.exit_code, wording("diff.git_not_installed_here") in result.output) == (2, True)


@pytest.mark.parametrize("sides", [(), ("a.yaml",), ("a.yaml", "a.yaml", "a.yaml")])
def test_two_sides_are_needed(here: Writer, sides: tuple[str, ...]) -> None:
    result = call("diff", *sides)
    assert (result.exit_code, wording("diff.two_sides_compared") in result.output) == (2, True)
