"""Schemes become tasks of the same graph: who learns from whom, on whose text, and which layers are compared."""

from __future__ import annotations

from typing import Any

import pytest

from boomspec.compile.compiler import Compiled
from boomspec.core.errors import SpecError
from boomspec.core.graph import Cost, Node
from boomspec.core.layers import read_layers
from boomspec.core.tasks import Distill, Generate, Interpolate, Sampling
from tests.boomspec.conftest import Writer
from tests.messages import wording

KEPT = (0, 2, 4)  # of the teacher's six layers: the student of the spec


def by_name(compiled: Compiled) -> dict[str, Node]:
    return {node.name: node for node in compiled.graph.nodes.values()}


def chain(compiled: Compiled, name: str = "distill student") -> list[tuple[str, Any, Any]]:
    """From the student upwards: each one's name, its layers of its own teacher, and those of the spec's teacher."""
    nodes, found = {node.id: node for node in compiled.graph.nodes.values()}, []
    node = by_name(compiled)[name]
    while node.task.kind != "pretrain":
        record, teacher = node.task.record, by_name(compiled)["pretrain teacher"].id
        if isinstance(record, Distill):
            found.append((node.name, record.kept, record.start))
            assert (record.start is None) == (node.task.inputs["teacher"] == teacher)
            assert node.task.inputs.get("start", teacher) == teacher
            node = nodes[node.task.inputs["teacher"]]
        else:
            assert isinstance(record, Interpolate)
            found.append((node.name, record.plan, None))
            node = nodes[node.task.inputs["student"]]
    return found


def test_assistants_stand_between_teacher_and_student(specs: Writer) -> None:
    compiled = specs.edited(("distill.assistants", [{"keep": [0, 1, 2, 3, 4]}, {"keep": [0, 2, 3, 4], "tokens": 512}]))
    assert chain(compiled) == [
        ("distill student", (0, 1, 3), KEPT),
        ("distill assistant 2", (0, 2, 3, 4), (0, 2, 3, 4)),
        ("distill assistant 1", (0, 1, 2, 3, 4), None),
    ]
    steps = [by_name(compiled)[f"distill {name}"].task.record.recipe.steps for name in ("assistant 2", "student")]  # type: ignore[attr-defined]
    assert steps == [2, 8]
    assert set(by_name(compiled)["report"].task.record.trainings) >= {"assistant 1", "assistant 2", "student"}  # type: ignore[attr-defined]


def test_an_assistant_may_be_an_interpolated_size(specs: Writer) -> None:
    compiled = specs.edited(("distill.assistants", [{"size": "5 layers"}]))
    assert chain(compiled) == [
        ("distill student", (0, 1, 3), KEPT),
        ("interpolate assistant", read_layers("s0 t2 t3 t4 t5"), None),
        ("distill student before assistant", KEPT, None),
    ]
    plain = by_name(specs.edited())
    first = by_name(compiled)["distill student before assistant"]
    assert first.id == plain["distill student"].id  # what has been distilled before is taken from the store
    assert by_name(compiled)["interpolate assistant"].id == plain["interpolate 5 layers"].id


def test_each_generation_begins_as_the_first_did_and_learns_from_the_one_before(specs: Writer) -> None:
    compiled = specs.edited(("distill.generations", 3))
    assert chain(compiled) == [
        ("distill student", (0, 1, 2), KEPT),
        ("distill student generation 2", (0, 1, 2), KEPT),
        ("distill student generation 1", KEPT, None),
    ]
    assert [name for name, *_ in chain(compiled, "distill random_init")] == [
        "distill random_init",
        "distill random_init generation 2",
        "distill random_init generation 1",
    ]
    plain = by_name(specs.edited())
    assert by_name(compiled)["distill student generation 1"].id == plain["distill student"].id


def test_the_family_lies_between_the_student_and_the_teacher_of_the_spec(specs: Writer) -> None:
    compiled = specs.edited(("distill.assistants", [{"keep": 5}]), ("distill.generations", 2))
    nodes = by_name(compiled)
    sizes = [node for node in nodes.values() if node.name.startswith("interpolate 4")]
    assert sizes
    for node in sizes:
        assert node.task.inputs["teacher"] == nodes["pretrain teacher"].id
    lineage = compiled.graph.family
    assert lineage is not None
    assert (lineage.student, lineage.kept) == (nodes["distill student"].id, KEPT)
    control = nodes["distill random_init generation 1"].task
    assert control.inputs["teacher"] == nodes["distill assistant"].id


def test_every_one_of_the_chain_has_a_cost(specs: Writer) -> None:
    nodes = by_name(specs.edited(("distill.assistants", [{"keep": 5}]), ("distill.generations", 2)))
    costs = [nodes[f"distill {name}"].cost for name in ("assistant", "student generation 1", "student")]
    assert all(cost is not None and cost.flops > 0 and not cost.unknown for cost in costs)
    assistant, first, last = (cost.flops for cost in costs if cost is not None)
    assert assistant > first > last  # smaller teachers cost less
    assert len({cost.disk for cost in costs[1:] if cost is not None}) == 1


@pytest.mark.parametrize(
    ("assistants", "message"),
    [
        ([], wording("chains.at_least_one")),
        ([{}], wording("chains.exactly_one")),
        ([{"size": "4..5 layers step 1"}], wording("chains.one_size")),
        ([{"keep": [0, 1, 2, 3]}], wording("chains.student_keeps")),
        ([{"keep": [0, 2, 4]}], wording("chains.has_more")),
        ([{"keep": 6}], wording("chains.all_kept")),
        ([{"keep": [0, 1, 2, 4]}, {"keep": [0, 2, 3, 4]}], wording("chains.not_of_the_one_before")),
        ([{"keep": [0, 1, 2, 4]}, {"keep": [0, 1, 2, 4]}], wording("chains.as_many")),
        ([{"size": "3 layers"}], wording("chains.student_itself")),
        ([{"size": "9 layers"}], wording("chains.no_size")),
    ],
)
def test_what_cannot_stand_between_is_refused(specs: Writer, assistants: list[Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        specs.edited(("distill.assistants", assistants))
    assert message in str(caught.value)
    assert "distill.assistants" in str(caught.value)


def test_a_size_is_not_known_before_its_order_is(specs: Writer) -> None:
    edits = ("interpolate", {"order": {"search": "klpatch"}}), ("distill.assistants", [{"size": "5 layers"}])
    with pytest.raises(SpecError, match=wording("chains.order_is_searched")):
        specs.edited(*edits)


def test_students_are_trained_on_what_the_teacher_wrote_and_measured_on_the_data(specs: Writer) -> None:
    baselines = ["random_init", "standard_distillation", "shortgpt"]
    edits = ("distill.generated", {"tokens": "2k", "prompt_tokens": 4, "top_p": 0.9}), ("baselines", baselines)
    compiled = specs.edited(*edits, ("distill.assistants", [{"keep": 5}]))
    specs.found[next(n.id for n in compiled.graph.nodes.values() if n.task.kind == "search")] = {
        "kept": [0, 1, 2], "scores": [6, 5, 4, 3, 2, 1]
    }  # fmt: skip
    nodes = by_name(specs.edited(*edits, ("distill.assistants", [{"keep": 5}])))
    written, text, teacher = (nodes[name] for name in ("generate text", "tokenize", "pretrain teacher"))
    assert written.task.inputs == {"teacher": teacher.id, "tokens": text.id}
    record = written.task.record
    assert isinstance(record, Generate)
    assert (record.rows, record.sampling) == (round(2000 / 32), Sampling(top_p=0.9))
    trained = [node for node in nodes.values() if node.task.kind == "distill"]
    assert {node.name for node in trained} > {"distill assistant", "distill student", "distill random_init"}
    for node in trained:
        assert (node.task.inputs["tokens"], node.task.inputs["held_out"]) == (written.id, text.id)
    for node in nodes.values():
        if node.task.kind in ("evaluate", "search", "pretrain"):
            assert node.task.inputs["tokens"] == text.id


def test_what_the_teacher_writes_has_a_cost(specs: Writer) -> None:
    nodes = by_name(specs.edited(("distill.generated", {"tokens": 3200, "prompt_tokens": 8})))
    cost = nodes["generate text"].cost
    assert cost is not None
    assert (cost.tokens, cost.disk) == (3200, 6400)
    heads, width, layers = 2, 8, 6  # of keys: two heads of eight numbers in each layer, in bf16
    assert cost.memory["cache"] == 8 * 32 * layers * 2 * heads * width * 2
    with_prompts = by_name(specs.edited(("distill.generated", {"tokens": 3200, "prompt_tokens": 0})))["generate text"]
    assert with_prompts.cost is not None
    assert with_prompts.cost.flops > cost.flops  # more tokens go through the head


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (("distill.generated", {"tokens": 2048, "prompt_tokens": 32}), wording("chains.nothing_to_write")),
        (("distill.generated", {"tokens": 31}), wording("chains.less_than_one_sequence")),
        (("distill", {"tokens": 2048, "batch_tokens": 256, "on_policy": {"prompt_tokens": 4}, "losses": {"kl": {}},
                      "teacher_outputs": {"top_k": 8}}), wording("chains.not_there_when_stored")),
        (("distill.on_policy", {"prompt_tokens": 4, "long_range": 1.0}), wording("chains.part_of_the_reverse_kl")),
        (("distill.on_policy", {"prompt_tokens": 4, "long_range": 1.0, "top_p": 0.9}),
         wording("chains.what_the_distributions_give")),
        (("distill", {"tokens": 2048, "batch_tokens": 256, "on_policy": {"prompt_tokens": 4, "long_range": 1.0},
                      "losses": {"reverse_kl": {}}, "teachers": {"others": [{"seed": 9, "weight": 0.5}]}}),
         wording("chains.of_one_teacher")),
        (("distill", {"tokens": 2048, "batch_tokens": 256, "on_policy": {"prompt_tokens": 4}, "balance": "start"}),
         wording("chains.balance_of_what_is_written")),
        (("distill.on_policy", {"prompt_tokens": 32}), wording("chains.nothing_to_write")),
        (("distill.on_policy", {"prompt_tokens": 8, "new_tokens": 25}), wording("chains.more_than_a_sequence")),
        (("distill", {"tokens": 2048, "batch_tokens": 256, "on_policy": {"prompt_tokens": 4},
                      "losses": {"cross_entropy": {}}}), wording("chains.no_loss_reads_the_teacher")),
        (("distill", {"tokens": 2048, "batch_tokens": 256, "on_policy": {"prompt_tokens": 4},
                      "faithful": {"padding": True}}), wording("chains.no_document_to_pad")),
        (("distill", {"tokens": 2048, "batch_tokens": 256, "generated": {"tokens": 2048, "prompt_tokens": 4},
                      "faithful": {"padding": True}}), wording("chains.no_document_to_pad")),
    ],
)  # fmt: skip
def test_text_that_cannot_be_written_is_refused(specs: Writer, edit: tuple[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        specs.edited(edit)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 2, "parallel": "fsdp"}, wording("chains.cut_over_workers")),
        ({"workers": 2, "teacher": "sharded"}, wording("chains.cannot_write_along")),
        ({"compile": True}, wording("chains.compiled_layers")),
    ],
)
def test_a_student_that_could_not_write_is_refused(specs: Writer, options: dict[str, Any], message: str) -> None:
    on_policy = ("distill.on_policy", {"prompt_tokens": 4, "teacher_share": 0.2})
    with pytest.raises(SpecError) as caught:
        specs.edited(on_policy, ("execution.distill", options))
    assert message in str(caught.value)
    assert f"execution.distill.{list(options)[-1]}" in str(caught.value)
    specs.edited(("execution.distill", options))


def test_what_a_student_writes_is_in_its_cost(specs: Writer) -> None:
    def cost(**on_policy: Any) -> Cost:
        edits = [("distill.on_policy", {"prompt_tokens": 8, **on_policy})] if on_policy else []
        found = by_name(specs.edited(*edits))["distill student"].cost
        assert found is not None
        return found

    plain, half, all_of_it, mixed = cost(), cost(share=0.5), cost(share=1), cost(share=1, teacher_share=0.2)
    assert plain.flops < half.flops < all_of_it.flops < mixed.flops
    assert all_of_it.flops - plain.flops == pytest.approx(2 * (half.flops - plain.flops), rel=1e-3)
    assert all_of_it.tokens == plain.tokens == 2048
    assert cost(share=1, new_tokens=8).tokens == 1024
    long = by_name(specs.edited(("distill.on_policy", {"prompt_tokens": 8}), ("execution.distill", {"micro_batch": 1})))
    assert (
        long["distill student"].id
        == by_name(specs.edited(("distill.on_policy", {"prompt_tokens": 8})))["distill student"].id
    )
