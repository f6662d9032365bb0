"""Tiny real things for tests: models of several families, a token artifact, a task's context."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from boomspec.core.tasks.record import Optimizer, Recipe, Record, Schedule
from runners.runtime.context import Context, Progress
from runners.runtime.job import Input

VOCABULARY = 64
_SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}


def model(family: str = "llama", *, layers: int = 4, seed: int = 0, **fields: Any) -> PreTrainedModel:
    """A causal language model of `family` in fp32, with weights large enough for its layers to matter."""
    names = {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "initializer_range": 0.1, "pad_token_id": None}
    names |= {"gpt2": {"n_embd": 16, "n_head": 2}}.get(family, _SIZES)
    names |= {"num_hidden_layers": layers, "bos_token_id": 0, "eos_token_id": 0, **fields}
    config = AutoConfig.for_model(family, **names)
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def token_artifact(folder: Path, *, train: int = 2000, held_out: int = 300, vocabulary: int = VOCABULARY) -> Path:
    """A token artifact of random but learnable tokens: each is the one before plus 1 or 2, wrapping around."""
    folder.mkdir(parents=True)
    numbers = np.random.default_rng(0)
    meta: dict[str, Any] = {"dtype": "uint16", "eos": 0, "vocabulary": vocabulary}
    for split, count in {"train": train, "held_out": held_out}.items():
        stream = numbers.integers(1, 3, size=count).cumsum() % vocabulary
        stream.astype("<u2").tofile(folder / f"{split}.bin")
        meta[split] = {"tokens": count, "documents": 1, "bytes": count}
    (folder / "meta.json").write_text(json.dumps(meta))
    words = WordLevel({"<eos>": 0, **{str(i): i for i in range(1, vocabulary)}}, unk_token="<eos>")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), eos_token="<eos>").save_pretrained(folder / "tokenizer")
    return folder


def recipe(**fields: Any) -> Recipe:
    optimizer = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "clip": 1.0}
    schedule = {"kind": "cosine", "warmup_steps": 2, "final": 0.1}
    plain = {"seed": 0, "steps": 6, "sequences": 8, "sequence_length": 16, "precision": "fp32"}
    return Recipe(
        **{
            **plain,
            "optimizer": Optimizer(**optimizer | fields.pop("optimizer", {})),
            "schedule": Schedule(**schedule | fields.pop("schedule", {})),
            **fields,
        }
    )


def context(folder: Path, record: Record | None = None, *, resume: Path | None = None, **inputs: Path) -> Context[Any]:
    """A context that works in `folder`; `inputs` are folders of artifacts."""
    path = folder / "payload"
    path.mkdir(parents=True)
    return Context(
        record=record,
        inputs={role: Input(id=role, path=artifact) for role, artifact in inputs.items()},
        path=path,
        resume=resume or folder / "resume",
        progress=Progress(folder / "progress.jsonl", every_seconds=0.0),
    )


def set_training(context: Context[Any], **options: Any) -> None:
    """Give a context these options of its training; the others stay."""
    context.execution = replace(context.execution, training=replace(context.training, **options))


def notes(of: Context[Any]) -> list[str]:
    """The notes for people that a task has written."""
    file = of.path.parent / "progress.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [line["note"] for line in lines if "note" in line]
