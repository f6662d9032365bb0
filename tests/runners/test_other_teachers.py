"""Several teachers beside one student: what is run, what it costs, on several workers; stored outputs there, too."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from boomspec.compile.cost.pricing import priced
from boomspec.core.errors import BoomspecError
from boomspec.core.execution import Execution, read_options
from boomspec.core.graph import Node, Source, Task
from boomspec.core.losses import KL, CrossEntropy, HiddenCosine, Losses
from boomspec.core.tasks import Distill, OtherTeachers, TopTokens
from boomspec.models.facts import read_facts
from runners.data.tokens import TokenStream
from runners.runtime.context import Context
from runners.tasks import distill
from runners.training.teachers import Teachers
from tests.messages import wording
from tests.runners import tiny
from tests.runners.crew import Crew
from tests.runners.test_cohort import interrupted_at
from tests.runners.test_distill import KEPT, load, metrics, payload, record, teacher_artifact
from tests.runners.test_many_workers import UNEVEN, same, work
from tests.runners.test_teacher_outputs import LOSSES as OFFLINE
from tests.runners.test_teacher_outputs import counted, stored

ALL = Losses(cross_entropy=CrossEntropy(), kl=KL(weight=0.5), hidden_cosine=HiddenCosine())
LOSSES, MIXTURE = (OtherTeachers(weights=(0.3, 0.2), combine=how) for how in ("losses", "mixture"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three teachers: the own one, one of another width, one of another family."""
    folder = tmp_path_factory.mktemp("teachers")
    found = {"tokens": tiny.token_artifact(folder / "tokens"), "teacher": teacher_artifact(folder / "own")}
    for role, family, fields in (
        ("teacher 2", "llama", {"hidden_size": 24, "head_dim": 12}),
        ("teacher 3", "gpt2", {}),
    ):
        tiny.model(family, layers=3, seed=8, **fields).save_pretrained(folder / role / "model")
        shutil.copytree(found["tokens"] / "tokenizer", folder / role / "model", dirs_exist_ok=True)
        found[role] = folder / role
    return found


def student(others: OtherTeachers | None, **fields: Any) -> Distill:
    return record(others=others, **{"losses": ALL, **fields})


def context_of(place: Path, of: Distill, folders: dict[str, Path], **options: Any) -> Context[Any]:
    context = tiny.context(place, of, resume=options.pop("resume", None), **folders)
    tiny.set_training(context, **options)
    return context


def trained(place: Path, of: Distill, folders: dict[str, Path], **options: Any) -> Context[Any]:
    context = context_of(place, of, folders, **options)
    distill.run(context)
    return context


@pytest.mark.parametrize("combine", ["losses", "mixture"])
def test_logits_are_those_of_all_teachers_and_states_are_the_own_ones(folders: dict[str, Path], combine: Any) -> None:
    models, small = [load(folders[f"teacher{n}"] / "model") for n in ("", " 2", " 3")], tiny.model(layers=4, seed=9)
    batch = torch.from_numpy(TokenStream(folders["tokens"]).batch(0, sequences=4, sequence_length=16, seed=0))
    inputs, labels, weights = batch[:, :-1], batch[:, 1:], (0.5, 0.3, 0.2)
    several = distill.distillation_loss(small, models, ALL, KEPT, combined=Teachers(weights, combine))
    _, terms = several(inputs, labels, labels.numel())
    alone = [distill.distillation_loss(small, [model], Losses(kl=KL()), KEPT[:2]) for model in models]
    own = distill.distillation_loss(small, models[:1], ALL, KEPT)(inputs, labels, labels.numel())[1]
    assert terms["hidden_cosine"] == own["hidden_cosine"]
    assert terms["cross_entropy"] == pytest.approx(float(own["cross_entropy"]), rel=1e-6)
    if combine == "losses":
        singly = [float(loss(inputs, labels, labels.numel())[1]["kl"]) for loss in alone]
        expected = sum(weight * value for weight, value in zip(weights, singly, strict=True))
    else:
        with torch.no_grad():
            p = sum(w * model(inputs).logits.double().softmax(-1) for w, model in zip(weights, models, strict=True))
            log_q = small(inputs).logits.double().log_softmax(-1)
        expected = float((p * (p.log() - log_q)).sum(-1).mean())
    assert float(terms["kl"]) == pytest.approx(expected, rel=1e-5)


def test_other_teachers_run_only_where_some_student_reads_logits(folders: dict[str, Path]) -> None:
    models, asked = [load(folders[role] / "model") for role in ("teacher", "teacher 2")], []
    models[1].model.register_forward_hook(lambda *_: asked.append(1))
    small, inputs = tiny.model(layers=4, seed=9), torch.arange(12).view(2, 6)
    for losses, runs in ((Losses(hidden_cosine=HiddenCosine()), 0), (ALL, 1)):
        asked.clear()
        distill.distillation_loss(small, models, losses, KEPT, combined=Teachers((0.5, 0.5)))(inputs, inputs, 12)
        assert len(asked) == runs


def test_an_interrupted_student_goes_on_to_the_same_bits_and_a_cohort_has_those_of_each(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    records = [student(LOSSES), student(MIXTURE, kept=(0, 3, 5)), student(LOSSES, losses=Losses(kl=KL()))]
    alone = [payload(trained(tmp_path / f"alone {n}", one, folders, micro_batch=2)) for n, one in enumerate(records)]

    def contexts(place: str) -> list[Context[Any]]:
        return [
            context_of(tmp_path / place / str(n), one, folders, micro_batch=2, resume=tmp_path / f"resume {n}")
            for n, one in enumerate(records)
        ]

    with interrupted_at(3), pytest.raises(KeyboardInterrupt):
        distill.run(contexts("first")[0])
    together = contexts("second")
    assert all(error is None for _, error in distill.run_together(together))
    assert [payload(context) for context in together] == alone


def test_micro_batches_change_nothing_but_rounding(tmp_path: Path, folders: dict[str, Path]) -> None:
    one, other = (metrics(trained(tmp_path / str(n), student(MIXTURE), folders, micro_batch=n)) for n in (1, 8))
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b, rel=2e-4)


def test_teachers_of_other_logits_are_an_error(tmp_path: Path, folders: dict[str, Path]) -> None:
    tiny.model(vocab_size=tiny.VOCABULARY + 8).save_pretrained(tmp_path / "other" / "model")
    with pytest.raises(BoomspecError, match=wording("other_teachers.numbers_of_logits")):
        trained(tmp_path / "student", student(LOSSES), {**folders, "teacher 3": tmp_path / "other"})


@pytest.mark.parametrize("losses", [ALL, Losses(hidden_cosine=HiddenCosine()), Losses(cross_entropy=CrossEntropy())])
def test_operations_and_memory_of_every_teacher_are_counted(
    tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, losses: Losses
) -> None:
    monkeypatch.setattr(distill, "check_head", lambda _: None)  # on a few tokens: of so small models it would show
    told = []
    for others in (None, LOSSES):
        of = student(others, losses=losses)
        roles = ("teacher", *(others.roles if others else ()))
        sources = {role: Source("model", {"of": role}, {}) for role in roles}
        task = Task(of, {**{role: source.id for role, source in sources.items()}, "tokens": "tokens"})
        node = Node(task, "task", Execution(**read_options({"micro_batch": 8})))
        facts = {source.id: read_facts(folders[role] / "model") for role, source in sources.items()}
        cost = priced({node.id: node}, {s.id: s for s in sources.values()}, facts)[node.id].cost
        assert cost is not None
        place = tmp_path / str(len(roles))
        real = counted(lambda of=of, place=place: trained(place, of, folders, micro_batch=8))
        told.append((cost, real))
    (alone, ran_alone), (several, ran) = told
    assert several.flops - alone.flops == pytest.approx(ran - ran_alone, rel=1e-3)
    assert several.memory["teacher"] == alone.memory["teacher"]
    for role in LOSSES.roles:
        elements = sum(parameter.numel() for parameter in load(folders[role] / "model").parameters())
        assert several.memory[role] == 4 * elements
    assert several.read > alone.read


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    crew = Crew(2)
    yield crew
    crew.close()


@pytest.mark.parametrize("options", [{"parallel": "ddp"}, {"parallel": "fsdp", "teacher": "sharded"}], ids=str)
def test_two_workers_with_several_teachers_give_the_result_of_one(
    tmp_path: Path, crew: Crew, folders: dict[str, Path], options: dict[str, Any]
) -> None:
    of = student(LOSSES, recipe=UNEVEN)
    work(tmp_path / "one", of, folders, {"micro_batch": 8})
    crew.run(2, work, tmp_path / "many", of, folders, {"micro_batch": 2, **options})
    same(tmp_path / "many" / "payload", tmp_path / "one" / "payload")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_workers_read_stored_outputs_to_the_result_of_one(
    tmp_path: Path, crew: Crew, folders: dict[str, Path], parallel: str
) -> None:
    how = TopTokens(k=5)
    outputs = stored(tmp_path / "outputs", {role: folders[role] for role in ("teacher", "tokens")}, how, rows=28)
    of, given = record(losses=OFFLINE, teacher_outputs=how, recipe=UNEVEN), {**folders, "outputs": outputs}
    work(tmp_path / "one", of, given, {"micro_batch": 8})
    crew.run(2, work, tmp_path / "many", of, given, {"micro_batch": 2, "parallel": parallel})
    same(tmp_path / "many" / "payload", tmp_path / "one" / "payload")
