"""`boomspec show`: every value written out, and what was not written marked."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from click.testing import CliRunner

from boomspec.commands.cli import main
from boomspec.commands.show import review
from boomspec.compile.resolved import FOLLOWING
from boomspec.core.graph_file import read_graph
from boomspec.spec.experiments import load_spec
from tests.boomspec.past import past_run
from tests.messages import wording

SET = """\
extends: base.yaml
name: several
distill: {tokens: 4096}
variants:
  slow: {distill: {optimizer: {lr: 1e-5}}}
  first: {student: {keep: 2}, interpolate: {order: first_to_last}}
sweep:
  seed: [0, 1]
"""


def call(*arguments: object):
    return CliRunner().invoke(main, ["show", *(str(a) for a in arguments)], catch_exceptions=False)


@pytest.fixture
def several(specs):
    specs.text(specs.SPEC, "base.yaml")
    return specs.text(SET, "several.yaml")


def values(text: str) -> dict[str, str]:
    """The comment of every line of a shown spec, by its dotted path."""
    found, above = {}, []
    for line in filter(None, text.splitlines()):
        said, _, comment = line.partition("  # ")
        depth = (len(said) - len(said.lstrip())) // 2
        above = [*above[:depth], said.split(":")[0].strip()]
        found[".".join(above)] = comment
    return found


def test_every_field_of_the_language_is_shown_with_its_value(specs):
    path = specs.text(specs.SPEC)
    shown = yaml.safe_load(call(path).output)
    meaning = specs.compiled().graph.experiments[0].meaning

    def check(expected, found):
        if isinstance(expected, dict):
            assert expected.keys() == found.keys()
            for key in expected:
                check(expected[key], found[key])
        else:
            assert found == expected or float(found) == expected  # YAML 1.1 reads 1e-08 as a text

    check({key: value for key, value in meaning.items() if key != "written"}, shown)


def test_what_was_not_written_is_marked_and_what_was_is_not(specs):
    marks = values(call(specs.text(specs.SPEC)).output)
    assert (
        marks["distill.optimizer"] == marks["distill.precision"] == marks["teacher.pretrain.optimizer.eps"] == "default"
    )
    assert marks["seed"] == marks["teacher.pretrain.optimizer.lr"] == marks["distill.losses.kl.weight"] == ""
    assert marks["distill.losses.kl.temperature"] == "default"
    assert marks["baselines.naive_pruning"] == ""


def test_a_rule_is_shown_beside_what_it_became(specs):
    path = specs.text(specs.SPEC.replace("keep: [0, 2, 4]", "keep: {every: 2}"))
    marks = values(call(path).output)
    assert marks["student.keep"] == "from {every: 2, first: 1, last: 1}"
    assert marks["interpolate.order"] == "from last_to_first"
    assert marks["interpolate.sizes"] == "from all"
    assert "plan: s0-1 t4-5" in call(specs.text(specs.SPEC)).output
    assert not any(marks.get(".".join(place)) for place in FOLLOWING)


def test_writing_defaults_out_removes_their_marks_and_changes_nothing_else(specs):
    plain = specs.text(specs.SPEC)
    before = call(plain).output
    optimizer = "optimizer: {lr: 3e-4, betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.1, clip: 1.0}"
    plain.write_text(specs.SPEC.replace("distill:\n", f"distill:\n  {optimizer}\n"))
    after = call(plain).output
    assert values(before)["distill.optimizer"] == "default"
    assert values(after)["distill.optimizer"] == ""
    assert yaml.safe_load(before) == yaml.safe_load(after)


def test_a_value_of_a_base_file_or_a_variant_says_where_it_comes_from(several):
    marks = values(call(f"{several}#slow,seed=1").output)
    assert marks["distill.optimizer.lr"] == "variant 'slow'"
    assert marks["seed"] == "seed=1"
    assert marks["distill.tokens"] == ""
    lines = several.with_name("base.yaml").read_text().splitlines()
    assert marks["distill.batch_tokens"] == f"base.yaml:{1 + lines.index('  batch_tokens: 256', 15)}"
    assert marks["distill.optimizer.eps"] == "default"
    assert values(call(f"{several}#first,seed=0").output)["student.keep"] == "from 2, variant 'first'"


def test_of_several_experiments_the_first_is_shown_and_how_the_others_differ(several):
    printed = call(several).output
    assert printed.startswith("# base,seed=0\n")
    rows = [line.split(maxsplit=2)[1:] for line in printed.splitlines() if line.startswith("#   ")]
    assert rows == [
        ["base,seed=1", "seed: 1"],
        ["slow,seed=0", "distill.optimizer.lr: 1e-05"],
        ["slow,seed=1", "seed: 1, distill.optimizer.lr: 1e-05"],
        ["first,seed=0", "student.keep: [0, 3], interpolate.order: [0, 1]"],
        ["first,seed=1", "seed: 1, student.keep: [0, 3], interpolate.order: [0, 1]"],
    ]
    documents = list(yaml.safe_load_all(call(several, "--all").output))
    assert [document["seed"] for document in documents] == [0, 1, 0, 1, 0, 1]


def test_for_programs_there_are_meanings_and_the_names_of_defaults(several):
    answer = json.loads(call(several, "--json").output)
    assert (answer["schema"], answer["name"], answer["unknown"]) == (1, "several", None)
    first = answer["experiments"][0]
    assert (first["label"], first["axes"]) == ("base,seed=0", {"variant": "base", "seed": "0"})
    assert first["meaning"]["distill"]["tokens"] == 4096
    assert "distill.optimizer.eps" in first["defaults"]
    assert not {"distill.tokens", "seed", "distill.batch_tokens", "student.parameters"} & set(first["defaults"])


def test_a_graph_and_a_run_show_what_their_spec_does(specs, several):
    from boomspec.compile.compiler import compile_experiments
    from boomspec.store import FolderStore

    graph = compile_experiments([load_spec(specs.text(specs.SPEC))]).graph
    run = past_run(FolderStore(specs.folder / "store"), graph, made=False)
    by_spec = yaml.safe_load(call(specs.folder / "spec.yaml").output)
    assert yaml.safe_load(call(run).output) == yaml.safe_load(call(run / "graph.json").output) == by_spec
    assert "default" not in call(run).output  # a graph does not say what was written
    CliRunner().invoke(main, ["graph", str(several), "-o", str(specs.folder / "set.json")])
    assert len(read_graph(specs.folder / "set.json").experiments) == 6
    assert "seed: 1" in call(f"{specs.folder / 'set.json'}#slow,seed=1").output


@pytest.mark.parametrize("more", ["", "sweep: {seed: [0, 1]}\n"], ids=["one", "several"])
def test_without_a_network_it_shows_what_it_can_and_says_what_is_not_known(tmp_path, more):
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "boomspec: 1\nname: x\nteacher: {model: nobody/nothing}\nstudent: {keep: {every: 2}}\n"
        "data: {dataset: nobody/text, sequence_length: 32, max_tokens: 1M}\ndistill: {tokens: 1M, batch_tokens: 1k}\n"
        + more
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "boomspec", "show", str(spec)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert yaml.safe_load(result.stdout)["student"]["keep"] == {"every": 2, "first": 1, "last": 1}
    assert "tokens: 1000000" in result.stdout
    assert wording("show.not_known_layers_sizes") in result.stdout


def test_a_search_that_has_not_run_is_named_as_what_is_missing(specs):
    _, experiments, unknown = review(
        specs.text(specs.SPEC.replace("keep: [0, 2, 4]", "keep: {block_influence: 3}")), None
    )
    assert unknown == wording("show.layers_their_order_before")
    assert experiments[0].meaning["student"]["keep"]["block_influence"] == 3


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("none.yaml", "none.yaml: no such file"),
        ("several.yaml#fast", wording("show.no_experiment", name="fast")),
        (".", "holds no graph.json"),
        ("wrong.json", wording("diff.cannot_read_compiled_graph")),
        ("wrong.yaml", "unknown key"),
    ],
)
def test_what_cannot_be_shown_is_an_error(several, address, message):
    (several.parent / "wrong.json").write_text("{")
    (several.parent / "wrong.yaml").write_text("boomspec: 1\nname: x\nteecher: {}\n")
    result = call(several.parent / address)
    assert result.exit_code == 2
    assert message in result.output
