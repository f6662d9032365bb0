"""The cost model against what is measured: operations by torch's own counter, memory by the tensors that are alive."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from boomspec.compile.cost.pricing import priced
from boomspec.core.execution import Execution, read_options
from boomspec.core.graph import Cost, Node, Source, Task
from boomspec.core.losses import KL, LOSSES, CrossEntropy, HiddenCosine, Losses
from boomspec.core.losses.attention import AttentionMaps, MiniLM, MiniLMv2
from boomspec.core.losses.crd import CRD
from boomspec.core.losses.hidden_distances import HiddenNMSE
from boomspec.core.losses.relations import CKA, NST, RKD, SPKD, AttentionTransfer, CorrelationCongruence
from boomspec.core.losses.update_direction import UpdateDirection
from boomspec.core.losses.vid import VariationalInformation
from boomspec.core.tasks import (
    Architecture,
    Calibration,
    Distill,
    Evaluate,
    Faithful,
    HeldOut,
    LayerChoice,
    PatchOrder,
    Pretrain,
    Record,
    Search,
)
from boomspec.models.facts import read_facts
from boomspec.plan.rates import refined
from boomspec.store import FolderStore
from runners.cli import calibrate
from runners.data.tokens import TokenStream
from runners.evaluation import held_out
from runners.evaluation.members import WholeModel
from runners.modeling.models import load_frozen
from runners.runtime.device import frozen_dtype
from runners.tasks import distill, evaluate, pretrain, search
from runners.training import checkpoint_writer
from runners.training.loop import train
from runners.training.losses import weights
from runners.training.parallel import ParallelModel
from tests.runners import tiny
from tests.runners.instruments import LiveBytes, counted_flops

WIDE = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, tied, grouped queries": ("llama", {**WIDE, "tie_word_embeddings": True}),
    "llama, untied": ("llama", {**WIDE, "num_key_value_heads": 4, "tie_word_embeddings": False}),
    "gpt2": ("gpt2", {"n_embd": 64, "n_head": 4, "n_positions": 64}),
    "gpt_neox": ("gpt_neox", {**WIDE, "num_key_value_heads": 4}),
    "qwen3": ("qwen3", {**WIDE, "tie_word_embeddings": True}),
    "gemma3": ("gemma3_text", WIDE),
}
KEPT = (0, 2, 3)
ALL = Losses(cross_entropy=CrossEntropy(), kl=KL(), hidden_cosine=HiddenCosine())
LENGTH, VOCABULARY = 32, 256


def made(folder: Path, family: str, *, layers: int = 4, vocabulary: int = VOCABULARY, **fields: Any) -> Path:
    """A model folder and a token artifact beside it."""
    sized = {"vocab_size": vocabulary, "max_position_embeddings": 64, **fields}
    tiny.model(family, layers=layers, **sized).save_pretrained(folder / "artifact" / "model")
    tiny.token_artifact(folder / "tokens", vocabulary=vocabulary, held_out=64 * LENGTH + 1)
    shutil.copytree(folder / "tokens" / "tokenizer", folder / "artifact" / "model", dirs_exist_ok=True)
    return folder


def cost(folder: Path, record: Record, *, role: str = "teacher", **options: Any) -> Cost:
    """What the task is said to cost, with what its tokens say."""
    source = Source("model", {"of": str(folder)}, {})
    task = Task(record, {role: source.id, "tokens": "tokens"})
    node = Node(task, "task", Execution(**read_options(options)))
    facts = {source.id: read_facts(folder / "artifact" / "model")}
    found = priced({node.id: node}, {source.id: source}, facts)[node.id].cost
    assert found is not None
    return found


def student(**fields: Any) -> Distill:
    recipe = {"steps": 2, "sequences": 8, "sequence_length": LENGTH, **fields.pop("recipe", {})}
    plain = {"kept": KEPT, "initial": "teacher", "train_embedding": True, "losses": ALL}
    return Distill(**{**plain, **fields, "recipe": tiny.recipe(**recipe)})


def flops_of(folder: Path, record: Distill, *, micro_batch: int = 4) -> int:
    """Operations of the whole task, counted while it runs."""
    context = tiny.context(folder / "run", record, teacher=folder / "artifact", tokens=folder / "tokens")
    tiny.set_training(context, micro_batch=micro_batch)
    with counted_flops() as counter:
        distill.run(context)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("family", FAMILIES)
def test_operations_of_a_distillation_are_those_that_torch_counts(tmp_path: Path, family: str) -> None:
    name, fields = FAMILIES[family]
    folder = made(tmp_path, name, **fields)
    expected = cost(folder, student(), micro_batch=4)
    assert expected.flops == pytest.approx(flops_of(folder, student()), rel=0.02)
    assert expected.tokens == expected.real_tokens == 2 * 8 * LENGTH


@pytest.mark.parametrize(
    ("terms", "embedding"),
    [
        (Losses(cross_entropy=CrossEntropy()), True),
        (Losses(kl=KL(temperature=2.0)), True),
        (Losses(hidden_cosine=HiddenCosine()), True),
        (Losses(cross_entropy=CrossEntropy(), hidden_cosine=HiddenCosine(embedding=False)), False),
    ],
    ids=["cross entropy", "kl", "hidden cosine", "frozen embedding"],
)
def test_what_no_term_reads_is_not_counted(tmp_path: Path, terms: Losses, embedding: bool) -> None:
    folder = made(tmp_path, "llama", **WIDE, tie_word_embeddings=True)
    record = student(losses=terms, train_embedding=embedding)
    assert cost(folder, record).flops == pytest.approx(flops_of(folder, record), rel=0.02)


@pytest.mark.parametrize("terms", [ALL, Losses(cross_entropy=CrossEntropy(), hidden_cosine=HiddenCosine())])
def test_measuring_the_sizes_of_balanced_terms_is_counted(tmp_path: Path, terms: Losses) -> None:
    folder = made(tmp_path, "llama", **WIDE, tie_word_embeddings=True)
    plain, record = student(losses=terms), student(losses=terms, balance="start")
    assert cost(folder, record).flops == pytest.approx(flops_of(folder, record), rel=0.02)
    assert cost(folder, record).flops > 1.1 * cost(folder, plain).flops  # one batch more, of two that are trained on


@pytest.mark.parametrize("kind", sorted(kind for kind, loss in LOSSES.items() if "logits" in loss.reads))
def test_memory_follows_each_loss_of_logits(tmp_path: Path, kind: str) -> None:
    folder = made(tmp_path, "llama", **{**WIDE, "tie_word_embeddings": True, "vocabulary": 4096})
    told, measured = peaks(folder, student(losses=Losses(**{kind: LOSSES[kind]()})), micro_batch=2)
    assert told == pytest.approx(measured, rel=0.15)


PAIRED = {
    "projected": Losses(hidden_nmse=HiddenNMSE(projection=True), update_direction=UpdateDirection(projection=True)),
    "vid": Losses(vid=VariationalInformation(pairs="last")),
    "crd": Losses(crd=CRD(positions=20)),
    "rkd": Losses(rkd=RKD(positions=16)),
    "relations": Losses(spkd=SPKD(), cc=CorrelationCongruence(positions=20), nst=NST(), cka=CKA(pairs="last")),
    "attention transfer": Losses(attention_transfer=AttentionTransfer()),
    "attention maps": Losses(attention_maps=AttentionMaps()),
    "minilm": Losses(minilm=MiniLM()),
    "minilmv2": Losses(minilmv2=MiniLMv2(pairs="all", relation_heads=8)),
}


@pytest.mark.parametrize("terms", PAIRED.values(), ids=PAIRED)
def test_operations_of_losses_on_pairs_are_those_that_torch_counts(tmp_path: Path, terms: Losses) -> None:
    """In one step, without what is done once."""
    folder, counted, told = made(tmp_path, "llama", **WIDE), [], []
    for steps in (1, 2):
        both = terms.model_copy(update={"cross_entropy": CrossEntropy()})
        record = student(losses=both, recipe={"steps": steps})
        told.append(cost(folder, record, micro_batch=4).flops)
        counted.append(flops_of(folder, record))
        shutil.rmtree(folder / "run")
    assert told[1] - told[0] == pytest.approx(counted[1] - counted[0], rel=0.005)


@pytest.mark.parametrize("kl_on_padding", [False, True])
def test_padding_is_counted_once_the_tokens_are_known(tmp_path: Path, kl_on_padding: bool) -> None:
    folder = made(tmp_path, "llama", **WIDE, vocabulary=24)  # documents shorter than a sequence
    store, task = FolderStore(tmp_path / "store"), "tokens"
    artifact = store.path("tokenize", task)
    artifact.parent.mkdir(parents=True)
    shutil.copytree(folder / "tokens", artifact)
    faithful = Faithful(padding=True, kl_on_padding=kl_on_padding, summed_micro_batches=1)
    record = student(recipe={"steps": 6}, faithful=faithful)
    before = cost(folder, record)
    assert before.real_tokens is None
    after = refined(before, record, {"tokens": task}, store)
    assert after is not None
    assert after.real_tokens is not None
    stream = TokenStream(artifact)
    rows = [stream.padded_batch(step, sequences=8, sequence_length=LENGTH, seed=0)[:, 1:] for step in range(6)]
    labels = sum(int((row >= 0).sum()) for row in rows)
    # The mean document stands for those that are drawn.
    assert after.real_tokens == pytest.approx(labels, rel=0.3)
    assert after.real_tokens < after.tokens
    measured = flops_of(folder, record)
    exact = before.flops - before.flops_per_real_token * (before.tokens - labels)
    assert exact == pytest.approx(measured, rel=0.02)
    assert before.flops > after.flops


def test_operations_of_a_pretraining_are_those_that_torch_counts(tmp_path: Path) -> None:
    tokens = tiny.token_artifact(tmp_path / "tokens", vocabulary=VOCABULARY)
    record = Pretrain(architecture=architecture(), recipe=tiny.recipe(steps=2, sequence_length=LENGTH))
    context = tiny.context(tmp_path, record, tokens=tokens)
    node = Node(Task(record, {"tokens": "tokens"}), "pretrain")
    expected = priced({node.id: node}, {}, {})[node.id].cost
    with counted_flops() as counter:
        pretrain.run(context)
    assert expected is not None
    assert expected.flops == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert expected.disk == pytest.approx((context.path / "model" / "model.safetensors").stat().st_size, rel=0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_operations_of_a_measurement_are_those_that_torch_counts(tmp_path: Path, family: str) -> None:
    name, fields = FAMILIES[family]
    folder = made(tmp_path, name, **fields)
    record = Evaluate(measure=HeldOut(sequence_length=LENGTH), precision="fp32")
    expected = cost(folder, record, role="model", batch_size=8)
    assert (expected.flops, expected.tokens, expected.real_tokens) == (0, 0, None)
    assert "known after tokenize" in expected.unknown
    context = tiny.context(folder / "run", record, model=folder / "artifact", tokens=folder / "tokens")
    with counted_flops() as counter:
        evaluate.run(context)
    tokens = 64 * LENGTH
    assert expected.flops_per_real_token * tokens == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_a_search_is_counted_in_full_so_at_most(tmp_path: Path) -> None:
    folder = made(tmp_path, "llama", **WIDE, tie_word_embeddings=True)
    calibration = Calibration(sequences=4, sequence_length=LENGTH, seed=0)
    choices = {
        "block influence": LayerChoice(method="block_influence", count=2),
        "cosine greedy": LayerChoice(method="cosine_greedy", count=2),
        "klpatch": PatchOrder(
            method="klpatch",
            kept=(0, 2),
            direction="teacher_to_candidate",
            positions="all",
            reduction="token_mean",
        ),
    }
    tiny.model("llama", layers=2, seed=1, vocab_size=VOCABULARY, **WIDE, tie_word_embeddings=True).save_pretrained(
        folder / "student" / "model"
    )
    shares = {}
    for name, choice in choices.items():
        record = Search(choice=choice, calibration=calibration, precision="fp32")
        inputs = {"teacher": folder / "artifact", "student": folder / "student", "tokens": folder / "tokens"}
        with counted_flops() as counter:
            search.run(tiny.context(folder / name, record, **inputs))
        shares[name] = counter.get_total_flops() / cost(folder, record).flops
    # take_apart runs the models on some tokens more, which shows in a search as small as this.
    assert shares["block influence"] == pytest.approx(1.0, abs=0.02)
    assert 0.3 < shares["cosine greedy"] < 1.2
    assert 0.3 < shares["klpatch"] < 1.2


# --- memory ---------------------------------------------------------------------------------------

SHAPES = {
    "narrow": {"vocabulary": 512},
    "wide MLP": {"vocabulary": 512, "intermediate_size": 1024},
    "large vocabulary": {"vocabulary": 8192},
}


def peaks(folder: Path, record: Distill, *, micro_batch: int, **options: Any) -> tuple[int, int]:
    """Bytes at the largest moment: as told, and of the tensors that are alive while two real steps are made."""
    told = cost(folder, record, micro_batch=micro_batch, **options)
    recipe = record.recipe
    context = tiny.context(folder / "run", record)
    again = bool(options.get("activation_checkpointing", False))
    tiny.set_training(context, micro_batch=micro_batch, activation_checkpointing=again, checkpoint_seconds=0)
    small = distill.initial_student(record, folder / "artifact" / "model", context.path / "model")
    large = load_frozen(folder / "artifact" / "model", dtype=frozen_dtype(recipe.precision))
    beside = distill.loss_parameters(record.losses, small, seed=0)
    loss = distill.distillation_loss(small, [large], record.losses, record.kept, parameters=beside)
    numbers = np.random.default_rng(0)
    vocabulary = small.config.vocab_size

    def batch(step: int) -> Any:
        return numbers.integers(0, vocabulary, size=(recipe.sequences, recipe.sequence_length + 1))

    real, ended = checkpoint_writer.write_tensors, threading.Event()

    def at_last(*arguments: Any) -> str:
        assert ended.wait(60)  # a checkpoint is being written through all of the second step
        return real(*arguments)

    trained = () if beside is None else beside.parameters()
    alive = LiveBytes(*{*small.parameters(), *large.parameters(), *trained})
    with alive, pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_writer, "write_tensors", at_last)
        patch.setattr(checkpoint_writer.CheckpointWriter, "finish", lambda _: ended.set())
        train(
            small,
            recipe=recipe,
            batch=batch,
            loss=loss,
            weights=weights(record.losses),
            context=context,
            parallel=ParallelModel(small, losses=beside),
        )
    return told.peak, alive.peak


@pytest.mark.parametrize(
    ("family", "precision"),
    [*((name, "fp32") for name in FAMILIES), *((name, "bf16") for name in ("llama, untied", "gpt2", "gemma3"))],
)
def test_memory_of_a_training_step_is_what_is_alive(tmp_path: Path, family: str, precision: str) -> None:
    name, fields = FAMILIES[family]
    folder = made(tmp_path, name, **fields)
    told, measured = peaks(folder, student(recipe={"precision": precision}), micro_batch=4)
    assert told == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize(
    ("shape", "micro_batch"),
    [("narrow", 1), ("narrow", 8), ("wide MLP", 3), ("large vocabulary", 1), ("large vocabulary", 8)],
)
def test_memory_follows_micro_batch_and_shape(tmp_path: Path, shape: str, micro_batch: int) -> None:
    folder = made(tmp_path, "llama", **{**WIDE, **SHAPES[shape]})
    told, measured = peaks(folder, student(), micro_batch=micro_batch)
    assert told == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize(
    ("terms", "embedding"),
    [
        (Losses(cross_entropy=CrossEntropy()), True),
        (Losses(kl=KL()), True),
        (Losses(hidden_cosine=HiddenCosine()), True),
        (ALL.model_copy(update={"hidden_cosine": HiddenCosine(embedding=False)}), False),
    ],
    ids=["cross entropy", "kl", "hidden cosine", "frozen embedding"],
)
def test_memory_follows_the_terms_of_the_loss(tmp_path: Path, terms: Losses, embedding: bool) -> None:
    folder = made(tmp_path, "llama", **{**WIDE, "tie_word_embeddings": True, "vocabulary": 2048})
    told, measured = peaks(folder, student(losses=terms, train_embedding=embedding), micro_batch=4)
    assert told == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("terms", PAIRED.values(), ids=PAIRED)
def test_memory_follows_the_losses_on_pairs(tmp_path: Path, terms: Losses) -> None:
    folder = made(tmp_path, "llama", **{**WIDE, "vocabulary": 512})
    both = terms.model_copy(update={"cross_entropy": CrossEntropy()})
    told, measured = peaks(folder, student(losses=both), micro_batch=4)
    assert told == pytest.approx(measured, rel=0.15)


def test_memory_with_activations_that_are_computed_again(tmp_path: Path) -> None:
    folder = made(tmp_path, "llama", **WIDE)
    told, measured = peaks(folder, student(), micro_batch=8, activation_checkpointing=True)
    assert told == pytest.approx(measured, rel=0.15)
    assert told < cost(folder, student(), micro_batch=8).peak


def test_memory_of_many_chunks_of_logits(tmp_path: Path) -> None:
    folder = made(tmp_path, "llama", layers=2, vocabulary=66_000, **{**WIDE, "hidden_size": 32})
    record = student(kept=(0, 1), recipe={"sequences": 2, "sequence_length": 128})
    told, measured = peaks(folder, record, micro_batch=1)
    assert told == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_memory_of_a_measurement_is_what_is_alive(tmp_path: Path, precision: str) -> None:
    folder = made(tmp_path, "llama", **{**WIDE, "vocabulary": 2048})
    record = Evaluate(measure=HeldOut(sequence_length=LENGTH), precision=precision)
    model = load_frozen(folder / "artifact" / "model", dtype=frozen_dtype(record.precision))
    stream = TokenStream(folder / "tokens", "held_out")
    alive = LiveBytes(*model.parameters())
    with alive:
        held_out.window_losses(
            WholeModel(model),
            tokens=stream.tokens,
            eos=0,
            sequence_length=LENGTH,
            batch_size=8,
            progress=tiny.context(tmp_path / "c").progress,
        )
    assert cost(folder, record, role="model", batch_size=8).peak == pytest.approx(alive.peak, rel=0.15)


def architecture(**fields: Any) -> Architecture:
    plain = {
        "layers": 3,
        "hidden_size": 64,
        "intermediate_size": 160,
        "attention_heads": 4,
        "key_value_heads": 2,
        "vocabulary": VOCABULARY,
        "context": LENGTH,
        "tied": True,
        "initializer_range": 0.02,
    }
    return Architecture(**{**plain, **fields})


def test_calibration_counts_operations_as_the_cost_model_does() -> None:
    sizes = {
        "layers": calibrate._LAYERS,
        "hidden_size": calibrate._HIDDEN,
        "intermediate_size": calibrate._INNER,
        "key_value_heads": 4,
        "vocabulary": calibrate._VOCABULARY,
    }
    recipe = tiny.recipe(steps=1, sequences=calibrate._ROWS, sequence_length=calibrate._LENGTH)
    node = Node(Task(Pretrain(architecture=architecture(**sizes), recipe=recipe), {"tokens": "t"}), "pretrain")
    found = priced({node.id: node}, {}, {})[node.id].cost
    assert found is not None
    assert calibrate.step_flops()[1] == found.flops


def test_a_calibration_measures_every_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    try:
        calibrate.main(["--folder", str(tmp_path), "--seconds", "0.01"])
    finally:
        torch.set_num_threads(before)
    rates = json.loads(capsys.readouterr().out)
    assert set(rates) == {"matmul", "training", "measuring", "startup", "copying"}
    assert all(rate > 0 for rate in rates.values())
    assert list(tmp_path.iterdir()) == []
