"""Tiny models with few positions, and lm-eval tasks in folders with their documents beside them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from boomspec.compile.lm_eval.sources import local_data
from boomspec.compile.lm_eval.tasks import read_task, task_index
from boomspec.core.graph import Source
from boomspec.core.identity import folder_digest
from boomspec.core.task_data import digests
from boomspec.core.tasks import Evaluate, LmEval
from runners.runtime.context import Context, Progress
from runners.runtime.job import Input
from runners.tasks import evaluate
from tests.runners import tiny

POSITIONS = 16
CHOICE: dict[str, Any] = {
    "task": "own",
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "{{context}}",
    "doc_to_choice": "choices",
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc"}],
}
WRITTEN: dict[str, Any] = {
    "task": "own",
    "dataset_path": "json",
    "output_type": "generate_until",
    "test_split": "test",
    "doc_to_text": "{{context}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["63"], "max_gen_toks": 4},
    "metric_list": [{"metric": "exact_match"}],
}

BOS, END, THINK, ANSWER = "<bos>", "<end>", "<think>", "</think>"
WORDS = {"<eos>": 0, **{str(i): i for i in range(1, 60)}, BOS: 60, END: 61, THINK: 62, ANSWER: 63}
ROLES = "{% set role = {'system': '51', 'user': '52', 'assistant': '53'} %}"
TEMPLATE = (
    ROLES
    + "{{ bos_token }} {% for m in messages %}{{ role[m['role']] }} {{ m['content'] }} {{ '<end> ' }}{% endfor %}"
    + "{% if add_generation_prompt %}53 {% if think %}<think> {% endif %}{% endif %}"
)


def numbers(count: int, start: int = 1) -> str:
    """A text of so many tokens."""
    return " ".join(str(start + i % 50) for i in range(count))


def row(tokens: int = 4, *, label: Any = 0, choices: tuple[str, ...] = ("7", "8 9"), **more: Any) -> dict[str, Any]:
    return {"context": numbers(tokens), "choices": list(choices), "label": label, "answer": "5", **more}


def model(folder: Path, *, broken: bool = False, **fields: Any) -> Path:
    """An artifact with a model of 16 positions and a tokenizer of one token a word; `broken`: it answers NaN."""
    made = tiny.model(layers=2, **{"max_position_embeddings": POSITIONS, "tie_word_embeddings": False, **fields})
    if broken:
        with torch.no_grad():
            made.get_output_embeddings().weight[7] = float("nan")
    made.save_pretrained(folder / "model")
    words = Tokenizer(WordLevel({"<eos>": 0, **{str(i): i for i in range(1, tiny.VOCABULARY)}}, unk_token="<eos>"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>").save_pretrained(folder / "model")
    return folder


def chat_model(folder: Path, template: str | None = TEMPLATE, *, positions: int = 64) -> Path:
    """A model with a tokenizer that begins every text, and a chat template that begins a chat, with the same token."""
    made = tiny.model(layers=2, tie_word_embeddings=False, max_position_embeddings=positions)
    made.save_pretrained(folder / "model")
    words = Tokenizer(WordLevel(WORDS, unk_token="<eos>"))
    words.pre_tokenizer = Whitespace()
    special = [(BOS, WORDS[BOS])]
    words.post_processor = TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", bos_token=BOS)
    tokenizer.add_tokens([END, THINK, ANSWER])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder / "model")
    return folder


def task(folder: Path, rows: list[dict[str, Any]], config: dict[str, Any] | None = None, code: str = "") -> Source:
    """A folder with the task "own"; its documents lie in it, in files by split: {"test": rows} or rows alone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    (folder / "code.py").write_text(code)
    said = yaml.safe_dump({"dataset_kwargs": {"data_files": {"test": "rows.jsonl"}}, **(config or CHOICE)})
    (folder / "own.yaml").write_text(said.replace("'!function ", "!function '"))
    return source(folder)


def source(folder: Path, name: str = "own") -> Source:
    """The source as the compiler makes it, for a task of this folder."""
    task_index.cache_clear()  # a compiler reads a folder once
    outside, asks = local_data(read_task(name, folder).tasks, folder, own=True)
    places = [{"path": str(path), "is_file": path.is_file()} for path in outside]
    identity = {"folder": folder_digest(folder), "tasks": sorted(asks), "data": [digests(path) for path in outside]}
    return Source("lm_eval_tasks", identity, {"folder": str(folder), "data": places, "asks": asks})


def measured(folder: Path, model: Path, source: Source, *, backend: Any = None, **fields: Any) -> dict[str, Any]:
    """Run the body of an `evaluate` task in a new folder: its results.json."""
    folder.mkdir()
    record = Evaluate(measure=LmEval(**{"task": "own", **fields}), precision="fp32", backend=backend)
    inputs = {"model": Input("m", model), "tasks": Input("t", source=source)}
    progress = Progress(folder.parent / f"{folder.name}-progress.jsonl", every_seconds=0.0)
    evaluate.run(Context(record, inputs, folder, folder.parent / f"{folder.name}-resume", progress=progress))
    return strict((folder / "results.json").read_text())


def strict(text: str) -> Any:
    """JSON that holds neither NaN nor Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def lines(folder: Path) -> list[dict[str, Any]]:
    """The progress of the evaluation that ran in a folder."""
    return [strict(line) for line in (folder.parent / f"{folder.name}-progress.jsonl").read_text().splitlines()]
