"""Models that bring code along: it never runs unless the spec trusts it, and then exactly what was looked at."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import boomspec
from boomspec.core.errors import BoomspecError, SpecError
from boomspec.core.layers import layers_text, read_layers
from boomspec.models.code import code_digests
from boomspec.plan.locking import Hub, lock_of
from boomspec.store import FolderStore
from runners.assembly.assemble import assemble
from runners.cli import export
from runners.modeling.foreign_code import runs_code
from runners.modeling.models import load
from runners.runtime.job import Input
from runners.tasks import tokenize
from tests.messages import wording
from tests.runners import foreign, small, tiny
from tests.runners.hub_server import COMMIT, hub

SECTIONS = {
    "teacher": {"pretrain": None, "model": "./teacher"},
    "student": {"keep": [0, 2]},
    "interpolate": {"sizes": ["3 layers"]},
}
TRUSTING = {**SECTIONS, "teacher": {**SECTIONS["teacher"], "trust_remote_code": True}}


def cli(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **variables}
    command = [sys.executable, "-m", "boomspec", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


def test_code_that_nobody_trusts_is_an_error_where_transformers_has_no_class(tmp_path):
    marker = foreign.write(tmp_path / "teacher")
    with pytest.raises(SpecError) as caught:
        small.compiled(small.write_spec(tmp_path, **SECTIONS), FolderStore(tmp_path / "store"))
    assert wording("foreign_code.teacher_model_needs_code", name="./teacher", name2="auto_map") in str(caught.value)
    assert "configuration_quiet.QuietConfig, modeling_quiet.QuietForCausalLM" in str(caught.value)
    assert wording("foreign_code.trust_remote_code_true") in str(caught.value)
    with pytest.raises(BoomspecError, match=wording("foreign_code.needs_code_own_config")):
        load(tmp_path / "teacher", dtype=torch.float32)
    assert not marker.exists()


def test_a_tokenizer_of_its_own_is_an_error_too(tmp_path):
    marker = foreign.write(tmp_path / "teacher", native=True)
    spec = small.write_spec(tmp_path, **SECTIONS)
    with pytest.raises(SpecError, match=wording("foreign_code.tokenizer_config_json_names")):
        small.compiled(spec, FolderStore(tmp_path / "store"))
    assert not marker.exists()


def test_without_trust_transformers_own_class_is_used_and_the_code_stays_behind(tmp_path):
    marker = foreign.write(tmp_path / "teacher", native=True, tokenizer=False)
    path = tmp_path / "teacher" / "tokenizer_config.json"
    named = {"auto_map": {"AutoTokenizer": [None, "tokenization_quiet.QuietTokenizer"]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | named))
    graph = small.compiled(small.write_spec(tmp_path, **SECTIONS), FolderStore(tmp_path / "store")).graph
    assert not digests(graph)
    assert not any(node.execution.code for node in graph.nodes.values())

    node = next(node for node in graph.nodes.values() if node.task.kind == "tokenize")
    context = tiny.context(tmp_path / "tokens", node.task.record)
    context.inputs.update({role: Input(i, source=graph.sources[i]) for role, i in node.task.inputs.items()})
    tokenize.run(context)
    assemble({"t": tmp_path / "teacher"}, read_layers("t0 t2"), tmp_path / "model", tied=False)
    for folder in (context.path / "tokenizer", tmp_path / "model"):
        assert not list(folder.rglob("*.py"))
        assert not any("auto_map" in file.read_text() for file in folder.glob("*.json"))
    assert type(load(tmp_path / "model", dtype=torch.float32)).__name__ == "LlamaForCausalLM"
    assert not marker.exists()


@pytest.fixture(scope="module")
def trusted(tmp_path_factory, connected):
    """A run of a teacher whose model, config and tokenizer are its own code."""
    folder = tmp_path_factory.mktemp("trusted")
    marker = foreign.write(folder / "teacher")
    store = FolderStore(folder / "store")
    spec = small.write_spec(folder, **TRUSTING, baselines=["random_init"])
    graph = small.compiled(spec, store).graph
    assert not marker.exists()  # nothing of it runs before the tasks do
    assert small.run(graph, store) == 0, small.status(graph, store)
    return folder, graph, store, marker


def test_trusted_code_runs_in_every_task_and_goes_along_with_what_is_made(trusted):
    _, graph, store, marker = trusted
    assert set(marker.read_text().split()) == {"model", "config", "tokenizer"}
    made = [store.path(n.task.kind, n.id) / "model" for n in graph.nodes.values() if n.task.kind in ("interpolate",)]
    for folder in [*made, *(store.root.glob("distill/*/model"))]:
        assert {"modeling_quiet.py", "parts.py"} <= {file.name for file in folder.rglob("*.py")}
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        assert type(model).__name__ == "QuietForCausalLM"


def test_the_numbers_are_those_of_the_code(trusted, tmp_path):
    folder, graph, store, _ = trusted
    node = next(node for node in graph.nodes.values() if node.name == "evaluate teacher: held_out")
    found = json.loads((store.path("evaluate", node.id) / "results.json").read_text())["results"]["held_out"]
    # The same weights in transformers' own class, without the gain: another loss.
    foreign.write(tmp_path / "teacher", native=True, tokenizer=False)
    native = load(tmp_path / "teacher", dtype=torch.float32)
    own = load(folder / "teacher", dtype=torch.float32, code=digests(graph))
    tokens = torch.arange(1, 17)[None]
    with torch.no_grad():
        assert torch.allclose(own(tokens).logits, 0.5 * native(tokens).logits)
    assert found["loss,none"] > 0


def digests(graph) -> set[str]:
    return {digest for source in graph.sources.values() for digest in source.identity.get("code", {}).values()}


def test_the_code_is_part_of_what_a_model_is(trusted, tmp_path):
    folder, graph, store, _ = trusted
    sources = {source.kind: source for source in graph.sources.values()}
    names = {"configuration_quiet.py", "modeling_quiet.py", "parts.py", "tokenization_quiet.py"}
    assert set(sources["model"].identity["code"]) == set(sources["tokenizer"].identity["code"]) == names
    locked = lock_of(graph, store, Hub(offline=True)).models["./teacher"].files
    assert names <= set(locked)

    file = folder / "teacher" / "parts.py"
    before = file.read_text()
    file.write_text(before.replace("GAIN = 0.5", "GAIN = 0.6"))
    try:
        changed = small.compiled(folder / "spec.yaml", store).graph
        common = {node.name: node.id for node in changed.nodes.values()}
        assert all(common[node.name] != node.id for node in graph.nodes.values())
        with pytest.raises(BoomspecError, match=wording("foreign_code.parts_py_not_code")):
            load(folder / "teacher", dtype=torch.float32, code=digests(graph))
    finally:
        file.write_text(before)


def test_it_is_said_wherever_somebody_looks(trusted):
    folder, graph, store, _ = trusted
    expected = "warning: trust_remote_code: tasks run the code of ./teacher"
    for arguments in (["validate", "spec.yaml"], ["plan", "spec.yaml"], ["show", "spec.yaml"]):
        done = cli(folder, *arguments, *(["--store", "store"] if arguments[0] != "validate" else []))
        assert done.returncode == 0, done.stderr
        assert expected in done.stderr
    assert "trust_remote_code: true" in cli(folder, "show", "spec.yaml", "--store", "store").stdout
    plan = json.loads(cli(folder, "plan", "spec.yaml", "--store", "store", "--json").stdout)
    assert any("modeling_quiet.py (sha256 " in warning for warning in plan["warnings"])
    page = (store.run_folder(graph.name, graph.id) / "report" / "report.html").read_text()
    assert '<p class="alarm">trust_remote_code: tasks run the code of ./teacher: ' in page


def test_a_run_says_it_on_stderr(trusted, capsys):
    _, graph, store, _ = trusted
    assert small.run(graph, store) == 0
    assert wording("foreign_code.warning_trust_remote_code") in capsys.readouterr().err


def test_an_exported_model_has_its_code_and_says_so(trusted, tmp_path, capsys):
    folder, graph, store, _ = trusted
    plan = next(n.task.record.plan for n in graph.nodes.values() if n.task.kind == "interpolate")
    file = tmp_path / "graph.json"
    graph.write(file)
    command = [str(file), "--store", str(store.root), "--plan", layers_text(plan), "--folder", str(tmp_path / "out")]
    assert export.main(command) == 0
    assert "warning: trust_remote_code" in capsys.readouterr().err
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'from_pretrained("out", trust_remote_code=True)' in card
    assert wording("foreign_code.model_needs_code_own") in card
    assert "- ./teacher: configuration_quiet.py (sha256 " in card
    with pytest.raises(ValueError, match="custom code"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    with pytest.warns(UserWarning, match=wording("foreign_code.tasks_run_code_teacher")):
        ours = boomspec.load(folder / "spec.yaml", "3 layers", store=folder / "store")
    tokens = torch.arange(1, 17)[None]
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, ours(tokens).logits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        family = boomspec.family(folder / "spec.yaml", store=folder / "store")
    with torch.no_grad():
        assert torch.equal(family.model("3 layers")(tokens).logits, ours(tokens).logits)


def test_the_code_of_a_hub_model_is_that_of_the_pinned_commit(tmp_path):
    foreign.write(tmp_path / "hub" / "teacher")
    small.write_spec(tmp_path, **{**TRUSTING, "teacher": {**TRUSTING["teacher"], "model": "maker/teacher"}})
    with hub("maker/teacher", tmp_path / "hub" / "teacher") as (endpoint, log):
        variables = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
        done = cli(tmp_path, "graph", "spec.yaml", **variables)
        assert done.returncode == 0, done.stderr
        sources = json.loads(done.stdout)["sources"].values()
        identity = next(source["identity"] for source in sources if source["kind"] == "model")
        assert identity["revision"] == COMMIT
        assert "modeling_quiet.py" in identity["code"]
        fetched = [line for line in log if ".py" in line]
        assert fetched
        assert all(COMMIT in line for line in fetched)
        planned = cli(tmp_path, "plan", "spec.yaml", **variables)
        assert wording("foreign_code.tasks_run_code_maker", commit=COMMIT[:12]) in planned.stderr
        # Without trust no code is even fetched.
        small.write_spec(tmp_path, **{**SECTIONS, "teacher": {"pretrain": None, "model": "maker/teacher"}})
        log.clear()
        refused = cli(tmp_path, "plan", "spec.yaml", **{**variables, "HF_HOME": str(tmp_path / "other")})
        assert refused.returncode == 2
        assert wording("foreign_code.needs_code_own", name="maker/teacher") in refused.stderr + refused.stdout
        assert not [line for line in log if ".py" in line]


def _no_code(folder: Path) -> None:
    tiny.model(vocab_size=300).save_pretrained(folder)
    foreign.write_tokenizer(folder, brings_code=False)


def _elsewhere(folder: Path) -> None:
    foreign.write(folder)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("modeling_quiet.", "maker/other--modeling_quiet."))


def _missing(folder: Path) -> None:
    foreign.write(folder)
    (folder / "modeling_quiet.py").unlink()


def _no_head(folder: Path) -> None:
    foreign.write(folder)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"AutoModelForCausalLM"', '"AutoModel"'))


def _malformed(folder: Path) -> None:
    foreign.write(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": 7}}))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_no_code, r"brings no code along: there is no 'auto_map' in its config\.json and tokenizer_config\.json"),
        (_elsewhere, "names code of another repository: maker/other--modeling_quiet.QuietForCausalLM"),
        (_missing, "there is no modeling_quiet.py beside it"),
        (_no_head, "'auto_map' names no AutoModelForCausalLM"),
        (_malformed, "'auto_map.AutoModelForCausalLM' names no class: 7"),
    ],
)
def test_what_cannot_be_trusted_is_an_error_at_its_line(tmp_path, make, says):
    make(tmp_path / "teacher")
    with pytest.raises(SpecError, match=says) as caught:
        small.compiled(small.write_spec(tmp_path, **TRUSTING), FolderStore(tmp_path / "store"))
    assert "teacher.trust_remote_code" in str(caught.value)


def test_teacher_and_student_have_to_run_the_same_code(tmp_path):
    marker = foreign.write(tmp_path / "teacher", native=True, tokenizer=False)
    foreign.write(tmp_path / "student", native=True, tokenizer=False, layers=2, seed=1, marker=marker)
    student = {"model": "./student", "keep": [0, 2]}
    spec = small.write_spec(tmp_path, **{**TRUSTING, "distill": None, "student": student})
    with pytest.raises(SpecError, match=wording("foreign_code.code_one_teacher_student")):
        small.compiled(spec, FolderStore(tmp_path / "store"))
    student["trust_remote_code"] = True
    spec = small.write_spec(tmp_path, **{**TRUSTING, "distill": None, "student": student})
    assert small.compiled(spec, FolderStore(tmp_path / "store")).families
    with (tmp_path / "student" / "parts.py").open("a") as file:
        file.write("# another\n")
    with pytest.raises(SpecError, match=wording("foreign_code.teacher_student_bring_different")):
        small.compiled(spec, FolderStore(tmp_path / "store"))


def test_code_is_looked_at_file_by_file(tmp_path):
    foreign.write(tmp_path / "teacher")
    assert not runs_code(tmp_path / "teacher", "model", ())
    assert not runs_code(tmp_path / "teacher", "model", {"0" * 64})
    foreign.write_tokenizer(tmp_path / "teacher", brings_code=False)
    assert not runs_code(tmp_path / "teacher", "tokenizer", {"0" * 64})


def _named(folder: Path, config: str, auto_map: dict) -> None:
    """Let a config of a model folder name other classes."""
    path = folder / config
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": auto_map}))


def _of_another_repository(folder: Path, marker: Path) -> Path:
    """A hub repository as transformers finds one in the working folder; its code writes into `marker`."""
    (folder / "evil" / "repo").mkdir(parents=True)
    told = f"open({str(marker)!r}, 'a').write('evil\\n')\n"
    (folder / "evil" / "repo" / "modeling_x.py").write_text(
        f"{told}from transformers import LlamaForCausalLM\nclass X(LlamaForCausalLM): pass\n"
    )
    return folder


def test_a_class_that_is_in_no_trusted_file_is_never_run(tmp_path, monkeypatch):
    marker = tmp_path / "code-has-run"
    monkeypatch.chdir(_of_another_repository(tmp_path, marker))
    foreign.write(tmp_path / "teacher", marker=marker)
    trusts = set(code_digests(tmp_path / "teacher").values())
    tiny.model(vocab_size=300).save_pretrained(tmp_path / "student")
    for name in ("evil/repo--modeling_x.X", "modeling_x.X", f"{tmp_path}/evil/repo/modeling_x.X"):
        _named(tmp_path / "student", "config.json", {"AutoModelForCausalLM": name})
        assert not runs_code(tmp_path / "student", "model", trusts)
        assert type(load(tmp_path / "student", dtype=torch.float32, code=trusts)).__name__ == "LlamaForCausalLM"
    assert runs_code(tmp_path / "teacher", "model", trusts)
    _named(tmp_path / "teacher", "config.json", {**foreign.MAP, "AutoModelForCausalLM": "evil/repo--modeling_x.X"})
    with pytest.raises(BoomspecError, match=wording("foreign_code.needs_code_own_2")):
        load(tmp_path / "teacher", dtype=torch.float32, code=trusts)
    assert not marker.exists()


def test_the_config_that_a_tokenizer_is_loaded_with_has_to_be_trusted_too(tmp_path):
    foreign.write(tmp_path / "teacher")
    trusts = set(code_digests(tmp_path / "teacher").values())
    assert runs_code(tmp_path / "teacher", "tokenizer", trusts)
    _named(tmp_path / "teacher", "config.json", {**foreign.MAP, "AutoConfig": "evil/repo--modeling_x.X"})
    assert not runs_code(tmp_path / "teacher", "tokenizer", trusts)


def _students(folder: Path, **sections) -> Path:
    """A spec of a student that exists, with one lm-eval task and no text; its models lie in ./teacher and ./student."""
    (folder / "tasks").mkdir()
    (folder / "tasks" / "one.yaml").write_text("task: one\noutput_type: multiple_choice\ntest_split: test\n")
    evaluate = {"held_out": None, "max_tokens": None, "tasks": ["one"], "tasks_folder": "tasks"}
    student = {"model": "./student", "keep": [0, 2]}
    without = {"data": None, "distill": None, "interpolate": None, "evaluate": evaluate, "student": student}
    return small.write_spec(folder, **{**TRUSTING, **without, **sections})


def test_the_tokenizers_code_is_looked_at_where_no_text_is_read_too(tmp_path):
    foreign.write(tmp_path / "teacher", native=True, tokenizer=False)
    foreign.write(tmp_path / "student", native=True, tokenizer=False, layers=2)
    named = {"AutoTokenizer": [None, "evil/repo--modeling_x.X"]}
    for folder in ("teacher", "student"):
        _named(tmp_path / folder, "tokenizer_config.json", named)
    student = {"model": "./student", "keep": [0, 2], "trust_remote_code": True}
    with pytest.raises(SpecError) as caught:
        small.compiled(_students(tmp_path, student=student), FolderStore(tmp_path / "store"))
    for role in ("teacher", "student"):
        said = f"{role}.trust_remote_code: tokenizer_config.json of './{role}': 'auto_map' names code of another"
        assert said in str(caught.value)


def test_a_student_that_nobody_trusts_does_not_run_what_the_teachers_trust_is_about(tmp_path, monkeypatch):
    marker = tmp_path / "code-has-run"
    monkeypatch.chdir(_of_another_repository(tmp_path, marker))
    for name, layers in (("teacher", 4), ("student", 2)):
        tiny.model(layers=layers, vocab_size=300).save_pretrained(tmp_path / name)
    foreign.write(tmp_path / "other", marker=tmp_path / "tokenizer-code")
    for file in ("tokenization_quiet.py", "parts.py"):
        (tmp_path / "teacher" / file).write_text((tmp_path / "other" / file).read_text())
    foreign.write_tokenizer(tmp_path / "teacher", brings_code=True)
    _named(tmp_path / "student", "config.json", {"AutoModelForCausalLM": "evil/repo--modeling_x.X"})
    graph = small.compiled(_students(tmp_path), FolderStore(tmp_path / "store")).graph

    ran = {}
    for node in graph.nodes.values():
        if node.task.kind == "evaluate":
            context = tiny.context(tmp_path / node.id[:8], node.task.record)
            context.execution = node.execution
            found = {role: Input(i, source=graph.sources.get(i)) for role, i in node.task.inputs.items()}
            context.inputs.update(found)
            ran[node.name] = context.code_of("model")
    assert ran["evaluate student: one"] == ()
    # The teacher's folder has its tokenizer, too, which lm-eval reads there: its code is part of what the model is.
    assert set(ran["evaluate teacher: one"]) == digests(graph) == set(code_digests(tmp_path / "teacher").values())
    assert runs_code(tmp_path / "teacher", "tokenizer", ran["evaluate teacher: one"])
    load(tmp_path / "student", dtype=torch.float32, code=digests(graph))
    assert not marker.exists()


def test_weights_that_are_missing_are_never_drawn_at_random(tmp_path):
    foreign.write(tmp_path / "teacher", native=True)
    foreign.without_a_weight(tmp_path / "teacher")
    with pytest.raises(BoomspecError, match=wording("foreign_code.weights_llamaforcausallm_not_such")):
        load(tmp_path / "teacher", dtype=torch.float32)


def test_a_run_without_trust_never_asks_a_question(tmp_path, monkeypatch):
    """transformers asks on the terminal whether to run code, unless it is told."""
    foreign.write(tmp_path / "teacher", native=True)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it has asked"))
    assert type(load(tmp_path / "teacher", dtype=torch.float32)).__name__ == "LlamaForCausalLM"
