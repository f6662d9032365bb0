"""A training in phases, each a task of its own: to the bits of one training that was never taken apart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from boomspec.core.errors import BoomspecError
from boomspec.core.graph import Node
from boomspec.core.layers import read_layers
from boomspec.core.losses import KL, CrossEntropy, HiddenCosine, Losses
from boomspec.core.losses.hidden_distances import HiddenMSE
from boomspec.core.losses.taid import TAID
from boomspec.core.losses.weight import WeightCourse
from boomspec.core.tasks import Distill, During, Faithful, OnPolicy, Patched, Phase, Sampling, TopTokens
from boomspec.store import RECORD, Store
from runners.data.tokens import TokenStream
from runners.executor import worker
from runners.executor.sharing import sharing
from runners.report.collect import collect
from runners.report.page import publish_run
from runners.report.process_figures import training_figure
from runners.runtime.context import Context
from runners.tasks import distill, teacher_outputs
from runners.training.phases import TRAINING
from tests.messages import wording
from tests.runners import small, tiny
from tests.runners.crew import Crew
from tests.runners.test_cohort import interrupted_at, newest
from tests.runners.test_distill import ALL, metrics, payload, record, teacher_artifact

STEPS, BORDER = 6, 4
LOSSES = Losses(
    cross_entropy=CrossEntropy(weight=WeightCourse.model_validate({"start": 1.0, "end": 0.2})),
    taid=TAID(weight=1.0),
    hidden_mse=HiddenMSE(projection=True),
)
SAMPLING = Sampling(temperature=1.0, top_k=None, top_p=None)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    tokens = tiny.token_artifact(folder / "tokens")
    return {"teacher": teacher_artifact(folder / "teacher", tie_word_embeddings=True), "tokens": tokens}


def other_text(folder: Path) -> Path:
    """A token artifact with another text: the numbers backwards."""
    tiny.token_artifact(folder)
    for split in ("train", "held_out"):
        file = folder / f"{split}.bin"
        stream = TokenStream(folder, split).tokens[::-1].copy()
        file.write_bytes(stream.tobytes())
    return folder


def in_phases(
    whole: Distill, *, border: int = BORDER, passed: int | None = None, **second: Any
) -> tuple[Distill, Distill]:
    """The training in two phases, the second with other fields. `passed`: where that does not go on in the text."""
    end = whole.recipe.steps
    phases = (
        Phase(first=0, steps=border, passed=0),
        Phase(first=border, steps=end - border, passed=border if passed is None else passed),
    )
    first, last = (whole.model_copy(update={"phase": phase}) for phase in phases)
    return first, last.model_copy(update=second)


def context_of(place: Path, one: Distill, folders: dict[str, Path], **inputs: Path) -> Context[Any]:
    context = tiny.context(place, one, **{**folders, **inputs})
    tiny.set_training(context, micro_batch=4)
    return context


def trained(place: Path, one: Distill, folders: dict[str, Path], **inputs: Path) -> Context[Any]:
    context = context_of(place, one, folders, **inputs)
    distill.run(context)
    return context


def of_both(
    place: Path, phases: tuple[Distill, Distill], folders: dict[str, Path], **second: Path
) -> list[Context[Any]]:
    """Both phases, one after the other; `second` are inputs that the other one has not."""
    first = trained(place / "first", phases[0], folders)
    return [first, trained(place / "second", phases[1], folders, before=first.path, **second)]


@pytest.mark.parametrize(
    "fields",
    [
        {"losses": LOSSES, "recipe": {"precision": "bf16"}},
        {"losses": ALL, "balance": "running", "train_embedding": False, "initial": "random"},
        {"during": During(every=3, sizes=(), max_tokens=200), "losses": ALL},
        {"faithful": Faithful(padding=True, kl_on_padding=True, summed_micro_batches=2)},
        {"on_policy": OnPolicy(share=0.6, prompt_tokens=3, new_tokens=5, sampling=SAMPLING)},
        {"patched": Patched(share=0.8, plans=(read_layers("s0 t2 t3 s2 s3"), read_layers("s0 s1 t4 t5")))},
    ],
    ids=["courses, t and parameters of a loss", "balance", "held-out losses", "padding", "on-policy", "patch-aware"],
)
def test_two_phases_on_one_text_are_one_training_bit_for_bit(
    tmp_path: Path, folders: dict[str, Path], fields: dict[str, Any]
) -> None:
    whole = record(**{**fields, "recipe": {"steps": STEPS, **fields.get("recipe", {})}})
    alone = trained(tmp_path / "whole", whole, folders)
    first, second = of_both(tmp_path, in_phases(whole), folders)
    assert payload(second) == payload(alone)
    rows = metrics(alone)
    assert metrics(first) == rows[:BORDER]
    assert [row["step"] for row in rows[:STEPS]] == list(range(STEPS))
    # The student after the first phase is a model like any other, and beside it lies what the second goes on from.
    files = {name.partition("/")[0] for name in payload(first)}
    assert files == {"model", "metrics.jsonl", "similarity.json", TRAINING}
    state = json.loads((first.path / TRAINING / "state.json").read_text())
    assert (state["steps"], set(state["sha256"].values())) == (BORDER, {None})
    moments = load_file(first.path / TRAINING / "moments.safetensors")
    assert {tensor.dtype for tensor in moments.values()} == {torch.float32}


def test_outputs_that_are_stored_of_the_teacher_are_read_by_a_phase_where_it_draws(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    from boomspec.compile.records import teacher_outputs as stored

    kind = {"losses": Losses(cross_entropy=CrossEntropy(), kl=KL()), "teacher_outputs": TopTokens(k=8)}
    whole = record(**kind, recipe={"steps": STEPS, "sequences": 24})  # more rows than windows: the text is repeated
    phases, made = in_phases(whole), dict[str, Path]()
    for name, one in {"whole": whole, "first": phases[0], "second": phases[1]}.items():
        context = tiny.context(tmp_path / f"{name} outputs", stored(one), **folders)
        teacher_outputs.run(context)
        made[name] = context.path
    alone = trained(tmp_path / "whole", whole, folders, outputs=made["whole"])
    first = trained(tmp_path / "first", phases[0], folders, outputs=made["first"])
    second = trained(tmp_path / "second", phases[1], folders, before=first.path, outputs=made["second"])
    assert payload(second) == payload(alone)


def test_phases_on_two_texts_with_other_losses_are_one_training_on_the_batches_of_both(
    tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against one uninterrupted training by hand, whose batches and losses change at the border.

    The losses of the first phase do not reach the head, to AdamW a parameter of fewer steps; an interrupt in the second
    phase does not change that.
    """
    other = other_text(tmp_path / "other")
    states, logits = Losses(hidden_cosine=HiddenCosine(final_norm=False)), Losses(cross_entropy=CrossEntropy(), kl=KL())
    untied = {**folders, "teacher": teacher_artifact(tmp_path / "untied", tie_word_embeddings=False)}
    whole = record(losses=states, recipe={"steps": STEPS})
    first, second = in_phases(whole, passed=0, losses=logits)

    drawn, real_loss = TokenStream.batch, distill.distillation_loss

    def by_hand(stream: TokenStream, step: int, **shape: int) -> Any:
        if step < BORDER or stream.file.name != "train.bin":
            return drawn(stream, step, **shape)
        return drawn(TokenStream(other), step - BORDER, **shape)

    def both_losses(student: Any, teachers: Any, losses: Losses, kept: Any, **options: Any) -> Any:
        one, two = (real_loss(student, teachers, of, kept, **options) for of in (states, logits))
        return lambda inputs, labels, count, moment: (one if moment.step < BORDER else two)(
            inputs, labels, count, moment
        )

    with monkeypatch.context() as changed:
        changed.setattr(TokenStream, "batch", by_hand)
        changed.setattr(distill, "distillation_loss", both_losses)
        alone = trained(tmp_path / "whole", whole, untied)

    made = of_both(tmp_path / "phases", (first, second), untied, tokens=other)[1]
    expected = payload(alone)
    found = payload(made)
    assert found["model/model.safetensors"] == expected["model/model.safetensors"]
    assert metrics(made) == metrics(alone)
    assert [set(row) & {"kl", "hidden_cosine"} for row in metrics(made)] == [{"hidden_cosine"}] * 4 + [{"kl"}] * 2

    inputs = {"tokens": other, "before": tmp_path / "phases" / "first" / "payload"}
    with interrupted_at(1), pytest.raises(KeyboardInterrupt):  # the second batch of its text
        trained(tmp_path / "stopped", second, untied, **inputs)
    assert newest(tmp_path / "stopped" / "resume") == BORDER + 1
    again = tiny.context(tmp_path / "again", second, resume=tmp_path / "stopped" / "resume", **{**untied, **inputs})
    tiny.set_training(again, micro_batch=4)
    distill.run(again)
    assert payload(again) == found


def test_a_phase_goes_on_to_the_same_bits_wherever_either_was_interrupted(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    whole = record(losses=LOSSES, recipe={"steps": STEPS})
    first, second = in_phases(whole)
    expected = payload(trained(tmp_path / "whole", whole, folders))
    before: Path | None = None
    for name, one, stops in (("first", first, (1, 3)), ("second", second, (BORDER, STEPS - 1))):
        inputs = {} if before is None else {"before": before}
        for stop in stops:
            context = context_of(tmp_path / f"{name} {stop}", one, folders, **inputs)
            context.resume = tmp_path / f"{name} resume"
            with interrupted_at(stop), pytest.raises(KeyboardInterrupt):
                distill.run(context)
        context = context_of(tmp_path / name, one, folders, **inputs)
        context.resume = tmp_path / f"{name} resume"
        distill.run(context)
        before = context.path
    assert payload(context) == expected


def test_the_state_of_another_phase_is_refused(tmp_path: Path, folders: dict[str, Path]) -> None:
    whole = record(recipe={"steps": STEPS})
    first, second = in_phases(whole)
    _, later = in_phases(whole, border=5)
    before = trained(tmp_path / "first", first, folders).path
    with pytest.raises(BoomspecError, match=wording("phases.other_steps", steps=4, begins=5)):
        trained(tmp_path / "later", later, folders, before=before)
    frozen = second.model_copy(update={"train_embedding": False})
    with pytest.raises(BoomspecError, match=wording("phases.other_parameters")):
        trained(tmp_path / "frozen", frozen, folders, before=before)
    damaged = before / TRAINING / "moments.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-8])
    with pytest.raises(BoomspecError, match=wording("phases.cannot_be_read")):
        trained(tmp_path / "second", second, folders, before=before)


def test_what_is_shown_of_a_phase_is_its_own_progress_and_the_curve_of_all_steps(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    first, second = in_phases(record(recipe={"steps": STEPS}))
    _, last = of_both(tmp_path, (first, second), folders)
    lines = [json.loads(line) for line in (last.path.parent / "progress.jsonl").read_text().splitlines()]
    tokens = second.recipe.sequences * second.recipe.sequence_length
    assert [(line["done"], line["total"]) for line in lines if "done" in line] == [
        (tokens, 2 * tokens),
        (2 * tokens, 2 * tokens),
    ]
    steps = [row["step"] for line in lines for row in line.get("rows", ())]
    assert steps == list(range(STEPS))


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    crew = Crew(2)
    yield crew
    crew.close()


def _in_group(place: str, one: Distill, folders: dict[str, Path], before: Path | None, parallel: str) -> None:
    rank = torch.distributed.get_rank()
    folder = Path(place)
    if rank == 0:
        (folder / "payload").mkdir(parents=True)
    torch.distributed.barrier()
    from runners.runtime.context import Progress
    from runners.runtime.job import Input

    inputs = {**folders, **({} if before is None else {"before": before})}
    context: Context[Any] = Context(
        record=one,
        inputs={role: Input(id=role, path=path) for role, path in inputs.items()},
        path=folder / "payload",
        resume=folder / "resume",
        progress=Progress(None),
    )
    tiny.set_training(context, micro_batch=4, parallel=parallel, workers=2)
    distill.run(context)


def test_students_that_are_cut_over_workers_hand_on_a_whole_state_and_read_one(
    tmp_path: Path, folders: dict[str, Path], crew: Crew
) -> None:
    first, second = in_phases(record(recipe={"steps": STEPS}))
    alone = of_both(tmp_path / "alone", (first, second), folders)
    crew.run(2, _in_group, str(tmp_path / "cut"), first, folders, None, "fsdp")
    crew.run(2, _in_group, str(tmp_path / "again"), second, folders, tmp_path / "cut" / "payload", "fsdp")
    for name, expected in (("cut", alone[0]), ("again", alone[1])):
        found = tmp_path / name / "payload"
        assert {str(p.relative_to(found)) for p in found.rglob("*") if p.is_file()} == set(payload(expected))
        rows = [json.loads(line) for line in (found / "metrics.jsonl").read_text().splitlines()]
        for row, other in zip(rows, metrics(expected), strict=True):
            assert row == pytest.approx(other, rel=1e-4)
    for file in ("weights", "moments"):
        cut, own = (
            load_file(one / TRAINING / f"{file}.safetensors") for one in (tmp_path / "cut/payload", alone[0].path)
        )
        assert list(cut) == list(own)
        for name, tensor in cut.items():
            torch.testing.assert_close(tensor, own[name], rtol=1e-3, atol=1e-5)


def test_variants_share_a_first_phase_and_second_ones_a_forward_of_the_teacher(finished: Path, tmp_path: Path) -> None:
    """Each of a cohort goes on from the phase that is its own, to the bits that it has alone."""
    phases = [{"tokens": 512, "name": "both"}, {"tokens": 512, "losses": {"cross_entropy": {}, "kl": {}}}]
    other = {"distill": {"phases": [phases[0], {"tokens": 512, "losses": {"kl": {}}}]}}
    sections = {"distill": {"tokens": None, "phases": phases}, "execution": {"distill": {"cohort": 2}}}
    spec, store = small.copied(finished, tmp_path, without=["report"], variants={"kl": other}, **sections)
    graph = small.compiled(spec, store).graph
    second = [n for n in graph.nodes.values() if n.task.kind == "distill" and "before" in n.task.inputs]
    assert len(second) == 2
    assert len({node.task.inputs["before"] for node in second}) == 1
    small.execute(replace(graph, targets=tuple(n.id for n in graph.nodes.values() if n.task.kind == "distill")), store)
    alone = {node.id: files_of(store, node) for node in second}
    # Now both second phases of students whose first phases differ: each goes on from its own.
    apart = {"distill": {"phases": [{**phases[0], "losses": {"kl": {}}}, phases[1]]}}
    spec, store = small.copied(finished, tmp_path / "apart", without=["report"], variants={"kl": apart}, **sections)
    graph = small.compiled(spec, store).graph
    second = [n for n in graph.nodes.values() if n.task.kind == "distill" and "before" in n.task.inputs]
    assert len({node.task.inputs["before"] for node in second}) == 2
    assert set(sharing(graph, [node.id for node in second], has=lambda _: True, memory=0.0).cohorts.values()) == {2}
    for first in {node.task.inputs["before"] for node in second}:
        small.execute(replace(graph, targets=(first,)), store)
    jobs = [job for job in small.jobs(graph, store, tmp_path / "run") if job.node in second]
    assert {outcome.state for outcome in worker.execute(jobs).values()} == {"made"}
    together = {node.id: files_of(store, node) for node in second}
    assert together.keys() & alone.keys()
    for task in together.keys() & alone.keys():
        assert together[task] == alone[task]


def files_of(store: Store, node: Node) -> dict[str, bytes]:
    folder = store.path(node.task.kind, node.id)
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != RECORD]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_page_shows_the_student_after_each_phase_and_one_curve_with_marks(finished: Path, tmp_path: Path) -> None:
    phases = [{"tokens": 512, "name": "both"}, {"tokens": 512, "losses": {"cross_entropy": {}, "kl": {}}}]
    spec, store = small.copied(finished, tmp_path, without=["report"], distill={"tokens": None, "phases": phases})
    graph = small.compiled(spec, store).graph
    small.execute(graph, store)
    page = publish_run(graph, store, tmp_path / "run", {})
    assert "student after phase both" in page.read_text()
    results = json.loads(page.with_name("results.json").read_text())
    assert results["missing"] == []
    series = [row["series"] for row in results["results"] if row["metric"] == "loss"]
    assert series == ["student", "phase both", "interpolated", "teacher"]
    report = next(node for node in graph.nodes.values() if node.name == "report")
    find = {role: store.path(graph.nodes[i].task.kind, i) for role, i in report.task.inputs.items()}
    study = collect(report.task.record, find.__getitem__)
    (training,) = [one for one in study.trainings if one.label == "student"]
    assert [row["step"] for row in training.steps] == list(range(4))
    assert [(phase.name, phase.step) for phase in training.phases] == [("both", 0), ("2", 2)]
    assert [(term["training"], term["term"]) for term in training.terms] == [
        ("student, phase 2", "cross_entropy"),
        ("student, phase 2", "kl"),
    ]
    panels = training_figure(training).panels
    assert len(panels) == 4  # the loss and its terms; also the one that the second phase has not
    for panel in panels:
        borders = [one for one in panel.layers if one["mark"].get("type") == "rule"]
        assert [row["x"] for one in borders for row in one["data"]["values"]] == [2]
