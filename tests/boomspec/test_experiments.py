"""extends, variants and sweep: what experiments they make, and one graph of all of them."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from boomspec.commands.cli import main
from boomspec.compile import places, text_sources
from boomspec.compile.compiler import Compiled, compile_experiments
from boomspec.core.errors import BoomspecError, SpecError
from boomspec.core.graph import Task
from boomspec.core.graph_file import read_graph
from boomspec.plan.run import open_run
from boomspec.spec.experiments import load_experiments, load_spec
from boomspec.spec.json_schema import json_schema
from tests.messages import wording

EXTENDING = "extends: spec.yaml\nname: extending\n"
NO_KL = "variants:\n  no-kl: {distill: {losses: {kl: null}}}\n"


@pytest.fixture
def extending(specs, folder):
    """Writes a spec that extends the tiny one, and gives its path."""
    specs.text(specs.SPEC)

    def write(text: str, name: str = "extending.yaml") -> Path:
        (folder / name).parent.mkdir(exist_ok=True)
        return specs.text(EXTENDING + text, name)

    return write


def call(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def labels(path) -> list[str]:
    return [file.label for file in load_experiments(path)]


def problems(path) -> list[tuple[str, int, str]]:
    with pytest.raises(SpecError) as raised:
        compile_experiments(load_experiments(path))
    return [(Path(p.file or "").name, p.line, p.message) for p in raised.value.problems]


def tasks(compiled: Compiled) -> dict[str, str]:
    return {node.name: node.id for node in compiled.graph.nodes.values()}


# extends


def test_mappings_merge_everything_else_is_replaced_and_null_removes(extending):
    spec = load_spec(
        extending(
            """\
student: {keep: [0, 3]}
distill:
  tokens: 1024
  losses: {kl: null, cross_entropy: {weight: 2.0}}
baselines: null
"""
        )
    ).spec
    assert spec.name == "extending"
    assert spec.student.keep == (0, 3)
    assert (spec.distill.tokens, spec.distill.batch_tokens) == (1024, 256)
    assert dict(spec.distill.losses.terms()).keys() == {"cross_entropy", "hidden_cosine"}
    assert spec.distill.losses.cross_entropy.weight == 2.0
    assert spec.baselines == ()


def test_a_base_may_extend_another_one_and_lack_what_the_last_one_says(extending, specs):
    extending("distill: {tokens: 4k}\n", "middle.yaml")
    whole = load_spec(specs.text("extends: middle.yaml\nname: last\nseed: 3\n", "last.yaml")).spec
    assert (whole.name, whole.seed, whole.distill.tokens, whole.student.keep) == ("last", 3, 4000, (0, 2, 4))
    specs.text("distill: {losses: {kl: {temperature: 2.0}}}\n", "part.yaml")
    text = specs.SPEC.replace("boomspec: 1\n", "boomspec: 1\nextends: part.yaml\n")
    assert load_spec(specs.text(text, "whole.yaml")).spec.distill.losses.kl.temperature == 2.0


def test_a_spec_that_extends_another_one_means_what_it_says_written_out(extending, specs):
    extended = compile_experiments([load_spec(extending("seed: 3\ndistill: {losses: {kl: null}}\n"))])
    written = specs.edited(("seed", 3), ("distill.losses.kl", None), ("name", "extending"))
    assert extended.graph.nodes.keys() == written.graph.nodes.keys()
    assert extended.graph.experiments[0].meaning == written.graph.experiments[0].meaning


def test_a_path_is_relative_to_the_file_that_says_it(extending, folder):
    below = folder / "below"
    below.mkdir()
    (below / "other.txt").write_text("another document\n" * 40)
    text = "extends: ../spec.yaml\nname: below\n"
    (below / "same.yaml").write_text(text)
    (below / "own.yaml").write_text(text + 'data: {files: "*.txt", held_out: null}\nevaluate: null\n')
    same, own = (load_spec(below / name) for name in ("same.yaml", "own.yaml"))
    assert [path.name for path in text_sources.data_files(same)] == [f"{i}.txt" for i in range(8)]
    assert text_sources.data_files(own) == [below / "other.txt"]
    extending("", "plain.yaml")
    assert text_sources.text_source(same) == text_sources.text_source(load_spec(folder / "plain.yaml"))
    assert places.resolve_path(same, ("execution", "store"), "store") == folder / "store"


def test_variants_and_sweep_of_a_base_are_not_taken_over(extending, specs):
    extending(NO_KL + "sweep: {seed: [0, 1]}\n", "base.yaml")
    assert labels(specs.text("extends: base.yaml\nname: last\n", "last.yaml")) == [""]


def test_aliases_stand_for_whole_values_in_overrides_too(extending):
    path = extending("distill: {losses: &losses {kl: null}}\nvariants:\n  again: {distill: {tokens: 4k}}\n")
    assert [dict(file.spec.distill.losses.terms()).keys() for file in load_experiments(path)] == [
        {"cross_entropy", "hidden_cosine"}
    ] * 2
    shared = "variants:\n  a: &more {distill: {optimizer: {lr: 1e-4}}}\n  b: *more\n"
    base, a, b = load_experiments(extending(shared, "shared.yaml"))
    assert a.spec == b.spec != base.spec


def test_a_problem_in_a_base_is_shown_with_the_line_of_the_base(extending, specs):
    specs.text(specs.SPEC.replace("tokens: 2048", "tokens: many"))
    result = call("validate", extending("seed: -1\n", "wrong.yaml"), "--json")
    assert [(Path(p["file"]).name, p["where"]) for p in json.loads(result.output)["error"]["problems"]] == [
        ("wrong.yaml", "seed"),
        ("spec.yaml", "distill.tokens"),
    ]
    assert " |   tokens: many\n" in call("validate", specs.folder / "wrong.yaml").output


# variants and sweep: labels and axes


def test_a_plain_spec_is_one_experiment_without_a_label(specs):
    (file,) = load_experiments(specs.text(specs.SPEC))
    assert (file.label, file.axes) == ("", {})


def test_labels_and_axes_name_the_variant_and_the_point(extending):
    assert labels(extending(NO_KL)) == ["base", "no-kl"]
    assert labels(extending("sweep: {seed: [0, 1], distill.optimizer.lr: [3e-4, 1e-3]}\n")) == [
        "seed=0,lr=3e-4",
        "seed=0,lr=1e-3",
        "seed=1,lr=3e-4",
        "seed=1,lr=1e-3",
    ]
    files = load_experiments(extending(NO_KL + "sweep: {seed: [0, 1]}\n"))
    assert [(file.label, file.axes) for file in files] == [
        ("base,seed=0", {"variant": "base", "seed": "0"}),
        ("base,seed=1", {"variant": "base", "seed": "1"}),
        ("no-kl,seed=0", {"variant": "no-kl", "seed": "0"}),
        ("no-kl,seed=1", {"variant": "no-kl", "seed": "1"}),
    ]
    assert [file.spec.seed for file in files] == [0, 1, 0, 1]
    assert [file.spec.distill.losses.kl is None for file in files] == [False, False, True, True]


def test_an_axis_is_called_by_the_shortest_end_of_its_path_that_no_other_has(extending):
    path = extending("sweep:\n  distill.losses.kl.weight: [1]\n  distill.losses.hidden_cosine.weight: [2]\n")
    assert labels(path) == ["kl.weight=1,hidden_cosine.weight=2"]


@pytest.mark.parametrize(
    ("field", "values", "texts"),
    [
        ("student.keep", "[[0, 2, 4], 3, {every: 2}]", ["0+2+4", "3", "every:2"]),
        ("interpolate.sizes", '["4 layers", all, [50%, 80%]]', ["4-layers", "all", "50%+80%"]),
        ("distill.tokens", "[1_024, 4k, '1024']", ["1_024", "4k", "1024"]),
        ("distill.losses.kl", "[null, {weight: 1}]", ["null", "weight:1"]),
        ("interpolate.sizes", '["4 layers", 4  layers]', ["4-layers~1", "4-layers~2"]),
    ],
)
def test_values_are_short_texts_that_need_no_quotes(extending, field, values, texts):
    files = load_experiments(extending(f"sweep:\n  {field}: {values}\n"))
    assert [next(iter(file.axes.values())) for file in files] == texts


def test_experiments_share_the_sections_that_they_have_from_the_same_lines_and_mean_what_each_means_alone(extending):
    path = extending("sweep:\n  seed: [1, 2]\n  distill.losses.kl.weight: [0.1, 0.2]\n")
    files = load_experiments(path)
    assert len({id(file.spec.teacher) for file in files}) == 1
    assert len({id(file.spec.distill) for file in files}) == 4
    for file in files:
        (alone,) = load_experiments(Path(f"{path}#{file.label}"))
        assert (alone.spec, alone.spec.model_fields_set) == (file.spec, file.spec.model_fields_set)


def test_long_values_are_cut_and_told_apart(extending):
    names = "[averyveryverylongtaskname_that_is_long_1, averyveryverylongtaskname_that_is_long_2]"
    path = extending(f"sweep:\n  evaluate.tasks: [{names}, {names.replace('_1', '_3')}]\n")
    first, second = labels(path)
    assert first != second
    assert max(map(len, (first, second))) <= len("tasks=") + 32


def test_a_value_of_the_sweep_takes_the_place_of_the_whole_field_and_null_leaves_it_out(extending):
    files = load_experiments(
        extending("sweep:\n  distill.losses.kl: [{weight: 1}, {weight: 1, temperature: 2}, null]\n")
    )
    kl = [file.spec.distill.losses.kl for file in files]
    assert [(one.weight, one.temperature) for one in kl[:2]] == [(1, 1), (1, 2)]
    assert kl[2] is None


# addresses


def test_an_address_names_one_experiment(extending):
    path = extending(NO_KL + "sweep: {seed: [0, 1]}\n")
    (file,) = load_experiments(f"{path}#no-kl,seed=1")
    assert (file.label, file.spec.seed, file.spec.distill.losses.kl) == ("no-kl,seed=1", 1, None)
    assert load_spec(path).label == "base,seed=0"


def test_an_unknown_label_says_which_there_are(extending, specs):
    path = extending(NO_KL)
    with pytest.raises(BoomspecError, match="no experiment 'no-kk'") as close:
        load_experiments(f"{path}#no-kk")
    assert close.value.hint == wording("cli.did_you_mean", name="no-kl")
    with pytest.raises(BoomspecError) as far:
        load_experiments(f"{path}#zzz")
    assert far.value.hint == wording("experiments.experiments_base_no_kl")
    with pytest.raises(BoomspecError, match="is one experiment") as plain:
        load_experiments(f"{specs.text(specs.SPEC)}#no-kl")
    assert plain.value.hint == "leave out '#no-kl'"


def test_a_wrong_variant_does_not_keep_another_one_from_being_used(extending):
    path = extending("variants:\n  wrong: {seed: -1}\n  right: {seed: 1}\n")
    assert load_spec(f"{path}#right").spec.seed == 1
    with pytest.raises(SpecError):
        load_experiments(path)


def test_a_file_whose_name_has_a_number_sign_is_that_file(specs):
    assert labels(specs.text(specs.SPEC, "a#b.yaml")) == [""]


# one graph


def test_a_set_has_the_task_ids_that_its_experiments_have_alone(extending):
    sweep = "sweep: {seed: [0, 1], distill.tokens: [1k, 2k], student.keep: [[0, 2, 4], 2]}\n"
    path = extending(NO_KL + sweep)
    together = compile_experiments(load_experiments(path))
    experiments = {experiment.label: experiment for experiment in together.graph.experiments}
    assert len(experiments) == 16
    for label, experiment in experiments.items():
        (alone,) = (compiled.graph for compiled in [compile_experiments(load_experiments(f"{path}#{label}"))])
        report = next(node.id for node in alone.nodes.values() if node.task.kind == "report")
        assert experiment.tasks == {node.name: node.id for node in alone.nodes.values() if node.id != report}
        assert experiment.meaning == alone.experiments[0].meaning
        assert experiment.family == alone.family
        assert together.families[label] == compile_experiments([load_spec(f"{path}#{label}")]).family


def test_a_sweep_over_the_evaluation_shares_everything_else(extending):
    alone = compile_experiments(load_experiments(extending("", "alone.yaml")))
    counts = ", ".join(str(1000 + i) for i in range(50))
    together = compile_experiments(load_experiments(extending(f"sweep:\n  evaluate.held_out.max_tokens: [{counts}]\n")))
    kinds = [node.task.kind for node in alone.graph.nodes.values() if node.task.kind not in ("evaluate", "report")]
    shared = [node for node in together.graph.nodes.values() if node.task.kind not in ("evaluate", "comparison")]
    assert sorted(kinds) == sorted(node.task.kind for node in shared)
    assert {node.name for node in shared} < set(tasks(alone))
    evaluations = [node for node in together.graph.nodes.values() if node.task.kind == "evaluate"]
    assert len(evaluations) == 50 * sum(node.task.kind == "evaluate" for node in alone.graph.nodes.values())


def test_names_are_unique_and_the_first_experiment_keeps_its_own(extending):
    graph = compile_experiments(load_experiments(extending(NO_KL))).graph
    names = [node.name for node in graph.nodes.values()]
    assert len(set(names)) == len(names)
    base = compile_experiments(load_experiments(extending("", "plain.yaml"))).graph
    assert {node.name for node in base.nodes.values()} - {"report"} <= set(names)
    assert "no-kl: distill student" in names
    assert "no-kl: tokenize" not in names  # the base has it


def test_the_comparison_takes_the_numbers_of_every_experiment(extending):
    graph = compile_experiments(load_experiments(extending(NO_KL))).graph
    comparison = graph.nodes[graph.targets[-1]]
    assert comparison.task.kind == "comparison"
    assert not any(node.task.kind == "report" for node in graph.nodes.values())
    compared = comparison.task.record.experiments
    assert [(one.label, one.axes) for one in compared] == [
        ("base", {"variant": "base"}),
        ("no-kl", {"variant": "no-kl"}),
    ]
    assert comparison.task.inputs.keys() == {f"{one.label}/{cell.input}" for one in compared for cell in one.cells}
    assert all(graph.nodes[i].task.kind == "evaluate" for i in comparison.task.inputs.values())


def test_ids_that_are_put_together_from_parts_are_those_of_the_whole(extending):
    graph = compile_experiments(load_experiments(extending(NO_KL + "sweep: {seed: [0, 1]}\n"))).graph
    for node in graph.nodes.values():
        assert Task(node.task.record, node.task.inputs).id == node.id


def test_a_graph_of_several_experiments_is_read_as_it_was_written(extending, folder):
    graph = compile_experiments(load_experiments(extending(NO_KL + "sweep: {seed: [0, 1]}\n"))).graph
    graph.write(folder / "graph.json")
    assert read_graph(folder / "graph.json") == graph
    assert "distill: {losses: {kl: null}}" in graph.spec
    assert "tokens: 2048" in graph.spec  # the base's text is there, too


def test_a_search_of_one_experiment_makes_the_graph_wait_for_it(extending, specs):
    path = extending("variants:\n  searched: {interpolate: {order: {search: klpatch}}}\n")
    waiting = compile_experiments(load_experiments(path), specs.answers)
    assert waiting.pending == (wording("experiments.searched_search_patch_order"),)
    search = tasks(waiting)[waiting.pending[0]]
    assert waiting.graph.targets[0] == search
    assert {waiting.graph.nodes[i].name for i in waiting.graph.targets} >= {"evaluate student: held_out"}
    assert waiting.families.keys() == {"base"}
    specs.found[search] = {"sets": [[], [2], [1, 2], [0, 1, 2]]}
    found = compile_experiments(load_experiments(path), specs.answers)
    assert found.pending == ()
    assert found.families.keys() == {"base", "searched"}
    # The same patched sets: everything is shared but the search.
    assert tasks(found).keys() - tasks(waiting).keys() == {"comparison"}


def test_every_file_is_read_once_for_all_experiments(extending, monkeypatch):
    read: list[Path] = []
    digest = places.file_digest
    monkeypatch.setattr(places, "file_digest", lambda path: read.append(path) or digest(path))
    compile_experiments(load_experiments(extending(NO_KL + "sweep: {seed: [0, 1, 2], data.skip: [0, 1]}\n")))
    assert len(read) == len(set(read)) == 8


def test_a_file_that_changes_is_read_again_by_the_next_command(extending, folder):
    files = load_experiments(extending(NO_KL))
    before = compile_experiments(files).graph
    (folder / "0.txt").write_text("something else\n" * 40)
    assert compile_experiments(files).graph.sources.keys() != before.sources.keys()


# runs and commands


def test_one_experiment_of_a_run_is_opened_by_its_label(extending, folder):
    path = extending(NO_KL)
    graph = compile_experiments(load_experiments(path)).graph
    run_folder = folder / "store" / "runs" / "extending"
    run_folder.mkdir(parents=True)
    graph.write(run_folder / "graph.json")
    alone = open_run(f"{path}#no-kl")
    for address in (f"{run_folder}#no-kl", f"{run_folder / 'graph.json'}#no-kl"):
        opened = open_run(address)
        assert opened.lineage() == alone.lineage()
        assert opened.lineage().student == graph.experiments[1].tasks["distill student"]
        assert {node.name: node.id for node in opened.graph.nodes.values()} == dict(graph.experiments[1].tasks)
    with pytest.raises(BoomspecError, match=wording("experiments.experiments")):
        open_run(run_folder).lineage()
    with pytest.raises(BoomspecError, match="no experiment 'no-kk'"):
        open_run(f"{run_folder}#no-kk")


def test_validate_says_how_many_experiments_there_are(extending):
    path = extending(NO_KL + "sweep: {seed: [0, 1, 2]}\n")
    assert call("validate", path).output == f"{path}: valid, 6 experiments\n"
    assert json.loads(call("validate", path, "--json").output)["experiments"] == labels(path)
    assert call("validate", f"{path}#no-kl,seed=1").output == f"{path}#no-kl,seed=1: valid\n"


def test_plan_and_graph_take_sets_and_labels(extending):
    path = extending(NO_KL)
    whole = json.loads(call("plan", path, "--json").output)
    one = json.loads(call("plan", f"{path}#no-kl", "--json").output)
    assert len(whole["tasks"]) > len(one["tasks"])
    assert {task["id"] for task in one["tasks"] if task["kind"] != "report"} < {task["id"] for task in whole["tasks"]}
    assert len(json.loads(call("graph", path).output)["experiments"]) == 2


# errors


def test_one_wrong_value_of_a_thousand_experiments_is_one_problem(extending):
    values = ", ".join(f"{i}e-4" for i in range(10))  # the first one is 0
    seeds = ", ".join(map(str, range(100)))
    path = extending(f"sweep:\n  seed: [{seeds}]\n  distill.optimizer.lr: [{values}]\n")
    assert problems(path) == [("extending.yaml", 5, wording("experiments.lr_must_greater_than"))]


def test_what_only_two_values_together_make_wrong_names_the_experiment(extending):
    path = extending(
        "interpolate: {order: [1, 0]}\nsweep:\n  interpolate.order: [[1, 0], [2, 1, 0]]\n"
        "  student.keep: [[0, 3], [0, 2, 4]]\n  seed: [0, 1]\n"
    )
    found = problems(path)
    assert [line for _, line, _ in found] == [5, 5]
    assert found[0][2].startswith(wording("experiments.order_keep_seed_order"))
    assert found[1][2].startswith(wording("experiments.order_order_must_name"))


def test_the_line_to_blame_is_the_one_without_which_the_problem_is_gone(extending):
    path = extending(
        """\
variants:
  both:
    seed: 4
    distill: {tokens: 4k}
    evaluate: {held_out: {max_tokens: 10}}
    data:
      skip: 1
      held_out: null
"""
    )
    assert problems(path) == [("extending.yaml", 10, wording("experiments.variant_there_no_held", name="both"))]


def test_a_field_that_only_the_sweep_gives_may_be_missing_from_the_file(extending):
    path = extending("distill: {tokens: null}\nsweep: {distill.tokens: [1k, 2k]}\n")
    assert [file.spec.distill.tokens for file in load_experiments(path)] == [1000, 2000]


# the schema


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("extends: a.yaml\nname: b\n", True),
        ("extends: a.yaml\ndistill: {tokens: 1M, losses: {kl: null}}\n", True),
        ("extends: a.yaml\ndistill: {tokns: 1M}\n", False),
        ("distill: {tokens: 1M}\n", False),
        ("extends: a.yaml\nvariants: {a: {student: {keep: {every: 2, last: null}}}}\n", True),
        ("extends: a.yaml\nvariants: {a: {studnt: null}}\n", False),
        ("extends: a.yaml\nvariants: {base: {seed: 1}}\n", False),
        ("extends: a.yaml\nvariants: {a: {name: b}}\n", False),
        (
            "extends: a.yaml\nsweep: {seed: [0, 1], student.keep: [[0, 2], {every: 2}], distill.losses.kl: [null]}\n",
            True,
        ),
        ("extends: a.yaml\nsweep: {student.keep.every: [2, 3]}\n", True),
        ("extends: a.yaml\nsweep: {sed: [0, 1]}\n", False),
        ("extends: a.yaml\nsweep: {seed: 1}\n", False),
        ("extends: a.yaml\nsweep: {seed: [a]}\n", False),
        ("extends: a.yaml\nsweep: {execution.retries: [1]}\n", False),
    ],
)
def test_the_schema_knows_what_may_be_overridden(text, valid):
    assert jsonschema.Draft202012Validator(json_schema()).is_valid(yaml.safe_load(text)) == valid
