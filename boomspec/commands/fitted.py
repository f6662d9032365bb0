"""`boomspec init --teacher FOLDER --data FILES`: a spec whose numbers fit a teacher, a text and this machine.

    folder, files, machine --fitted--> Fitted(text of the spec, what was found)

Every number has a comment that says what it follows from. The rules:

    tokens of the text   bytes / 4 (fewer bytes a token for a small vocabulary), without what is held out
    sequence_length      a power of two: no more than the teacher's positions, and 200 rows in the text, as far as a
                         conversation has room in it
    distill.tokens       once through the text; on CPUs no more than a night takes, on a GPU the published 2.1B
    batch_tokens         at least 300 optimiser steps, as far as a row is not longer than that
"""

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boomspec.commands import first_rows
from boomspec.compile import text_files
from boomspec.compile.text_sources import FOLDER_HINT
from boomspec.core import machine
from boomspec.core.devices import Device, device_seen_as
from boomspec.core.errors import BoomspecError
from boomspec.core.layers import KeepRule
from boomspec.core.sizes import shown_bytes
from boomspec.models.facts import ModelFacts, positions_of, read_facts, total_parameters
from boomspec.models.folder import is_tokenizer_file, names_in
from boomspec.models.tokenizer import has_chat_template
from boomspec.plan.repetition import bytes_a_token, short_count
from boomspec.spec.yaml_writer import inline, scalar

_SAVED = "save it there with transformers: model.save_pretrained(folder), tokenizer.save_pretrained(folder)"
_NO_VOCABULARY = ("tokenizer_config", "special_tokens_map", "added_tokens", "chat_template")
_CPU_RATE = 25e9  # operations a second of a core, in fp32
_NIGHT, _HOUR = 8 * 3600, 3600
_PUBLISHED = 2_100_000_000  # tokens of the published distillations (arXiv 2510.05064)
_LONGEST_CPU, _LONGEST_GPU, _SHORTEST = 512, 2048, 64
_FEWEST_ROWS, _FEWEST_STEPS = 200, 300
_FEW_ROWS, _TOO_SHORT = 24, 16  # a little text: shorter sequences, down to so many tokens
_LARGEST_BATCH = 1 << 19  # tokens
_EVERY = 20
_HELD_OUT = 1_000_000  # tokens, which are enough for three digits of a loss
_COLUMN = 42  # of the comments


@dataclass(frozen=True)
class Here:
    """What this machine has. `device` is None without a GPU, or for one that is not known."""

    cpus: int
    memory: int
    gpu: str | None = None  # as its driver calls it
    device: Device | None = None


@dataclass(frozen=True)
class Fitted:
    """A spec, but for its name, and what it was fitted to."""

    text: str
    found: dict[str, Any]

    def line(self) -> str:
        kinds = "conversations" if self.found["conversations"] else "documents"
        tokens, steps = short_count(self.found["tokens"]), self.found["steps"]
        return f"{self.found['documents']:,} {kinds}, about {tokens} tokens; {steps:,} steps of training {self._on()}"

    def _on(self) -> str:
        return f"on {self.found['gpu']}" if self.found["gpu"] else "on CPUs, for no GPU is here"


def here() -> Here:
    """This machine, its first GPU asked of nvidia-smi: torch takes seconds to load."""
    found = Here(machine.cpus(), machine.available_bytes())
    if (tool := shutil.which("nvidia-smi")) is None:
        return found
    try:
        asked = [tool, "--query-gpu=name", "--format=csv,noheader"]
        names = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")
    except (OSError, subprocess.SubprocessError):
        return found  # a driver without a GPU
    name = names[0].strip()
    return Here(found.cpus, found.memory, name, device_seen_as(name)) if name else found


def fitted(teacher: str, data: Sequence[str], folder: Path, model: str, on: Here | None = None) -> Fitted:
    """A spec that lies in `folder`. `teacher`, `data`: as on the command line; `model`: the teacher in the spec.

    Raises BoomspecError where one of them cannot be used.
    """
    on = here() if on is None else on
    facts = _facts(Path(teacher).expanduser(), teacher)
    files = _files(data)
    format, by_name = first_rows.format_of(files)
    seen = first_rows.look(files, format)
    fields = first_rows.chosen(seen, files, template=has_chat_template(Path(teacher).expanduser()))
    _check_documents(seen, files, format)
    numbers = _numbers(facts, seen.documents, fields.bytes, on, chat=fields.is_chat)
    written = [_from(folder, entry) for entry in data]
    about: dict[str, str] = {} if by_name else {"format": format}
    rows = [*_rows(model, facts, written, {**about, **fields.fields}, numbers, on, chat=fields.is_chat)]
    text = "\n".join(f"{row:{_COLUMN}} # {why}" if why else row for row, why in rows) + "\n"
    found = {
        "documents": seen.documents,
        "conversations": fields.is_chat,
        "fields": {**about, **fields.fields},
        "tokens": numbers.text,
        "steps": numbers.steps,
        "gpu": on.gpu,
    }
    return Fitted(text, found)


def _facts(folder: Path, given: str) -> ModelFacts:
    if not folder.is_dir():
        hint = "with --data the teacher is a folder with config.json, model.safetensors and its tokenizer"
        if given.count("/") == 1 and not given.startswith((".", "/", "~")):
            hint += f"; of the hub: hf download {given} --local-dir {given.rpartition('/')[2]}"
        raise BoomspecError(f"--teacher {given}: no such folder", hint=hint)
    try:
        facts = read_facts(folder)
    except BoomspecError as error:
        raise BoomspecError(f"--teacher: {error.message}", hint=error.hint or _SAVED) from error
    of_tokenizer = [name for name in names_in(folder) if is_tokenizer_file(name)]
    if not any(not name.startswith(_NO_VOCABULARY) for name in of_tokenizer):
        raise BoomspecError(f"--teacher: {folder} holds no tokenizer (tokenizer.json)", hint=_SAVED)
    if facts.count < 2:
        raise BoomspecError(f"--teacher: {folder} has one layer: there is no smaller student of it")
    return facts


def _files(data: Sequence[str]) -> list[Path]:
    """The files of all entries, each once."""
    found: dict[Path, None] = {}
    for entry in data:
        matched = text_files.matching(Path.cwd(), entry)
        if not matched:
            is_folder = Path(entry).expanduser().is_dir()
            hint = (
                FOLDER_HINT if is_folder else f"paths are relative to {Path.cwd()}; patterns in quotes: 'texts/*.jsonl'"
            )
            raise BoomspecError(f"--data: no file matches '{entry}'", hint=hint)
        found |= dict.fromkeys(matched)
    return [path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path for path in found]


def _from(folder: Path, entry: str) -> str:
    """An entry of `files` as a spec in `folder` names it."""
    if entry.startswith("~") or Path(entry).is_absolute():
        return entry
    return os.path.relpath(Path.cwd() / entry, folder.resolve())


def _check_documents(seen: first_rows.Seen, files: Sequence[Path], format: str) -> None:
    if seen.documents > 1:
        return
    message = f"{files[0]}: one document, of which none can be held out to measure with"
    if format != "text":
        raise BoomspecError(message, hint="give more rows")
    parts = f"{files[0].stem}-part-"
    split = f"split -n l/{_EVERY} --additional-suffix=.txt {shlex.quote(str(files[0]))} {shlex.quote(parts)}"
    raise BoomspecError(message, hint=f"a text file is one document; split it: {split}; then --data '{parts}*.txt'")


@dataclass(frozen=True)
class _Numbers:
    positions: int | None
    text: int  # training tokens in the text
    every: int  # documents, one of which is held out
    length: int  # of a sequence
    tokens: int
    batch: int
    steps: int
    micro_batch: int
    measured: int | None  # held-out tokens; None: all
    held_out: int  # held-out tokens that there are
    is_cut: bool  # the training is shorter than the text


def _numbers(facts: ModelFacts, documents: int, size: float, on: Here, *, chat: bool) -> _Numbers:
    whole = round(size / bytes_a_token(facts.logits))
    every = min(documents, max(_EVERY, min(1000, whole // _HELD_OUT)))
    text = round(whole * (1 - 1 / every))
    positions = positions_of(facts)
    longest = min(positions or _LONGEST_GPU, _LONGEST_CPU if on.gpu is None else _LONGEST_GPU)
    length = 1 << (longest.bit_length() - 1)
    of_document = 2 * whole // documents if chat else 0  # a conversation that is cut off loses what it is about
    while length > max(_SHORTEST, of_document) and text < _FEWEST_ROWS * length:
        length //= 2
    while length > _TOO_SHORT and text < _FEW_ROWS * length:
        length //= 2
    if text < 8 * length:
        message = f"the text is about {text:,} tokens, {8 * length} are needed for a few rows to train on"
        raise BoomspecError(f"--data: {message}", hint="give more text")
    parameters = total_parameters(facts.tensors(range(facts.count), tied=facts.tied))
    rate = on.cpus * _CPU_RATE
    # Of a training 2 operations a parameter of the teacher, and 6 of a student that has half of them and some.
    most = int(_NIGHT * rate / (6 * parameters)) if on.gpu is None else _PUBLISHED
    tokens = min(text, most)
    batch = length
    while batch < _LARGEST_BATCH and tokens // (2 * batch) >= _FEWEST_STEPS:
        batch *= 2
    tokens = max(batch, _rounded(tokens))
    measured = _HELD_OUT
    if on.gpu is None:
        measured = max(8 * length, _rounded(int(_HOUR * rate / (2 * parameters * (facts.count // 2 + 1)))))
    there = min(whole - text, tokens // max(1, every - 1))
    room = (on.memory if on.device is None else on.device.memory) / 4
    of_row = length * (24 * facts.logits + 64 * facts.token_embedding.shape[-1] * facts.count)
    return _Numbers(
        positions=positions,
        text=text,
        every=every,
        length=length,
        tokens=tokens,
        batch=batch,
        steps=max(1, tokens // batch),
        micro_batch=max(1, min(8, batch // length, int(room / of_row))),
        measured=measured if measured < there else None,
        held_out=there,
        is_cut=tokens < 0.9 * text,
    )


def _rounded(count: int) -> int:
    """Two digits, downwards."""
    unit = int("1" + "0" * (len(str(count)) - 2)) if count >= 100 else 1
    return count // unit * unit


def _rows(
    model: str, facts: ModelFacts, files: Sequence[str], fields: dict[str, str], n: _Numbers, on: Here, *, chat: bool
) -> Iterator[tuple[str, str]]:
    """The lines of the spec, each with its comment."""
    bf16 = on.gpu is not None and (on.device is None or on.device.bf16 is not None)
    precision = "bf16" if bf16 else "fp32"
    about, count = short_count(n.text), facts.count
    yield "# How well does a student of half its teacher's layers grow back to it, with this text?", ""
    yield "#", ""
    yield "# Written for one teacher, one text and one machine: a comment says what a number follows from.", ""
    yield "# `boomspec plan` shows every size and what it costs.", ""
    yield "boomspec: 1", "version of the language"
    yield "name: fitted", ""
    yield "seed: 0", "of weights, data order and evaluation"
    yield "", ""
    yield "teacher:", ""
    yield f"  model: {scalar(model)}", f"{count} layers{', embedding and head tied' if facts.tied else ''}"
    yield "", ""
    yield "student:", ""
    yield from _student(facts)
    yield "", ""
    yield "data:", ""
    yield f"  files: {inline(list(files))}", "files, folders or patterns, relative to this spec"
    for name, value in fields.items():
        yield f"  {name}: {scalar(value)}", _WHY[name]
    if chat:
        yield "  loss_on: responses", "prompts are inputs only; all: they are learned, too"
    if n.is_cut:
        most = n.tokens + n.tokens // 20
        yield f"  max_tokens: {short_count(most)}", "so much is read: a little more than is trained on"
    room = f"the teacher has {n.positions:,} positions" if n.positions else "the teacher names no limit of positions"
    yield f"  sequence_length: {n.length}", f"{n.text // n.length:,} rows in the text; {room}"
    held = f"one document of {n.every} is set apart for evaluation: about {short_count(n.held_out)} tokens"
    yield f"  held_out: {{every: {n.every}}}", held
    yield "", ""
    yield "distill:", ""
    yield f"  tokens: {short_count(n.tokens)}", _why_tokens(n, about, on)
    rows = "one row" if n.batch == n.length else f"{n.batch // n.length} rows"
    yield f"  batch_tokens: {n.batch}", f"{rows}: {n.steps:,} optimiser steps, whatever the machine"
    yield "  optimizer: {lr: 3e-4}", "as published"
    yield "  schedule: {kind: cosine, warmup: 5%}", ""
    yield "  losses:", "key = kind; leave out what is not wanted"
    yield "    cross_entropy: {weight: 1.0}", ""
    yield "    kl: {weight: 0.1, temperature: 1.0}", ""
    yield "    hidden_cosine: {weight: 2.0}", ""
    yield f"  precision: {precision}", "a CPU is no faster in bf16" if on.gpu is None else f"on {on.gpu}"
    yield "", ""
    yield "interpolate:", ""
    yield "  order: last_to_first", "or first_to_last, a list of blocks, or {search: klpatch}"
    yield "  sizes: all", "or some: [80%, 30 layers]"
    yield "", ""
    yield "evaluate:", ""
    if n.measured is None:
        yield "  held_out: {}", "loss, perplexity and bits per byte of all of it"
    else:
        why = "an hour on these CPUs for all sizes" if on.gpu is None else "enough for three digits of a loss"
        yield f"  held_out: {{max_tokens: {short_count(n.measured)}}}", why
    yield f"  precision: {precision}", ""
    yield "", ""
    yield "baselines: [naive_pruning]", "also random_init, standard_distillation, shortgpt, laco"
    yield "", ""
    yield from _execution(n, on)


_WHY = {
    "format": "which the names of the files do not say",
    "text_field": "the field that holds the text",
    "messages": "conversations, which the teacher's chat template renders",
    "tools": "their tools; a row may have none",
    "prompt": "what a user says; the teacher's chat template renders both",
    "response": "the assistant's answer to it",
}


def _student(facts: ModelFacts) -> Iterator[tuple[str, str]]:
    if facts.count < 4:
        kept = [0] if facts.count == 2 else [0, 2]
        yield f"  keep: {inline(kept)}", f"of {facts.count} layers"
        if facts.tied and facts.count == 2:
            yield "  train_embedding: false", "embedding and head stay the teacher's, so every size stays tied"
        return
    kept_count = len(KeepRule(every=2, first=1, last=1).kept(facts.count))
    why = "with the last layer every size stays tied" if facts.tied else "both ends, and every second between"
    yield "  keep: {every: 2, first: 1, last: 1}", f"{kept_count} of {facts.count} layers; {why}"


def _why_tokens(n: _Numbers, about: str, on: Here) -> str:
    if not n.is_cut:
        return f"once through the text, which is about {about} tokens (by its bytes)"
    limit = f"about a night on {on.cpus} CPU cores" if on.gpu is None else "as published"
    return f"{limit}; the text is about {about} tokens (by its bytes)"


def _execution(n: _Numbers, on: Here) -> Iterator[tuple[str, str]]:
    yield "execution:", "where and how fast; never part of a result's identity"
    if on.gpu is None:
        memory = f"{on.cpus} CPU cores and {shown_bytes(on.memory)} of memory are here; with a GPU: gpus: 1"
        yield f"  distill: {{cpus: {on.cpus}, micro_batch: {n.micro_batch}}}", memory
        yield f"  evaluate: {{cpus: {max(1, on.cpus // 2)}}}", "two models are measured at a time" * (on.cpus > 1)
        return
    if on.device is not None:
        yield f"  device: {on.device.name}", f"{on.gpu} is here"
    cpus = max(1, min(8, on.cpus))
    yield f"  distill: {{gpus: 1, cpus: {cpus}, micro_batch: {n.micro_batch}}}", "rows that its memory holds at once"
    yield f"  evaluate: {{gpus: 1, cpus: {max(1, cpus // 2)}, batch_size: 16}}", ""
