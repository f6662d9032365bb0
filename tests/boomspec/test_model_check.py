"""Before anything takes long, a check of seconds: what the compiler puts in front, and what it never changes."""

import json
from types import SimpleNamespace

import pytest
import yaml

from boomspec.compile.compiler import Compiled, compile_experiments
from boomspec.core.graph_file import read_graph
from boomspec.core.layers import teacher_layers
from boomspec.core.tasks import Check
from boomspec.models.outline import config_of, tensors_of
from boomspec.plan import model_checks
from boomspec.plan.model_checks import CheckResult, check_models
from boomspec.spec.experiments import load_experiments
from boomspec.spec.spec_file import SpecFile
from boomspec.store import FolderStore
from tests.boomspec.conftest import Writer
from tests.boomspec.model_folders import TENSORS, llama, model
from tests.messages import wording

SPEC = {
    "boomspec": 1,
    "name": "local",
    "teacher": {"model": "./teacher"},
    "student": {"keep": [0]},
    "data": {"files": "*.txt", "sequence_length": 8, "held_out": {"every": 4}},
    "distill": {"tokens": 512, "batch_tokens": 64, "losses": {"cross_entropy": {"weight": 1.0}}},
    "evaluate": {"held_out": {}},
    "baselines": ["naive_pruning"],
}


@pytest.fixture
def compiled(specs: Writer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(TENSORS, "model.layers.2.mlp.up_proj.weight", (4, 4))
    model(specs.folder / "teacher", num_hidden_layers=3)

    def compile_it(**sections: object) -> tuple[Compiled, tuple[SpecFile, ...]]:
        files = load_experiments(specs.text(yaml.safe_dump({**SPEC, **sections})))
        return compile_experiments(files), tuple(files)

    return compile_it


def checks(compiled: Compiled):
    return [node for node in compiled.graph.nodes.values() if node.task.kind == "check"]


def test_everything_that_takes_long_comes_after_the_check(compiled):
    graph = compiled()[0].graph
    [check] = checks(compiled()[0])
    assert next(iter(graph.nodes)) == check.id
    after = {node.name for node in graph.nodes.values() if node.after == (check.id,)}
    assert after == {node.name for node in graph.nodes.values()} - {"check the family", "tokenize", "report"}
    assert {"distill student", "evaluate teacher: held_out"} <= after


def test_a_check_is_no_input_and_in_no_id(compiled, monkeypatch):
    first = compiled()[0].graph
    monkeypatch.setattr("boomspec.compile.builder.distributions", lambda name: [SimpleNamespace(version="another")])
    second = compiled()[0].graph
    assert [node.id for node in first.nodes.values() if node.task.kind == "check"] != [
        node.id for node in second.nodes.values() if node.task.kind == "check"
    ]
    assert {i for i, n in first.nodes.items() if n.task.kind != "check"} == {
        i for i, n in second.nodes.items() if n.task.kind != "check"
    }
    assert first.id == second.id
    assert not any("check" in role for node in first.nodes.values() for role in node.task.inputs)


def test_a_check_depends_on_what_it_asks_and_on_nothing_else(compiled):
    def check(**sections: object) -> str:
        return checks(compiled(**sections)[0])[0].id

    same = check()
    assert check(name="other") == same
    assert check(seed=3) == same
    assert check(data={**SPEC["data"], "sequence_length": 16}) == same
    assert check(distill={**SPEC["distill"], "tokens": 1024}) == same
    assert check(student={"keep": [0, 1]}) != same


def test_the_record_holds_config_names_shapes_and_plans(compiled):
    record = checks(compiled()[0])[0].task.record
    assert isinstance(record, Check)
    assert {name: entry.shape for name, entry in tensors_of(record.teacher.tensors).items()} == TENSORS
    assert config_of(record.teacher.config)["num_hidden_layers"] == 3
    assert [(size.plan, size.tied) for size in record.sizes] == [(teacher_layers([0]), False)]
    assert record.student is None
    assert record.kept == (0,)


def test_weights_do_not_matter(compiled, specs):
    before = checks(compiled()[0])[0].id
    file = specs.folder / "teacher" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    after = compiled()[0]
    assert checks(after)[0].id == before
    config = json.loads((specs.folder / "teacher" / "config.json").read_text())
    (specs.folder / "teacher" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert checks(compiled()[0])[0].id != before


def test_a_teacher_that_is_made_here_needs_none(specs):
    assert not any(node.after for node in specs.compiled().graph.nodes.values())
    assert not checks(specs.compiled())


def test_experiments_with_one_family_share_the_check(compiled):
    found = compiled(sweep={"seed": [0, 1]})[0]
    [check] = checks(found)
    assert all(check.id in experiment.tasks.values() for experiment in found.graph.experiments)
    assert all(n.after == (check.id,) for n in found.graph.nodes.values() if n.task.kind == "distill")


def test_what_experiments_of_two_families_share_waits_for_neither(compiled):
    found = compiled(variants={"whole": {"student": {"keep": [0, 1]}}})[0]
    assert len(checks(found)) == 2
    after = {node.name: node.after for node in found.graph.nodes.values()}
    assert after["evaluate teacher: held_out"] == ()
    first, second = (node.id for node in checks(found))
    assert {after["distill student"], after["whole: distill student"]} == {(first,), (second,)}


def test_a_search_comes_after_a_check_too(compiled):
    keep = {"block_influence": 1, "calibration": {"sequences": 2}}
    found = compiled(student={"keep": keep})[0]
    assert found.pending
    [check] = checks(found)
    assert [n.after for n in found.graph.nodes.values() if n.task.kind == "search"] == [(check.id,)]


def test_the_graph_file_keeps_it(compiled, tmp_path):
    graph = compiled()[0].graph
    graph.write(tmp_path / "graph.json")
    assert read_graph(tmp_path / "graph.json").nodes == graph.nodes


def test_what_was_refused_before_is_refused_at_once_and_with_its_place(compiled, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found, _files = compiled()
    [check] = checks(found)
    model_checks._remember(check.id, CheckResult("its layers know their place", "take another one"))
    with pytest.raises(Exception, match=wording("model_check.spec_yaml_teacher_model")) as error:
        check_models(found, FolderStore(tmp_path / "store"))
    assert "hint: take another one" in str(error.value)
    assert error.value.exit_code == 2


def test_a_plain_family_is_not_asked_about(specs, tmp_path, monkeypatch):
    """`plan` stays as fast as it is: no process with transformers is started, nothing is remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(model_checks.subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    llama(specs.folder / "teacher", layers=30)
    files = load_experiments(specs.text(yaml.safe_dump({**SPEC, "student": {"keep": {"every": 2}}})))
    found = compile_experiments(files)
    assert len(checks(found)) == 1
    assert check_models(found, FolderStore(tmp_path / "store")) == []
    assert not (tmp_path / "cache").exists()


def test_where_transformers_is_missing_it_is_said(compiled, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(model_checks, "_NEEDED", ("a_package_that_nobody_has",))
    found, _files = compiled()
    notes = check_models(found, FolderStore(tmp_path / "store"))
    missing = "a_package_that_nobody_has is not installed here"
    assert notes == [wording("model_check.teacher_family_could_not", missing=missing)]


def test_families_beyond_the_first_few_are_said_to_be_checked_later(compiled, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(model_checks, "_NEEDED", ("a_package_that_nobody_has",))
    monkeypatch.setattr(model_checks, "_MOST", 1)
    found, _files = compiled(variants={"whole": {"student": {"keep": [0, 1]}}})
    notes = check_models(found, FolderStore(tmp_path / "store"))
    assert notes[1:] == [wording("model_check.families_only_tried_others")]


def test_a_check_in_the_store_is_not_made_again(compiled, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found, _files = compiled()
    [check] = checks(found)
    store = FolderStore(tmp_path / "store")
    with store.workspace("check", check.id) as workspace:
        store.publish(workspace, "check", check.id, check.task.identity(), {})
    model_checks._remember(check.id, CheckResult("refused"))
    assert check_models(found, store) == []


def test_a_student_that_leaves_more_to_defaults_is_asked_about(specs, tmp_path, monkeypatch):
    """What the default is, only transformers knows."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked: list[object] = []
    monkeypatch.setattr(model_checks, "_asked", lambda nodes: asked.append(nodes) or ({}, ""))
    llama(specs.folder / "teacher", layers=4)
    student = llama(specs.folder / "student", layers=2)
    config = json.loads((specs.folder / "teacher" / "config.json").read_text())
    spec = {
        "student": {"model": "./student", "keep": [0, 2]},
        "interpolate": {"order": "first_to_last", "sizes": "all"},
    }
    spec = {**{key: SPEC[key] for key in ("boomspec", "name", "teacher")}, **spec}

    def check(**fields: object) -> int:
        own = {k: v for k, v in {**config, "num_hidden_layers": 2, **fields}.items() if v is not None}
        (student / "config.json").write_text(json.dumps(own))
        files = load_experiments(specs.text(yaml.safe_dump(spec)))
        asked.clear()
        check_models(compile_experiments(files), FolderStore(tmp_path / "store"))
        return len(asked)

    assert [check(), check(transformers_version="4.0", use_cache=False)] == [0, 0]
    assert [check(rms_norm_eps=1e-2), check(rope_theta=5e5), check(hidden_act="gelu")] == [1, 1, 1]
