"""Distilling tiny real models from end to end, and what each part of the loss reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from boomspec.core.errors import BoomspecError
from boomspec.core.losses import KL, CrossEntropy, HiddenCosine, Losses
from boomspec.core.tasks import Distill
from runners.data.tokens import TokenStream
from runners.modeling.hidden_states import decoder_layers
from runners.runtime.context import Context
from runners.tasks import distill
from tests.messages import wording
from tests.runners import tiny

KEPT = (0, 2, 4, 5)  # blocks 0 1 | 2 3 | 4 | 5
PRUNED = (1, 3)
ALL = Losses(cross_entropy=CrossEntropy(), kl=KL(temperature=2.0), hidden_cosine=HiddenCosine())


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.token_artifact(tmp_path_factory.mktemp("tokens") / "artifact")


def teacher_artifact(folder: Path, *, dtype: torch.dtype = torch.float32, **fields: Any) -> Path:
    """A teacher of 6 layers in `folder`/model, with the tokens' tokenizer."""
    family = fields.pop("family", "llama")
    tiny.model(family, layers=6, seed=3, **fields).to(dtype).save_pretrained(folder / "model")
    tiny.token_artifact(folder / "tokens")
    shutil.copytree(folder / "tokens" / "tokenizer", folder / "model", dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher_artifact(tmp_path_factory.mktemp("teacher"), tie_word_embeddings=True)


def record(**fields: Any) -> Distill:
    recipe = tiny.recipe(**fields.pop("recipe", {}))
    plain = {"kept": KEPT, "initial": "teacher", "train_embedding": True, "losses": ALL, "recipe": recipe}
    return Distill(**plain | fields)


def run(folder: Path, of: Distill, *, teacher: Path, tokens: Path, resume: Path | None = None) -> Context[Any]:
    context = tiny.context(folder, of, resume=resume, teacher=teacher, tokens=tokens)
    distill.run(context)
    return context


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


def metrics(context: Context[Any]) -> list[dict[str, float]]:
    return [json.loads(line) for line in (context.path / "metrics.jsonl").read_text().splitlines()]


def payload(context: Context[Any]) -> dict[str, bytes]:
    files = [file for file in context.path.rglob("*") if file.is_file()]
    return {str(file.relative_to(context.path)): file.read_bytes() for file in files}


@pytest.mark.parametrize(
    ("family", "dtype", "precision", "fields"),
    [
        ("llama", torch.float32, "fp32", {"tie_word_embeddings": True}),
        ("llama", torch.bfloat16, "bf16", {"tie_word_embeddings": False}),
        ("gemma2", torch.bfloat16, "fp32", {"final_logit_softcapping": 5.0}),
        ("gpt2", torch.float16, "bf16", {}),
    ],
    ids=["llama tied", "llama untied bf16", "gemma2", "gpt2 in fp16"],
)
def test_a_student_is_trained_and_saved_in_the_dtype_of_its_teacher(
    tmp_path: Path, tokens: Path, family: str, dtype: torch.dtype, precision: str, fields: dict[str, Any]
) -> None:
    teacher = teacher_artifact(tmp_path / "teacher", family=family, dtype=dtype, **fields)
    context = run(tmp_path, record(recipe={"precision": precision, "steps": 10}), teacher=teacher, tokens=tokens)

    rows = metrics(context)
    assert set(rows[0]) == {"step", "tokens", "loss", "cross_entropy", "kl", "hidden_cosine", "lr", "grad_norm"}
    assert rows[-1]["loss"] < rows[0]["loss"]
    folder = context.path / "model"
    assert json.loads((folder / "student_config.json").read_text()) == {
        "copied_teacher_layers": list(KEPT),
        "pruned_teacher_layers": list(PRUNED),
    }
    student = load(folder)
    assert len(decoder_layers(student)) == student.config.num_hidden_layers == 4
    stored = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    assert student.dtype == dtype
    assert stored.keys() < load_file(teacher / "model" / "model.safetensors").keys()
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<eos>"


def test_a_student_that_learns_from_its_teacher_alone_comes_nearer_at_every_pair(
    tmp_path: Path, teacher: Path, tokens: Path
) -> None:
    losses = Losses(kl=KL(weight=1.0), hidden_cosine=HiddenCosine())
    of = record(losses=losses, recipe={"steps": 30, "optimizer": {"lr": 3e-3}})
    context = run(tmp_path, of, teacher=teacher, tokens=tokens)
    rows = metrics(context)
    assert rows[-1]["kl"] < rows[0]["kl"] / 2
    assert rows[-1]["hidden_cosine"] < rows[0]["hidden_cosine"] / 2
    pairs = json.loads((context.path / "similarity.json").read_text())["pairs"]
    assert [(pair["student"], pair["teacher"]) for pair in pairs] == [
        ("embedding", "embedding"),
        ("layer 0", "layer 1"),
        ("layer 1", "layer 3"),
        ("layer 2", "layer 4"),
        ("final norm", "final norm"),
    ]
    assert pairs[0]["before"] == pytest.approx(1.0)
    assert all(-1 <= pair[when] <= 1 for pair in pairs[1:] for when in ("before", "after"))
    assert all(pair["after"] > pair["before"] for pair in pairs[1:])


def test_similarity_is_measured_on_training_text_where_none_is_held_out(tmp_path: Path) -> None:
    artifact = tiny.token_artifact(tmp_path / "tokens", held_out=0)
    expected = TokenStream(artifact).batch(0, sequences=8, sequence_length=16, seed=0)[:, :-1]
    assert np.array_equal(distill.similarity_batch(artifact, 16).numpy(), expected)


def test_the_loss_is_the_formula_of_the_paper(teacher: Path, tokens: Path) -> None:
    large, small = load(teacher / "model"), tiny.model(layers=4, seed=9)
    batch = torch.from_numpy(TokenStream(tokens).batch(0, sequences=4, sequence_length=16, seed=0))
    inputs, labels = batch[:, :-1], batch[:, 1:]

    with torch.no_grad():
        actual, terms = distill.distillation_loss(small, [large], ALL, KEPT)(inputs, labels, labels.numel())
        s, t = (model(input_ids=inputs, output_hidden_states=True) for model in (small, large))
    ce = F.cross_entropy(s.logits.flatten(0, 1), labels.flatten())
    p, q = (t.logits / 2).softmax(-1), (s.logits / 2).softmax(-1)
    kl = 4 * (p * (p / q).log()).sum(-1).mean()
    # transformers' indices: 0 is the embedding, i + 1 is layer i, the last is behind the final norm.
    aligned = [(0, 0), (1, 2), (2, 4), (3, 5), (4, 6)]
    cosines = [F.cosine_similarity(s.hidden_states[i], t.hidden_states[j], dim=-1).mean() for i, j in aligned]
    cos = 1 - torch.stack(cosines).mean()

    torch.testing.assert_close(terms["cross_entropy"], ce)
    torch.testing.assert_close(terms["kl"], kl)
    torch.testing.assert_close(terms["hidden_cosine"], cos)
    torch.testing.assert_close(actual, ce + 0.1 * kl + 2.0 * cos)


def test_the_initial_student_is_the_kept_layers_of_the_teacher_and_its_other_tensors(
    tmp_path: Path, teacher: Path
) -> None:
    student = distill.initial_student(record(), teacher / "model", tmp_path)
    whole = load(teacher / "model")
    tokens = torch.arange(10).view(1, 10)
    whole.model.layers = torch.nn.ModuleList(whole.model.layers[i] for i in KEPT)
    assert torch.equal(student(tokens).logits, whole(tokens, use_cache=False).logits)
    assert student.dtype == torch.float32
    assert not student.training


def test_all_layers_kept_is_the_teacher_with_nothing_to_learn(tmp_path: Path, teacher: Path, tokens: Path) -> None:
    context = run(tmp_path, record(kept=tuple(range(6)), recipe={"steps": 1}), teacher=teacher, tokens=tokens)
    assert metrics(context)[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert metrics(context)[0]["hidden_cosine"] == pytest.approx(0, abs=1e-6)
    assert tiny.notes(context) == []  # published weights are no reason for a warning


@pytest.mark.parametrize("train_embedding", [True, False])
def test_a_random_student_copies_nothing_but_a_frozen_embedding(
    tmp_path: Path, teacher: Path, train_embedding: bool
) -> None:
    of = record(initial="random", train_embedding=train_embedding)
    student = distill.initial_student(of, teacher / "model", tmp_path / "one")
    again = distill.initial_student(of, teacher / "model", tmp_path / "two")
    other_seed = record(initial="random", train_embedding=train_embedding, recipe={"seed": 1})
    third = distill.initial_student(other_seed, teacher / "model", tmp_path / "three")
    whole = load(teacher / "model")
    embedding = student.get_input_embeddings().weight
    assert torch.equal(embedding, whole.get_input_embeddings().weight) is not train_embedding
    assert embedding.requires_grad is train_embedding
    assert student.get_output_embeddings().weight is embedding
    for layer, same, other in zip(*map(decoder_layers, (student, again, third)), strict=True):
        weight = layer.mlp.up_proj.weight
        assert torch.equal(weight, same.mlp.up_proj.weight)
        assert not torch.equal(weight, other.mlp.up_proj.weight)
        assert not any(torch.equal(weight, of_teacher.mlp.up_proj.weight) for of_teacher in decoder_layers(whole))


@pytest.mark.parametrize("initial", ["teacher", "random"])
def test_a_frozen_embedding_is_still_the_teachers_after_training(
    tmp_path: Path, teacher: Path, tokens: Path, initial: str
) -> None:
    context = run(tmp_path, record(initial=initial, train_embedding=False), teacher=teacher, tokens=tokens)
    student, whole = load(context.path / "model"), load(teacher / "model")
    assert torch.equal(student.model.embed_tokens.weight, whole.model.embed_tokens.weight)
    assert torch.equal(student.lm_head.weight, whole.model.embed_tokens.weight)
    assert not torch.equal(student.model.layers[0].mlp.up_proj.weight, whole.model.layers[0].mlp.up_proj.weight)


def test_bf16_gives_nearly_the_loss_of_fp32(tmp_path: Path, teacher: Path, tokens: Path) -> None:
    rows = [
        metrics(run(tmp_path / name, record(recipe={"precision": name}), teacher=teacher, tokens=tokens))[0]
        for name in ("fp32", "bf16")
    ]
    assert rows[1]["loss"] == pytest.approx(rows[0]["loss"], rel=0.02)
    assert rows[1]["loss"] != rows[0]["loss"]


def test_the_same_task_gives_the_same_bytes_also_when_it_was_interrupted(
    tmp_path: Path, teacher: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = payload(run(tmp_path / "whole", record(), teacher=teacher, tokens=tokens))
    real = TokenStream.batch

    def stopping(stream: TokenStream, step: int, **arguments: int) -> np.ndarray:
        if step == 3:
            raise KeyboardInterrupt
        return real(stream, step, **arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TokenStream, "batch", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "first", record(), teacher=teacher, tokens=tokens, resume=tmp_path / "resume")
    second = run(tmp_path / "second", record(), teacher=teacher, tokens=tokens, resume=tmp_path / "resume")
    assert tiny.notes(second)[-1] == wording("distill.continues_after_step")
    actual = payload(second)
    assert actual.keys() == expected.keys()
    assert [name for name in expected if actual[name] != expected[name]] == []


@pytest.mark.parametrize(
    ("losses", "forwards", "heads", "hooks"),
    [
        (Losses(cross_entropy=CrossEntropy()), 0, 0, 0),
        (Losses(cross_entropy=CrossEntropy(), kl=KL()), 1, 1, 0),
        (Losses(cross_entropy=CrossEntropy(), hidden_cosine=HiddenCosine()), 1, 0, 5),
        (Losses(hidden_cosine=HiddenCosine(embedding=False)), 1, 0, 4),
    ],
    ids=["ce", "ce + kl", "ce + cosine", "cosine"],
)
def test_a_term_that_is_left_out_costs_nothing(
    teacher: Path, monkeypatch: pytest.MonkeyPatch, losses: Losses, forwards: int, heads: int, hooks: int
) -> None:
    large, small = load(teacher / "model"), tiny.model(layers=4, seed=9)
    counts = {"forward": 0, "head": 0, "hooks": 0}

    def counted(what: str, module: torch.nn.Module) -> None:
        module.register_forward_hook(lambda *_: counts.update({what: counts[what] + 1}))

    counted("forward", large.model)
    counted("head", large.lm_head)
    for name in ("register_forward_hook", "register_forward_pre_hook"):
        real = getattr(torch.nn.Module, name)

        def counting(module: torch.nn.Module, *arguments: Any, real: Any = real, **options: Any) -> Any:
            counts["hooks"] += 1
            return real(module, *arguments, **options)

        monkeypatch.setattr(torch.nn.Module, name, counting)
    inputs = torch.arange(12).view(2, 6)
    loss, _ = distill.distillation_loss(small, [large], losses, KEPT)(inputs, inputs, 12)
    loss.backward()
    assert counts == {"forward": forwards, "head": heads, "hooks": 2 * hooks}  # on student and teacher


def test_tokens_of_a_larger_vocabulary_are_an_error(tmp_path: Path, teacher: Path) -> None:
    artifact = tiny.token_artifact(tmp_path / "tokens", vocabulary=tiny.VOCABULARY + 1)
    with pytest.raises(BoomspecError, match=wording("distill.vocabulary_but_teacher_embeds")):
        run(tmp_path / "run", record(), teacher=teacher, tokens=artifact)
