"""Training on a text whose mask hides what is no response: which positions count, and steps without any."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from boomspec.core.losses import KL, CrossEntropy, HiddenCosine, Losses
from boomspec.core.tasks import Distill
from runners.data.tokens import TokenStream
from runners.modeling.labels import with_labels
from runners.modeling.models import load_frozen
from runners.tasks import distill
from tests.runners import tiny

LOSSES = Losses(cross_entropy=CrossEntropy(), kl=KL(), hidden_cosine=HiddenCosine())
KEPT = (0, 2, 3)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    tiny.model(layers=4, seed=3).save_pretrained(folder / "model")
    tiny.token_artifact(folder / "tokens")
    shutil.copytree(folder / "tokens" / "tokenizer", folder / "model", dirs_exist_ok=True)
    return folder


def masked(folder: Path, labels: np.ndarray) -> Path:
    tiny.token_artifact(folder)
    np.packbits(labels, bitorder="little").tofile(folder / "train.labels")
    meta = json.loads((folder / "meta.json").read_text())
    meta["train"]["labelled"] = int(labels.sum())
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def trained(folder: Path, teacher: Path, tokens: Path, micro_batch: int = 8) -> list[dict[str, float]]:
    record = Distill(kept=KEPT, initial="teacher", train_embedding=True, losses=LOSSES, recipe=tiny.recipe(steps=4))
    context = tiny.context(folder, record, teacher=teacher, tokens=tokens)
    tiny.set_training(context, micro_batch=micro_batch)
    distill.run(context)
    return [json.loads(line) for line in (context.path / "metrics.jsonl").read_text().splitlines()]


def test_losses_are_means_over_the_labels_alone_whatever_the_micro_batch(tmp_path: Path, teacher: Path) -> None:
    labels = np.random.default_rng(0).random(2000) < 0.1  # many rows of a micro batch of one have few, or none
    tokens = masked(tmp_path / "tokens", labels)
    whole, one = (trained(tmp_path / str(size), teacher, tokens, size) for size in (8, 1))
    for a, b in zip(whole, one, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
    stream = TokenStream(tokens)
    batch = stream.batch(0, sequences=8, sequence_length=16, seed=0)
    shown, ids = torch.from_numpy(batch[:, 1:] >= 0), torch.from_numpy(with_labels(batch))
    large = load_frozen(teacher / "model", dtype=torch.float32)
    begun = tmp_path / "begun"
    small = distill.initial_student(
        Distill(kept=KEPT, initial="teacher", train_embedding=True, losses=LOSSES, recipe=tiny.recipe()),
        teacher / "model",
        begun,
    )
    with torch.no_grad():
        s, t = (model(input_ids=ids[:, :-1], output_hidden_states=True) for model in (small, large))
    expected = F.cross_entropy(s.logits[shown], ids[:, 1:][shown])
    kl = F.kl_div(s.logits[shown].log_softmax(-1), t.logits[shown].softmax(-1), reduction="batchmean")
    pairs = [(0, 0), (1, 2), (2, 3), (3, 4)]
    cosines = [
        F.cosine_similarity(s.hidden_states[i][shown], t.hidden_states[j][shown], dim=-1).mean() for i, j in pairs
    ]
    assert whole[0]["cross_entropy"] == pytest.approx(float(expected), rel=1e-5)
    assert whole[0]["kl"] == pytest.approx(float(kl), rel=1e-4)
    assert whole[0]["hidden_cosine"] == pytest.approx(float(1 - torch.stack(cosines).mean()), rel=1e-4)


def test_a_step_without_any_label_has_no_gradient(tmp_path: Path, teacher: Path) -> None:
    rows = trained(tmp_path / "run", teacher, masked(tmp_path / "tokens", np.zeros(2000, np.bool_)), 4)
    assert [row["loss"] for row in rows] == [0.0] * 4
    assert [row["grad_norm"] for row in rows] == [0.0] * 4
