"""The graph of a blockwise distillation: its tasks, what they share and cost, and specs that are refused."""

from typing import Any

import pytest
import yaml

from boomspec.compile.compiler import Compiled, compile_experiments
from boomspec.core.errors import SpecError
from boomspec.core.tasks import BlockStates, Check, Distill, DistillBlock, JoinBlocks
from boomspec.plan.changes import compare
from boomspec.plan.origins import side
from boomspec.spec.experiments import load_experiments
from tests.boomspec.conftest import SPEC, Writer
from tests.boomspec.edits import put
from tests.boomspec.model_folders import llama
from tests.messages import wording

BLOCKS = ("distill.losses", {"hidden_nmse": {}}), ("baselines", [])
KEEP = ("student.keep", [0, 1, 3, 5])  # blocks 0 | 1 2 | 3 4 | 5


def blockwise(specs: Writer, *edits: tuple[str, Any], **settings: Any) -> Compiled:
    return specs.edited(*BLOCKS, ("distill.blockwise", settings), *edits)


def tasks(compiled: Compiled) -> dict[str, Any]:
    return {node.name: node for node in compiled.graph.nodes.values()}


def inputs(compiled: Compiled, name: str) -> dict[str, str]:
    """The names of a task's inputs, by their roles."""
    nodes = compiled.graph.nodes
    return {role: nodes[i].name for role, i in tasks(compiled)[name].task.inputs.items() if i in nodes}


def test_a_block_waits_for_its_states_and_for_no_other_block(specs: Writer) -> None:
    compiled = blockwise(specs, KEEP)
    found = tasks(compiled)
    always = {"teacher": "pretrain teacher", "tokens": "tokenize"}
    assert inputs(compiled, "distill layers 1 to 2") == {
        **always, "states": "states before layer 1", "targets": "states before layer 3",
    }  # fmt: skip
    assert inputs(compiled, "distill layers 3 to 4") == {
        **always, "states": "states before layer 3", "targets": "states before layer 5",
    }  # fmt: skip
    # Each boundary is computed from the one before it, so every layer of the teacher runs once.
    assert inputs(compiled, "states before layer 1") == always
    assert inputs(compiled, "states before layer 5") == {**always, "states": "states before layer 3"}
    ran = [node.task.record for node in found.values() if isinstance(node.task.record, BlockStates)]
    assert [i for record in ran for i in range(record.begin or 0, record.layer)] == [0, 1, 2, 3, 4]
    # Blocks of one layer are the teacher's.
    assert inputs(compiled, "join student") == {
        "teacher": "pretrain teacher", "block 1": "distill layers 1 to 2", "block 2": "distill layers 3 to 4",
    }  # fmt: skip
    assert inputs(compiled, "interpolate 5 layers")["student"] == "join student"
    assert compiled.graph.family is not None
    assert compiled.graph.family.student == found["join student"].id
    assert not any(isinstance(node.task.record, Distill) for node in found.values())


def test_the_last_block_is_compared_with_what_the_last_layer_gives(specs: Writer) -> None:
    compiled = blockwise(specs)  # keep 0, 2, 4 of 6
    assert inputs(compiled, "distill layers 4 to 5")["targets"] == "states after layer 5"
    assert inputs(compiled, "distill layers 0 to 1")["states"] == "states before layer 0"


def test_streamed_blocks_need_no_states(specs: Writer) -> None:
    compiled = blockwise(specs, stored=False)
    assert not any(isinstance(node.task.record, BlockStates) for node in compiled.graph.nodes.values())
    assert inputs(compiled, "distill layers 2 to 3") == {"teacher": "pretrain teacher", "tokens": "tokenize"}


def test_a_polish_is_a_distillation_that_goes_on_from_the_blocks(specs: Writer) -> None:
    compiled = blockwise(specs, polish={"tokens": 512, "optimizer": {"lr": 1e-4}})
    assert inputs(compiled, "distill student")["start"] == "join student"
    assert inputs(compiled, "interpolate 4 layers")["student"] == "distill student"
    polish, block = (tasks(compiled)[name].task.record for name in ("distill student", "distill layers 0 to 1"))
    assert (polish.kept, polish.start, polish.passed_steps) == ((0, 2, 4), (0, 1, 2), block.recipe.steps)
    assert (polish.recipe.steps, polish.recipe.optimizer.lr, block.recipe.optimizer.lr) == (2, 1e-4, 3e-4)
    assert polish.recipe.schedule.kind == "cosine"
    assert set(polish.losses.terms()) == {"cross_entropy", "kl", "hidden_cosine"}
    assert polish.train_embedding


def test_without_a_polish_the_embedding_stays_the_teachers_so_every_size_is_tied(specs: Writer) -> None:
    for settings, tied in (({}, True), ({"polish": {"tokens": 512}}, False)):
        compiled = blockwise(specs, **settings)
        assert tasks(compiled)["interpolate 4 layers"].task.record.tied is tied


def test_the_normalised_square_is_the_loss_where_none_is_named(specs: Writer) -> None:
    named = blockwise(specs)
    data = yaml.safe_load(SPEC)
    for path, value in (("distill.losses", None), ("baselines", []), ("distill.blockwise", {})):
        put(data, path, value)
    assert specs.compiled(yaml.safe_dump(data)).graph.id == named.graph.id


def test_students_share_the_blocks_that_they_have_in_common(specs: Writer) -> None:
    """Each size that is distilled by itself has fewer blocks of the student, and those are the same."""
    compiled = blockwise(specs, ("baselines", ["standard_distillation", "random_init"]))
    found = tasks(compiled)
    assert inputs(compiled, "join standard_distillation 5 layers") == {
        "teacher": "pretrain teacher", "block 0": "distill layers 0 to 1",
    }  # fmt: skip
    blocks = [node.name for node in found.values() if isinstance(node.task.record, DistillBlock)]
    own = [f"distill layers {i} to {i + 1}" for i in (0, 2, 4)]
    assert blocks == [*own, *(f"{name} of random_init" for name in own)]
    assert inputs(compiled, "join random_init")["block 2"] == "distill layers 4 to 5 of random_init"
    assert sum(isinstance(node.task.record, BlockStates) for node in found.values()) == 4


def test_blocks_of_one_layer_are_trained_where_they_begin_at_random(specs: Writer) -> None:
    compiled = blockwise(specs, KEEP, ("baselines", ["random_init"]))
    assert set(inputs(compiled, "join random_init")) == {"teacher", "block 0", "block 1", "block 2", "block 3"}


def test_a_block_takes_the_memory_of_a_layer_and_states_take_their_bytes(specs: Writer) -> None:
    wide = ("teacher.pretrain.hidden_size", 256), ("teacher.pretrain.intermediate_size", 512)
    compiled = blockwise(specs, KEEP, *wide, ("distill.precision", "fp32"))
    found, whole = tasks(compiled), tasks(specs.edited(KEEP, *wide, ("distill.precision", "fp32")))
    block, states = found["distill layers 1 to 2"].cost, found["states before layer 3"].cost
    layer = 4 * 256 * 256 + 3 * 256 * 512 + 2 * 256
    assert block.memory["weights"] == 4 * layer
    assert block.memory["optimizer"] == 8 * layer
    assert "teacher" not in block.memory
    assert block.peak < whole["distill student"].cost.peak / 2
    assert states.disk == 2048 * 256 * 4
    assert states.flops == 2048 * 2 * (2 * (layer - 2 * 256) + 4 * 32 * 256)  # two layers
    streamed = tasks(blockwise(specs, KEEP, *wide, ("distill.precision", "fp32"), stored=False))
    again = streamed["distill layers 1 to 2"].cost
    assert again.flops - block.flops == states.flops * 3 // 2  # layers 0 to 2, for this block alone
    assert again.memory["teacher"] == 4 * max(layer, 300 * 256)


def test_a_block_gets_what_a_distillation_gets_unless_the_spec_says_otherwise(specs: Writer) -> None:
    given = ("execution.distill", {"cpus": 2, "gpus": 1, "micro_batch": 4, "workers": 2})
    found = tasks(blockwise(specs, given, polish={"tokens": 512}))
    block, states, polish = (
        found[n].execution for n in ("distill layers 0 to 1", "states before layer 2", "distill student")
    )
    assert (block.cpus, block.gpus, block.workers, block.training.micro_batch) == (2, 1, 1, 4)
    assert (states.cpus, states.gpus, states.batch_size) == (2, 1, 8)
    assert polish.workers == 2
    own = ("execution.distill_block", {"micro_batch": 3}), ("execution.block_states", {"batch_size": 5})
    found = tasks(blockwise(specs, given, *own))
    assert found["distill layers 0 to 1"].execution.training.micro_batch == 3
    assert found["states before layer 2"].execution.batch_size == 5


def test_the_check_tries_layers_by_themselves(specs: Writer, tmp_path: Any) -> None:
    llama(tmp_path / "model", layers=6)
    own = ("teacher", {"model": str(tmp_path / "model")}), ("student.keep", 2)
    checks = [
        node.task.record
        for compiled in (specs.edited(*own), blockwise(specs, *own))
        for node in compiled.graph.nodes.values()
        if isinstance(node.task.record, Check)
    ]
    assert [check.alone for check in checks] == [None, True]


FIELDS = {
    "distill.blockwise.stored": (False, "distill layers 0 to 1"),
    "distill.blockwise.polish.tokens": (1024, "distill student"),
    "distill.blockwise.polish.optimizer.lr": (1e-3, "distill student"),
    "distill.blockwise.polish.schedule.kind": ("linear", "distill student"),
    "distill.blockwise.polish.losses.kl.weight": (0.5, "distill student"),
    "distill.losses.hidden_nmse.weight": (2.0, "distill layers 0 to 1"),
    "distill.optimizer.lr": (1e-3, "distill layers 0 to 1"),
}


@pytest.mark.parametrize(("field", "change"), FIELDS.items(), ids=FIELDS)
def test_a_field_is_named_for_the_task_that_it_changes(specs: Writer, field: str, change: tuple[Any, str]) -> None:
    polish = {"tokens": 512, "losses": {"kl": {"weight": 0.1}, "cross_entropy": {}}}
    value, task = change
    old, new = (blockwise(specs, *edits, polish=dict(polish)) for edits in ((), ((field, value),)))
    found = compare(*(side(compiled, compiled.graph.experiments[0]) for compiled in (old, new)))
    assert [one.name for one in found.fields] == [field]
    assert task in found.fields[0].tasks


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([("distill.losses", {"kl": {}})], wording("blockwise.kl_reads_logits")),
        ([("distill.losses", {"hidden_nmse": {"projection": True}})], wording("blockwise.trains_parameters")),
        ([("distill.losses", {"hidden_nmse": {"pairs": "last"}})], wording("blockwise.one_pair")),
        ([("distill.losses", {"hidden_nmse": {"final_norm": True}})], wording("blockwise.neither_embedding_nor_norm")),
        ([("distill.faithful", {"padding": True})], wording("blockwise.published_code")),
        ([("distill.generations", 2)], wording("blockwise.teacher_itself")),
        ([("student.train_embedding", True)], wording("blockwise.no_block_has_embedding")),
        ([("distill.blockwise.polish", {"tokens": 100})], wording("blockwise.less_than_one_step")),
        ([("execution.distill_block", {"workers": 2})], wording("blockwise.unknown_workers")),
    ],
)
def test_what_blocks_cannot_do_is_refused_with_its_reason(specs: Writer, edits: list[Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        blockwise(specs, *edits)
    assert message in str(caught.value)


def test_variants_of_one_file_share_states(specs: Writer) -> None:
    """Another loss is another training on the same states."""
    data = yaml.safe_load(SPEC)
    for path, value in (*BLOCKS, ("distill.blockwise", {})):
        put(data, path, value)
    cosine = {"distill": {"losses": {"hidden_nmse": None, "hidden_cosine": {}}}}
    data["variants"] = {"cosine": cosine}
    graph = compile_experiments(load_experiments(specs.text(yaml.safe_dump(data)))).graph
    kinds = [type(node.task.record) for node in graph.nodes.values()]
    assert (kinds.count(BlockStates), kinds.count(DistillBlock), kinds.count(JoinBlocks)) == (4, 6, 2)
