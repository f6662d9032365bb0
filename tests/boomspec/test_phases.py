"""Phases become tasks one after the other: whose text they draw, what one changes of the others, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from boomspec.compile.compiler import Compiled
from boomspec.core.errors import SpecError
from boomspec.core.graph import Node
from boomspec.core.losses import KL, CrossEntropy, Losses
from boomspec.core.tasks import Distill, Phase, Report, TeacherOutputs
from boomspec.core.tasks.report import Begun
from tests.boomspec.conftest import Writer
from tests.boomspec.model_folders import llama
from tests.messages import wording

Edits = tuple[tuple[str, Any], ...]
PHASES = [{"tokens": 1024, "name": "web"}, {"tokens": "512"}, {"tokens": 512, "losses": {"cross_entropy": {}}}]
FIRST, SECOND, LAST = "distill student, phase web", "distill student, phase 2", "distill student"


def phased(phases: list[dict[str, Any]] | None = None, *edits: tuple[str, Any]) -> Edits:
    return (("distill.tokens", None), ("distill.phases", PHASES if phases is None else phases), *edits)


def by_name(compiled: Compiled) -> dict[str, Node]:
    return {node.name: node for node in compiled.graph.nodes.values()}


def record(node: Node) -> Distill:
    found = node.task.record
    assert isinstance(found, Distill)
    return found


def test_each_phase_is_a_task_that_goes_on_from_the_one_before_under_one_schedule(specs: Writer) -> None:
    nodes = by_name(specs.edited(*phased()))
    first, second, last = (nodes[name] for name in (FIRST, SECOND, LAST))
    assert [record(node).phase for node in (first, second, last)] == [
        Phase(first=0, steps=4, passed=0),
        Phase(first=4, steps=2, passed=4),
        Phase(first=6, steps=2, passed=6),
    ]
    assert "before" not in first.task.inputs
    assert (second.task.inputs["before"], last.task.inputs["before"]) == (first.id, second.id)
    assert record(first).recipe == record(second).recipe == record(last).recipe
    assert record(first).recipe.steps == 8
    assert record(last).losses == Losses(cross_entropy=CrossEntropy())
    assert set(record(first).losses.terms()) == {"cross_entropy", "kl", "hidden_cosine"}
    for node in nodes.values():  # the family is of the last phase
        assert first.id not in node.task.inputs.values() or node.name in (
            SECOND, "evaluate student after phase web: held_out",
        )  # fmt: skip


def test_the_student_after_each_phase_is_measured_and_the_curve_of_the_last_has_marks(specs: Writer) -> None:
    compiled = specs.edited(*phased())
    nodes = by_name(compiled)
    report = nodes["report"].task.record
    assert isinstance(report, Report)
    after = [(cell.phase, cell.input) for cell in report.cells if cell.series == "phase"]
    assert after == [(name, f"student after phase {name}/held_out") for name in ("web", "2")]
    assert nodes["evaluate student after phase web: held_out"].task.inputs["model"] == nodes[FIRST].id
    begun = (Begun(name="web", step=0), Begun(name="2", step=4), Begun(name="3", step=6))
    assert report.phases is not None
    assert report.phases["student"] == report.phases["random_init"] == begun
    assert report.trainings["student"] == "training/student"
    assert compiled.graph.family is not None
    assert compiled.graph.family.student == nodes[LAST].id


def test_one_phase_is_the_training_itself(specs: Writer) -> None:
    plain, one = by_name(specs.edited()), by_name(specs.edited(*phased([{"tokens": 2048}])))
    assert {node.id for node in plain.values()} == {node.id for node in one.values()}
    alone = phased([{"tokens": 2048, "losses": {"kl": {"weight": 1.0}}}], ("distill.losses", None))
    own = by_name(specs.edited(*alone))[LAST]
    assert (record(own).phase, record(own).losses) == (None, Losses(kl=KL(weight=1.0)))


def test_what_is_changed_of_a_later_phase_changes_none_before_it_and_the_schedule_changes_all(specs: Writer) -> None:
    def ids(*edits: tuple[str, Any]) -> list[str]:
        nodes = by_name(specs.edited(*edits))
        return [next(n.id for name, n in nodes.items() if name.endswith(end)) for end in (FIRST, SECOND, LAST)]

    before = ids(*phased())
    losses = [*PHASES[:2], {**PHASES[2], "losses": {"kl": {}}}]
    assert [a == b for a, b in zip(before, ids(*phased(losses)), strict=True)] == [True, True, False]
    middle = [PHASES[0], {**PHASES[1], "losses": {"kl": {}}}, PHASES[2]]
    assert [a == b for a, b in zip(before, ids(*phased(middle)), strict=True)] == [True, False, False]
    longer = [*PHASES[:2], {**PHASES[2], "tokens": 1024}]  # one schedule over the steps of all
    for edits in (phased(longer), phased(None, ("distill.schedule", {"warmup": 2}))):
        assert not set(before) & set(ids(*edits))
    nodes = by_name(specs.edited(*phased([{**PHASES[0], "name": "books"}, *PHASES[1:]])))  # a name changes no result
    assert nodes["distill student, phase books"].id == before[0]


def test_everything_that_is_trained_as_the_student_is_goes_through_the_phases(specs: Writer) -> None:
    drop = {"contiguous_drop": {}}
    baselines = ["random_init", "standard_distillation", "cross_patching", drop]
    edits = phased(None, ("baselines", baselines), ("distill.assistants", [{"keep": 5}]), ("distill.generations", 2))
    compiled = specs.edited(*edits)
    search = next(n for n in compiled.graph.nodes.values() if n.task.kind == "search")
    specs.found[search.id] = {"angular_distance": [[0.0] * 6] * 6}
    trained = {n.name: n for n in specs.edited(*edits).graph.nodes.values() if n.task.kind == "distill"}
    for label in (
        "assistant", "student generation 1", "student", "random_init", "cross_patching",
        "standard_distillation 4 layers",
    ):  # fmt: skip
        chain = [trained[f"distill {label}{end}"] for end in (", phase web", ", phase 2", "")]
        assert [record(node).steps for node in chain] == [range(4), range(4, 6), range(6, 8)]
        assert [node.task.inputs.get("before") for node in chain] == [None, chain[0].id, chain[1].id]
        assert len({node.task.inputs["teacher"] for node in chain}) == 1
    assert trained["distill student generation 1"].id == trained["distill student"].task.inputs["teacher"]
    dropped = next(node for name, node in trained.items() if "contiguous_drop" in name)
    assert (record(dropped).phase, record(dropped).recipe.steps) == (None, 8)  # a published baseline has one training


def test_a_phase_has_a_cost_of_its_own_and_its_state_takes_disk(specs: Writer) -> None:
    whole = by_name(specs.edited())[LAST].cost
    nodes = by_name(specs.edited(*phased([{"tokens": 1024}, {"tokens": 1024}])))
    first, last = nodes["distill student, phase 1"].cost, nodes[LAST].cost
    assert whole is not None and first is not None and last is not None  # noqa: PT018
    assert first.tokens + last.tokens == whole.tokens
    compared = 2 * first.flops - whole.flops  # similarities are measured twice
    assert 0 < compared < whole.flops / 2
    assert first.flops == last.flops
    moments = whole.scratch // 3  # of three checkpoints: weights and two moments, in fp32
    assert (first.disk - last.disk, last.disk) == (moments, whole.disk)
    assert (last.read - first.read, first.read) == (moments, whole.read)
    assert first.memory == last.memory == whole.memory


def test_outputs_that_are_stored_reach_as_far_as_each_phase_does(specs: Writer) -> None:
    edits = ("distill.losses", {"kl": {}}), ("distill.teacher_outputs", {"top_k": 8}), ("baselines", [])
    nodes = by_name(specs.edited(*phased([{"tokens": 1024}, {"tokens": 512}], *edits)))
    stored = {name: node for name, node in nodes.items() if isinstance(node.task.record, TeacherOutputs)}
    assert set(stored) == {"teacher outputs", "teacher outputs for student, phase 1"}
    rows = [node.task.record.rows for node in stored.values() if isinstance(node.task.record, TeacherOutputs)]
    assert rows == [32, 48]
    assert nodes[LAST].task.inputs["outputs"] == stored["teacher outputs"].id


TWO = [{"tokens": 1024}, {"tokens": 1024}]
CE = {"cross_entropy": {}}


@pytest.mark.parametrize(
    ("edits", "place", "message"),
    [
        ((("distill.phases", TWO),), "distill.tokens", wording("phases.say_how_many")),
        ((("distill.tokens", None),), "distill", wording("phases.no_tokens")),
        (phased([]), "distill.phases", wording("chains.at_least_one")),
        (phased([{"tokens": 255}, {"tokens": 512}]), "distill.phases[0].tokens", wording("phases.less_than_one_step")),
        (phased([{"tokens": 512, "name": "2"}, {"tokens": 512}]), "distill.phases[0].name", wording("phases.two")),
        (phased([{"tokens": 512, "name": "a b"}]), "distill.phases[0].name", wording("phases.plain_name")),
        (phased([{**one, "losses": CE} for one in TWO]), "distill.losses", wording("phases.losses_of_each")),
        (phased(TWO, ("distill.generated", {"tokens": 2048})), "distill.phases", wording("phases.one_text")),
        (phased(TWO, ("distill.losses", None), ("distill.blockwise", {})), "distill.phases", wording("phases.blocks")),
        (phased(TWO, ("distill.assistants", [{"keep": 5, "tokens": 512}])), "distill.assistants[0].tokens",
         wording("phases.of_the_student")),
        (phased(TWO, ("baselines", [{"random_init": {"tokens": 512}}])), "baselines[0].random_init.tokens",
         wording("phases.of_the_student_too")),
        (phased([TWO[0], {**TWO[1], "losses": CE}], ("distill.balance", "start")), "distill.phases[1].losses",
         wording("phases.same_terms")),
        (phased([TWO[0], {**TWO[1], "losses": {"taid": {}}}]), "distill.phases[1].losses.taid",
         wording("phases.changes", kind="taid")),
        (phased([TWO[0], {**TWO[1], "losses": CE}], ("distill.losses", {"hidden_mse": {"projection": True}})),
         "distill.phases[1].losses", wording("phases.trains", kind="hidden_mse")),
        (phased([TWO[0], {**TWO[1], "losses": CE}], ("distill.on_policy", {"prompt_tokens": 4})),
         "distill.phases[1].losses", wording("chains.no_loss_reads_the_teacher")),
        (phased([TWO[0], {**TWO[1], "losses": {"hidden_cosine": {"pairs": [7]}}}]),
         "distill.phases[1].losses.hidden_cosine.pairs", wording("phases.no_such_layer")),
        (phased([TWO[0], {**TWO[1], "losses": {"kl": {"weight": {"start": 1, "end": 2, "over": 9}}}}]),
         "distill.phases[1].losses.kl.weight.over", wording("phases.course_too_long")),
        (phased([TWO[0], {**TWO[1], "losses": {}}]), "distill.phases[1].losses", wording("phases.some_loss")),
        (phased(TWO, ("distill.schedule", {"warmup": 9})), "distill.schedule.warmup", wording("phases.warmup")),
    ],
)  # fmt: skip
def test_what_cannot_be_a_phase_is_refused_where_it_stands(
    specs: Writer, edits: Edits, place: str, message: str
) -> None:
    with pytest.raises(SpecError) as caught:
        specs.edited(*edits)
    assert message in str(caught.value)
    assert place in str(caught.value)


def test_terms_that_last_may_have_other_weights(specs: Writer) -> None:
    losses = {"taid": {"weight": 0.5}, "hidden_mse": {"projection": True}}
    other = {"taid": {"weight": 1.0}, "hidden_mse": {"projection": True, "weight": 3.0}, "cross_entropy": {}}
    edits = phased([TWO[0], {**TWO[1], "losses": other}], ("distill.losses", losses))
    assert set(record(by_name(specs.edited(*edits))[LAST]).losses.terms()) == {"taid", "hidden_mse", "cross_entropy"}


SOURCES = {"web": {"files": "[0-3].txt"}, "code": {"files": "[4-6].txt"}}
NAMED = {
    "data.files": None, "data.sources": SOURCES, "data.blend": {"web": 0.5, "code": 0.5}, "data.held_out": {"every": 2},
}  # fmt: skip
TURNS = [{"data": "web", "tokens": 1024}, {"data": "code", "tokens": 512}, {"data": "web", "tokens": 512}]


def named(phases: list[dict[str, Any]], **data: Any) -> Edits:
    edits = {**NAMED, **{path.replace("__", "."): value for path, value in data.items()}}
    return phased(phases, *edits.items())


def without_blend(edits: Edits) -> Edits:
    return tuple(edit for edit in edits if edit[0] != "data.blend")


def test_a_phase_reads_its_text_where_those_before_it_have_ended_on_the_same_one(specs: Writer) -> None:
    nodes = by_name(specs.edited(*named(TURNS)))
    web, code = nodes["tokenize web"].id, nodes["tokenize code"].id
    chain = [nodes[f"distill student, phase {name}"] for name in ("1", "code")] + [nodes[LAST]]
    assert [node.task.inputs["tokens"] for node in chain] == [web, code, web]
    assert [record(node).phase for node in chain] == [
        Phase(first=0, steps=4, passed=0),
        Phase(first=4, steps=2, passed=0),
        Phase(first=6, steps=2, passed=4),
    ]
    # Similarities of all are measured on the text of the first; the loss of all models on the data as a whole.
    assert [node.task.inputs.get("held_out") for node in chain] == [None, web, None]
    assert nodes["evaluate student after phase code: held_out"].task.inputs["tokens"] == nodes["blend"].id
    during = by_name(specs.edited(*named(TURNS, evaluate__every="50%")))  # on the text of the other held-out losses
    for name in (FIRST.replace("web", "1"), LAST):
        assert during[name].task.inputs["held_out"] == during["blend"].id
    mixed = by_name(specs.edited(*named([TURNS[0], {"data": {"web": 3, "code": 1}, "tokens": 512}])))
    blend = mixed["blend web 3.0, code 1.0"]
    assert mixed[LAST].task.inputs["tokens"] == blend.id
    assert set(blend.task.inputs.values()) == {web, code}
    again = {"data": {"code": "25%", "web": "75%"}, "tokens": 512}  # the same blend, written in another way
    last = by_name(specs.edited(*named([{**again, "data": {"web": 3, "code": 1}}, again])))[LAST]
    assert (last.task.inputs["tokens"], record(last).phase) == (blend.id, Phase(first=2, steps=2, passed=2))


def test_the_text_of_a_later_phase_changes_none_before_it(specs: Writer) -> None:
    model = llama(specs.folder / "teacher", layers=6)  # a teacher that is trained here reads the data as a whole
    alone = {"teacher": {"model": str(model)}, "evaluate": None, "baselines": []}
    phases = [{"data": "web", "tokens": 1024}, {"data": "code", "tokens": 512}]
    first = by_name(specs.edited(*without_blend(named(phases, **alone))))
    assert {name for name, node in first.items() if node.task.kind in ("tokenize", "blend")} == {
        "tokenize web", "tokenize code",
    }  # fmt: skip
    changed = {"web": SOURCES["web"], "code": {"files": "[4-7].txt"}}
    second = by_name(specs.edited(*without_blend(named(phases, **alone, data__sources=changed))))
    name = "distill student, phase web"
    assert first[name].id == second[name].id
    assert first[LAST].id != second[LAST].id
    with pytest.raises(SpecError, match=wording("phases.blend_unread")):
        specs.edited(*named(phases, **alone))


def test_a_phase_says_what_it_learns_of_conversations(specs: Writer) -> None:
    """The same rows with other labels are one stream: what has been read of it is not read again."""
    (specs.folder / "chat.jsonl").write_text('{"prompt": "a", "response": "b"}\n' * 40)
    (specs.folder / "chat.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    chat = {"files": "chat.jsonl", "prompt": "prompt", "response": "response", "chat_template": "chat.jinja"}
    sources = {"web": SOURCES["web"], "chat": chat}
    phases = [
        {"data": "web", "tokens": 512},
        {"data": "chat", "tokens": 512, "name": "all"},
        {"data": "chat", "tokens": 512, "loss_on": "responses"},
    ]
    nodes = by_name(specs.edited(*named(phases, data__sources=sources, data__blend={"web": 1, "chat": 1})))
    second, last = nodes["distill student, phase all"], nodes[LAST]
    assert second.task.inputs["tokens"] == nodes["tokenize chat"].id
    assert last.task.inputs["tokens"] == nodes["tokenize chat, loss on responses"].id
    assert [phase.passed for node in (second, last) if (phase := record(node).phase) is not None] == [0, 2]


@pytest.mark.parametrize(
    ("edits", "place", "message"),
    [
        (named([TURNS[0], {**TURNS[1], "loss_on": "responses"}]), "distill.phases[1].loss_on",
         wording("phases.no_conversations")),
        (phased([{"tokens": 512, "loss_on": "responses"}]), "distill.phases[0].loss_on",
         wording("phases.no_conversations")),
        (phased([{"data": "web", "tokens": 512}]), "distill.phases[0].data", wording("phases.no_names")),
        (named([TURNS[0], {"data": "wen", "tokens": 512}]), "distill.phases[1].data", wording("phases.did_you_mean")),
        (named([{"data": {"web": 1, "books": 1}, "tokens": 512}]), "distill.phases[0].data.books",
         wording("blends.no_source")),
        (named([{"data": {"web": "1k", "code": 1}, "tokens": 512}]), "distill.phases[0].data.code",
         wording("blends.weight_among_budgets")),
        (named([{"data": ["web"], "tokens": 512}]), "distill.phases[0].data", wording("phases.text_or_mapping")),
        (named([TURNS[0]], data__blend={"web": 1}), "data.sources.code", wording("blends.nothing_reads")),
        (named([{"data": "code", "tokens": 512}], data__sources={**SOURCES, "code": {"dataset": "a/b"}}),
         "data.sources.code", wording("phases.max_tokens")),
    ],
)  # fmt: skip
def test_a_text_that_is_not_there_is_refused_where_it_stands(
    specs: Writer, edits: Edits, place: str, message: str
) -> None:
    with pytest.raises(SpecError) as caught:
        specs.edited(*edits)
    assert message in str(caught.value)
    assert place in str(caught.value)
