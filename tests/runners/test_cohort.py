"""Students that share their teacher's forward pass: each becomes what it becomes alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from boomspec.core.losses import KL, CrossEntropy, HiddenCosine, Losses
from boomspec.core.tasks import Distill
from boomspec.store import FolderStore
from runners.data.tokens import TokenStream
from runners.executor.ready import Ready
from runners.executor.sharing import sharing
from runners.runtime.context import Context
from runners.tasks import distill
from runners.training import cohort
from runners.training.moment import Moment
from tests.messages import wording
from tests.runners import small, tiny
from tests.runners.test_distill import ALL, payload, record, teacher_artifact

RECORDS = (
    record(),
    record(losses=Losses(cross_entropy=CrossEntropy(), hidden_cosine=HiddenCosine(weight=0.5))),
    record(kept=(0, 3, 5), initial="random", losses=Losses(kl=KL(temperature=3.0)), recipe={"steps": 4}),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    tokens = tiny.token_artifact(folder / "tokens")
    return {"teacher": teacher_artifact(folder / "teacher", tie_word_embeddings=True), "tokens": tokens}


@pytest.fixture(scope="module")
def alone(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, bytes]]:
    """The files of each student, trained alone."""
    made = contexts(tmp_path_factory.mktemp("alone") / "contexts", folders)
    for context in made:
        distill.run(context)
    return [payload(context) for context in made]


def contexts(place: Path, folders: dict[str, Path], records: Sequence[Distill] = RECORDS) -> list[Context[Any]]:
    made = []
    for number, one in enumerate(records):
        context = tiny.context(place / str(number), one, resume=place.parent / "resume" / str(number), **folders)
        tiny.set_training(context, micro_batch=2)
        made.append(context)
    return made


def test_students_of_a_cohort_are_what_they_are_alone(
    tmp_path: Path, folders: dict[str, Path], alone: list[dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    shared = cohort.SharedTargets.__call__

    def counted(targets: cohort.SharedTargets, inputs_BT: torch.Tensor, moment: Moment) -> Any:
        computed = targets._found is None
        asked.append(computed)
        return shared(targets, inputs_BT, moment)

    monkeypatch.setattr(cohort.SharedTargets, "__call__", counted)
    together = contexts(tmp_path / "together", folders)
    ended = list(distill.run_together(together))
    assert sorted(ended) == [(0, None), (1, None), (2, None)]
    assert ended[0] == (2, None)  # it has fewer steps
    assert [payload(context) for context in together] == alone
    longest = max(one.recipe.steps for one in RECORDS)
    micro_batches = RECORDS[0].recipe.sequences // 2
    assert len(asked) == sum(one.recipe.steps for one in RECORDS) * micro_batches
    assert sum(asked) == longest * micro_batches  # the teacher's forward passes


def interrupted_at(step: int) -> Any:
    """Drawing the batch of this step is interrupted."""
    real = TokenStream.batch

    def stopping(stream: TokenStream, drawn: int, **arguments: int) -> Any:
        if drawn == step:
            raise KeyboardInterrupt
        return real(stream, drawn, **arguments)

    return patch.object(TokenStream, "batch", stopping)


def newest(resume: Path) -> int:
    """The step of the newest checkpoint."""
    return max(int(folder.name[5:13]) for folder in resume.glob("step-*"))


def test_an_interrupt_leaves_a_checkpoint_of_each_and_those_that_are_behind_catch_up(
    tmp_path: Path, folders: dict[str, Path], alone: list[dict[str, bytes]]
) -> None:
    with interrupted_at(3), pytest.raises(KeyboardInterrupt):
        list(distill.run_together(contexts(tmp_path / "first", folders)))
    steps = [newest(tmp_path / "resume" / str(number)) for number in range(len(RECORDS))]
    assert steps == [3, 2, 2]  # it came to the first; the others drop a step that is not done
    with interrupted_at(5), pytest.raises(KeyboardInterrupt):  # one goes on alone, and is stopped again
        distill.run(contexts(tmp_path / "second", folders)[1])
    assert newest(tmp_path / "resume" / "1") == 5
    third = contexts(tmp_path / "third", folders)
    assert all(error is None for _, error in distill.run_together(third))
    assert [payload(context) for context in third] == alone


def test_a_student_that_cannot_be_trained_fails_alone(
    tmp_path: Path, folders: dict[str, Path], alone: list[dict[str, bytes]]
) -> None:
    diverging = record(losses=ALL, recipe={"optimizer": {**RECORDS[0].recipe.optimizer.model_dump(), "lr": 1e30}})
    together = contexts(tmp_path / "together", folders, (RECORDS[0], diverging, RECORDS[2]))
    ended = dict(distill.run_together(together))
    assert (ended[0], ended[2]) == (None, None)
    assert wording("cohort.stopped_at_step") in str(ended[1])
    assert [payload(together[number]) for number in (0, 2)] == [alone[0], alone[2]]


VARIANTS = {
    "a": {"distill": {"losses": {"kl": {"weight": 0.5}}}},
    "b": {"distill": {"losses": {"cross_entropy": {}}}},
    "c": {"distill": {"optimizer": {"lr": 0.01}}},
    "other-batches": {"distill": {"batch_tokens": 128}},
}


def given(spec: Path, store: FolderStore, *, cpus: float) -> list[set[str]]:
    """The distillations as Ray gets them, when their teacher is there."""
    graph = small.compiled(spec, store).graph
    trained = [node.id for node in graph.nodes.values() if node.task.kind == "distill"]
    found = sharing(graph, trained, has=lambda _: True, memory=0.0)
    ready = Ready(graph, trained, found, machines=lambda: [{"CPU": cpus}])
    parts = []
    while part := ready.take():
        parts.append({graph.nodes[i].name for i in part})
        for task_id in part:
            ready.ended(task_id, made=True)
    return parts


def test_variants_on_the_same_batches_share_a_forward_pass_where_there_is_no_room_for_all(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    plain = small.write_spec(tmp_path, variants=VARIANTS)
    assert all(len(part) == 1 for part in given(plain, store, cpus=1))
    spec = small.write_spec(tmp_path, variants=VARIANTS, execution={"distill": {"cohort": 3}})
    sizes = {cpus: sorted(len(part) for part in given(spec, store, cpus=cpus)) for cpus in (1, 2, 8)}
    assert sizes == {1: [1, 2, 2], 2: [1, 2, 2], 8: [1, 1, 1, 1, 1]}
    large = small.write_spec(tmp_path, variants=VARIANTS, execution={"distill": {"cohort": 9}})
    assert sorted(len(part) for part in given(large, store, cpus=1)) == [1, 4]


def test_a_cohort_has_one_worker(tmp_path: Path) -> None:
    spec = small.write_spec(tmp_path, execution={"distill": {"cohort": 3, "workers": 2}})
    with pytest.raises(Exception, match=wording("cohort.one_worker")):
        small.compiled(spec, FolderStore(tmp_path / "store"))
