"""`evaluate.texts` and `evaluate.speed`: what they mean, and what is refused."""

from pathlib import Path

import pytest

from boomspec.core.errors import SpecError
from boomspec.core.tasks import Distill, Speed, Texts
from tests.boomspec.conftest import Writer
from tests.messages import wording


def records(compiled, kind: type) -> dict[str, object]:
    nodes = compiled.graph.nodes.values()
    return {node.name: node.task.record for node in nodes if isinstance(node.task.record, kind)}


def test_prompts_of_a_file_mean_what_they_mean_in_the_spec(specs: Writer) -> None:
    (specs.folder / "prompts.txt").write_text("Who are you?\n\n  And I?\n")
    (specs.folder / "prompts.jsonl").write_text('{"prompt": "Who are you?", "n": 1}\n{"prompt": "  And I?"}\n')
    written = [
        specs.edited(("evaluate.texts", given))
        for given in (
            {"prompts": ["Who are you?", "  And I?"]},
            {"file": "prompts.txt"},
            {"file": "prompts.jsonl", "chat": "auto"},
        )
    ]
    assert len({compiled.graph.id for compiled in written}) == 1
    assert records(written[0], Texts)["texts of teacher"].prompts == ("Who are you?", "  And I?")
    meaning = written[1].graph.experiments[0].meaning["evaluate"]["texts"]
    assert meaning["prompts"] == ["Who are you?", "  And I?"]


def test_the_seed_is_part_of_drawn_texts_alone(specs: Writer) -> None:
    greedy = {"prompts": ["a"]}
    for given, same in ((greedy, True), ({**greedy, "temperature": 0.7, "samples": 2}, False)):
        one, other = (records(specs.edited(("evaluate.texts", given), ("seed", seed)), Texts) for seed in (0, 1))
        assert (one == other) is same


def test_the_device_is_part_of_the_identity_where_the_spec_names_it(specs: Writer) -> None:
    plain = records(specs.edited(("evaluate.speed", {})), Speed)
    named = records(specs.edited(("evaluate.speed", {"device": "NVIDIA H200"})), Speed)
    assert plain.keys() == named.keys()
    assert {record.device for record in plain.values()} == {None}
    assert {record.device for record in named.values()} == {"NVIDIA H200"}


def test_a_speed_takes_a_whole_gpu(specs: Writer) -> None:
    compiled = specs.edited(("evaluate.speed", {}), ("execution.evaluate", {"gpus": 0.25, "batch_size": 4}))
    gpus = {n.task.kind: n.execution.gpus for n in compiled.graph.nodes.values()}
    assert gpus["speed"] == 1
    assert gpus["evaluate"] == 0.25


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"evaluate.texts": {"prompts": ["a", "a"]}}, wording("deployment.same_prompt")),
        ({"evaluate.texts": {"prompts": ["a"], "samples": 2}}, wording("deployment.no_temperature")),
        ({"evaluate.texts": {"prompts": ["a"], "file": "b.txt"}}, wording("deployment.two_sources")),
        ({"evaluate.texts": {"file": "nowhere.txt"}}, wording("deployment.no_file")),
        ({"evaluate.texts": {"file": "bad.jsonl"}}, wording("deployment.no_field")),
        ({"evaluate.texts": {"prompts": ["a"], "chat": False, "system": "b"}}, wording("deployment.no_system")),
        ({"evaluate.texts": {"prompts": ["a"], "system": "b"}}, wording("deployment.no_chat")),
        ({"evaluate.speed": {}, "execution.speed": {"gpus": 0.5}}, wording("deployment.whole_gpu")),
        ({"execution.speed": {"gpus": 1}}, wording("deployment.not_asked")),
    ],
)
def test_what_cannot_be_meant_is_refused_at_its_place(specs: Writer, fields: dict[str, object], message: str) -> None:
    Path(specs.folder, "bad.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(SpecError) as error:
        specs.edited(*fields.items())
    (problem,) = error.value.problems
    assert message in problem.message
    assert problem.line


def distillations(compiled) -> dict[str, Distill]:
    return records(compiled, Distill)


def test_the_training_of_the_student_alone_is_measured_meanwhile(specs: Writer) -> None:
    plain, measured = specs.compiled(), specs.edited(("evaluate.every", "50%"))
    (student,) = [name for name, of in distillations(measured).items() if of.during is not None]
    assert student == "distill student"
    during = distillations(measured)[student].during
    assert during.every == max(1, distillations(measured)[student].recipe.steps // 2)
    assert [len(size.plan) for size in during.sizes] == [4, 5]  # of 3 to 6 layers
    others = [
        {name: node.id for name, node in ((n.name, n) for n in compiled.graph.nodes.values()) if "random_init" in name}
        for compiled in (plain, measured)
    ]
    assert others[0] == others[1]
    cost = [
        next(n.cost.flops for n in compiled.graph.nodes.values() if n.name == student) for compiled in (plain, measured)
    ]
    assert cost[1] > cost[0]


def test_sizes_that_are_measured_meanwhile_can_be_named(specs: Writer) -> None:
    named = specs.edited(("evaluate.every", 3), ("evaluate.during", {"sizes": ["5 layers"], "max_tokens": 50}))
    during = distillations(named)["distill student"].during
    assert (during.every, during.max_tokens, [len(size.plan) for size in during.sizes]) == (3, 50, [5])
    alone = distillations(specs.edited(("evaluate.every", 3), ("evaluate.during", {"sizes": []})))
    assert alone["distill student"].during.sizes == ()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"evaluate.every": "0%"}, wording("during.above_0")),
        ({"evaluate.every": 1000}, wording("during.more_steps")),
        ({"evaluate.during": {}}, wording("during.goes_with")),
        ({"evaluate.every": 3, "evaluate.held_out": None, "data.held_out": None}, wording("during.no_text")),
        ({"evaluate.every": 3, "evaluate.during": {"sizes": ["3 layers"]}}, wording("during.student")),
        ({"evaluate.every": 3, "evaluate.during": {"sizes": ["2 layers"]}}, wording("during.no_size")),
        ({"evaluate.every": 3, "distill.generations": 2}, wording("during.beside")),
        (
            {"evaluate.every": 3, "distill.blockwise": {}, "distill.losses": {"hidden_nmse": {}}},
            wording("during.blocks"),
        ),
        ({"evaluate.every": 3, "interpolate.order": {"search": "klpatch"}}, wording("during.no_order")),
        (
            {"evaluate.every": 3, "execution.distill": {"workers": 2, "parallel": "fsdp"}},
            wording("during.cut"),
        ),
    ],
)
def test_a_training_that_cannot_be_measured_is_refused(specs: Writer, fields: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError) as error:
        specs.edited(*fields.items())
    assert message in error.value.problems[0].message
    assert error.value.problems[0].line


def test_phases_on_texts_of_their_own_are_measured_on_one(specs: Writer) -> None:
    sources = {"one": {"files": "[0-3].txt", "held_out": {"every": 2}}, "two": {"files": "[4-7].txt"}}
    phases = [{"data": "one", "tokens": 1024}, {"data": "two", "tokens": 1024}]
    compiled = specs.edited(
        ("data", {"sources": sources, "blend": {"one": 0.5, "two": 0.5}, "sequence_length": 32}),
        ("distill.tokens", None),
        ("distill.phases", phases),
        ("evaluate.every", "50%"),
    )
    nodes = {node.name: node for node in compiled.graph.nodes.values()}
    measured = [
        (node.task.inputs["held_out"], node.task.record.during.every)
        for name, node in nodes.items()
        if name.startswith("distill student")
    ]
    assert len(measured) == 2
    assert set(measured) == {(nodes["evaluate student: held_out"].task.inputs["tokens"], 4)}
