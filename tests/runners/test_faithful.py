"""The switches that reproduce the published code: padding, KL over padding, summed micro batches."""

import json

import numpy as np
import pytest
import torch

from boomspec.core.losses import KL, CrossEntropy, HiddenCosine, Losses
from boomspec.core.tasks import Distill, Faithful
from runners.data.tokens import PADDING, TokenStream
from runners.tasks import distill
from tests.runners import tiny

KEPT = (0, 2)
LOSSES = Losses(cross_entropy=CrossEntropy(), kl=KL(weight=0.5), hidden_cosine=HiddenCosine())


def documents(folder):
    """A token artifact whose stream has three documents, of 3, 6 and 20 tokens."""
    artifact = tiny.token_artifact(folder)
    stream = np.concatenate([[0], [5] * 3, [0], [6] * 6, [0], np.arange(1, 21), [0]]).astype("<u2")
    stream.tofile(artifact / "train.bin")
    meta = artifact / "meta.json"
    meta.write_text(meta.read_text().replace('"tokens": 2000', f'"tokens": {len(stream)}'))
    return artifact


def test_a_padded_row_is_one_document_with_its_end_then_padding(tmp_path):
    stream = TokenStream(documents(tmp_path / "tokens"))
    rows = stream.padded_batch(0, sequences=3, sequence_length=8, seed=0)
    expected = [[5] * 3 + [0] + [PADDING] * 5, [6] * 6 + [0] + [PADDING] * 2, list(range(1, 10))]
    assert sorted(map(list, rows)) == sorted(expected)
    again = stream.padded_batch(1, sequences=3, sequence_length=8, seed=0)
    assert sorted(map(list, again)) == sorted(expected)  # the next epoch


def test_kl_over_padding_is_averaged_over_every_position_and_the_rest_is_not():
    teacher, student = tiny.model(layers=4, seed=1), tiny.model(layers=2, seed=2)
    inputs_BT = torch.arange(24).reshape(2, 12) % tiny.VOCABULARY
    labels_BT = inputs_BT.roll(-1).masked_fill(torch.arange(12) > 7, -100)
    count, everywhere = int((labels_BT >= 0).sum()), labels_BT.numel()
    plain = distill.distillation_loss(student, [teacher], LOSSES, KEPT)
    faithful = distill.distillation_loss(student, [teacher], LOSSES, KEPT, everywhere=everywhere)
    _, terms = plain(inputs_BT, labels_BT, count)
    total, over_padding = faithful(inputs_BT, labels_BT, count)
    with torch.no_grad():
        logits, targets = (m(inputs_BT).logits.log_softmax(-1) for m in (student, teacher))
        expected = torch.nn.functional.kl_div(logits, targets, log_target=True, reduction="none").sum(-1).mean()
    torch.testing.assert_close(over_padding["kl"], expected)
    assert not torch.isclose(over_padding["kl"], terms["kl"])
    for name in ("cross_entropy", "hidden_cosine"):
        torch.testing.assert_close(over_padding[name], terms[name])
    weighted = over_padding["cross_entropy"] + 0.5 * expected + 2.0 * over_padding["hidden_cosine"]
    torch.testing.assert_close(total.detach(), weighted)


def test_summed_micro_batches_scale_the_gradient_that_is_clipped(tmp_path):
    tiny.model(layers=4).save_pretrained(tmp_path / "teacher" / "model")
    tokens = documents(tmp_path / "tokens")
    first = {}
    for summed in (1, 256):
        record = Distill(
            kept=KEPT,
            initial="teacher",
            train_embedding=True,
            losses=LOSSES,
            recipe=tiny.recipe(steps=1, sequences=3, sequence_length=8),
            faithful=Faithful(padding=True, kl_on_padding=False, summed_micro_batches=summed),
        )
        context = tiny.context(tmp_path / str(summed), record, teacher=tmp_path / "teacher", tokens=tokens)
        distill.run(context)
        first[summed] = json.loads((context.path / "metrics.jsonl").read_text())
    assert first[256]["grad_norm"] == pytest.approx(256 * first[1]["grad_norm"], rel=1e-4)
    assert first[256]["loss"] == pytest.approx(first[1]["loss"])
