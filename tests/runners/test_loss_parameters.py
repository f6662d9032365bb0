"""Parameters that losses train beside the student: seeded, in checkpoints, dropped at the end, one set a student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from boomspec.core.errors import BoomspecError
from boomspec.core.losses import LOSSES, Losses
from runners.runtime.context import Context
from runners.tasks import distill
from runners.tasks.distill import loss_parameters
from runners.training import parallel
from runners.training.process_group import ProcessGroup
from tests.messages import wording
from tests.runners import tiny
from tests.runners.pair_losses import KEPT, TRAINED
from tests.runners.test_cohort import interrupted_at
from tests.runners.test_distill import metrics, payload, record, teacher_artifact

WITH_OWN = Losses(
    hidden_mse=LOSSES["hidden_mse"](projection=True),
    update_direction=LOSSES["update_direction"](projection=True, pairs="last"),
    crd=LOSSES["crd"](size=6, pairs=(1,)),
    vid=LOSSES["vid"](pairs="last"),
    minilm=LOSSES["minilm"](),
    rkd=LOSSES["rkd"](positions=6),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    tokens = tiny.token_artifact(folder / "tokens")
    return {"teacher": teacher_artifact(folder / "teacher", tie_word_embeddings=True), "tokens": tokens}


def context(folder: Path, folders: dict[str, Path], losses: Losses = WITH_OWN, **fields: Any) -> Context[Any]:
    made = tiny.context(folder, record(losses=losses, **fields), resume=folder.parent / "resume", **folders)
    tiny.set_training(made, micro_batch=3)
    return made


def test_they_depend_on_the_seed_and_on_nothing_else() -> None:
    student = tiny.model(layers=3)
    one, again, other = (loss_parameters(WITH_OWN, student, seed=seed) for seed in (0, 0, 1))
    fewer = loss_parameters(Losses(crd=WITH_OWN.crd), tiny.model(layers=3, seed=9), seed=0)
    of_crd = {name: tensor for name, tensor in one.named_parameters() if name.startswith("crd")}
    for name, tensor in one.named_parameters():
        assert torch.equal(tensor, dict(again.named_parameters())[name])
    assert all(torch.equal(tensor, dict(fewer.named_parameters())[name]) for name, tensor in of_crd.items())
    weights = [model.of("crd", 0)["student_weight"] for model in (one, other)]
    assert not torch.equal(*weights)
    assert not torch.equal(one.of("crd", 0)["student_weight"], one.of("crd", 0)["teacher_weight"])
    assert torch.equal(one.of("hidden_mse", 2)["projection"], torch.eye(16))
    assert one.of("minilm", 0) == one.of("rkd", 0) == {}
    assert loss_parameters(Losses(rkd=WITH_OWN.rkd), student, seed=0) is None
    assert {*TRAINED} == {"crd", "vid"}


def test_they_are_trained_kept_in_checkpoints_and_dropped_and_an_interrupted_training_gives_the_same_bytes(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    whole = context(tmp_path / "a" / "whole", folders)
    distill.run(whole)
    expected = payload(whole)
    with interrupted_at(3), pytest.raises(KeyboardInterrupt):
        distill.run(context(tmp_path / "b" / "first", folders))
    stored = load_file(tmp_path / "b" / "resume" / "step-00000003" / "weights.safetensors")
    assert stored.keys() > {"losses.hidden_mse.0.projection", "losses.crd.0.student_weight", "losses.vid.0.spread"}
    assert not torch.equal(stored["losses.hidden_mse.0.projection"], torch.eye(16))
    second = context(tmp_path / "b" / "second", folders)
    distill.run(second)
    assert tiny.notes(second)[-1] == wording("distill.continues_after_step")
    actual = payload(second)
    assert [name for name in expected if actual[name] != expected[name]] == []
    assert not any("losses" in name for name in load_file(second.path / "model" / "model.safetensors"))
    rows = metrics(second)
    assert rows[-1]["loss"] < rows[0]["loss"]
    plain = context(
        tmp_path / "c" / "plain",
        folders,
        WITH_OWN.each(lambda term: term.model_copy(update={"projection": None} if hasattr(term, "projection") else {})),
    )
    distill.run(plain)
    assert metrics(plain)[0]["hidden_mse"] == rows[0]["hidden_mse"]
    assert metrics(plain)[-1]["hidden_mse"] != rows[-1]["hidden_mse"]


def test_students_of_a_cohort_have_one_set_each(tmp_path: Path, folders: dict[str, Path]) -> None:
    records = {"crd": Losses(crd=WITH_OWN.crd), "mse": Losses(hidden_mse=WITH_OWN.hidden_mse), "both": WITH_OWN}
    alone = {name: context(tmp_path / name / "alone", folders, losses) for name, losses in records.items()}
    for one in alone.values():
        distill.run(one)
    together = [context(tmp_path / "together" / name / "own", folders, losses) for name, losses in records.items()]
    assert sorted(distill.run_together(together)) == [(0, None), (1, None), (2, None)]
    assert [payload(one) for one in together] == [payload(one) for one in alone.values()]


def test_in_bf16_every_loss_on_pairs_is_near_that_of_fp32(tmp_path: Path, folders: dict[str, Path]) -> None:
    paired = {kind: loss() for kind, loss in LOSSES.items() if hasattr(loss, "sites")}
    rows = {}
    for precision in ("fp32", "bf16"):
        made = context(
            tmp_path / precision / "own", folders, Losses(**paired), recipe={"precision": precision, "steps": 1}
        )
        distill.run(made)
        (rows[precision],) = metrics(made)
    for kind in paired:
        assert rows["bf16"][kind] == pytest.approx(rows["fp32"][kind], rel=0.05, abs=1e-3), kind


def test_a_student_that_is_cut_over_workers_refuses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_sharded", lambda model: model)
    student = tiny.model(layers=len(KEPT))
    two = ProcessGroup(rank=0, size=2)
    with pytest.raises(BoomspecError, match="fsdp"):
        parallel.ParallelModel(student, two, parallel="fsdp", losses=loss_parameters(WITH_OWN, student, seed=0))
    parallel.ParallelModel(student, two, parallel="fsdp")
