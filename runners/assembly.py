"""Write the Hugging Face folder of a layer plan straight from safetensors files.

The new header is computed from the sources' headers and the tensors' bytes are copied range by range:
no tensor is loaded, no model is built, memory stays constant whatever the model's size.

Ownership (arXiv 2510.05064): the embedding comes from the owner of the FIRST layer, final norm and head
from the owner of the LAST one. An untied result of a tied model gets its head written out, from that
owner's embedding. Every layer keeps the per-layer attributes of the config of the layer it came from.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boomspec.checkpoint import INDEX, SINGLE, TensorEntry, encode_header
from boomspec.errors import BoomspecError
from boomspec.facts import LAYER_COUNTS, ModelFacts, read_facts

_TIED_HEAD = "lm_head.weight"  # the name transformers gives the head of a model that can be tied
_TRAVELS = re.compile(
    r"(generation_config\.json|tokenizer.*|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt"
    r"|chat_template.*|.*\.model)"
)
_SHARD_BYTES = 5 * 10**9
_CHUNK = 8 * 2**20


@dataclass(frozen=True)
class _Piece:
    """One tensor of the result: its new name and where its bytes lie."""

    name: str
    entry: TensorEntry


def assemble(
    sources: Mapping[str, Path], plan: Sequence[str], target: Path, *, tied: bool, shard_bytes: int = _SHARD_BYTES
) -> None:
    """Write the model of `plan` ("t4": layer 4 of sources["t"]) into the folder `target`.

    Tokenizer and generation config come from the teacher "t" where there is one. Raises BoomspecError, before
    anything is written, where the sources do not fit together.
    """
    facts = {owner: read_facts(folder) for owner, folder in sources.items()}
    _check(facts, plan, tied)
    pieces = _pieces(facts, plan, tied)
    base = "t" if "t" in sources else plan[0][0]
    target.mkdir(parents=True, exist_ok=True)
    config = _config(facts, plan, tied, base)
    (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for file in sorted(sources[base].iterdir()):
        if _TRAVELS.fullmatch(file.name) and file.is_file():
            shutil.copyfile(file, target / file.name)
    _write(pieces, target, shard_bytes)


def _check(facts: Mapping[str, ModelFacts], plan: Sequence[str], tied: bool) -> None:
    for layer in plan:
        count = facts[layer[0]].count
        if int(layer[1:]) >= count:
            raise BoomspecError(f"layer plan: {layer} does not exist: that model has {count} layers")
    reference = next(iter(facts.values()))
    for other in facts.values():
        if (other.model_type, other.prefix) != (reference.model_type, reference.prefix):
            raise BoomspecError(f"a {reference.model_type} and a {other.model_type} model cannot be interpolated")
        if other.dtype != reference.dtype:
            raise BoomspecError(f"the models are stored in different types: {reference.dtype} and {other.dtype}")
        if other.token_embedding.shape != reference.token_embedding.shape:
            shapes = f"{reference.token_embedding.shape} and {other.token_embedding.shape}"
            raise BoomspecError(f"the models' embeddings differ in shape: {shapes}")
    if tied and not all(model.tied for model in facts.values()):
        raise BoomspecError("a tied model cannot be made of models whose head is not tied")


def _pieces(facts: Mapping[str, ModelFacts], plan: Sequence[str], tied: bool) -> list[_Piece]:
    first, last = facts[plan[0][0]], facts[plan[-1][0]]
    pieces = [_Piece(entry.name, entry) for entry in first.embedding]
    for i, layer in enumerate(plan):
        model, index = facts[layer[0]], int(layer[1:])
        start = len(f"{model.prefix}.{index}." if model.prefix else f"{index}.")
        prefix = f"{model.prefix}.{i}." if model.prefix else f"{i}."
        pieces += [_Piece(prefix + entry.name[start:], entry) for entry in model.layers[index]]
    pieces += [_Piece(entry.name, entry) for entry in last.norm]
    if not tied:
        pieces += [_Piece(_TIED_HEAD, last.token_embedding)] if last.tied else [_Piece(e.name, e) for e in last.head]
    return pieces


def _config(facts: Mapping[str, ModelFacts], plan: Sequence[str], tied: bool, base: str) -> dict[str, Any]:
    """The base model's config with the layer count, the tying and every per-layer list made right."""
    config = dict(facts[base].config)
    for key, value in config.items():
        if key in LAYER_COUNTS:
            config[key] = len(plan)
        elif isinstance(value, list) and len(value) == facts[base].count:
            config[key] = [facts[layer[0]].config[key][int(layer[1:])] for layer in plan]
    config["tie_word_embeddings"] = tied
    return config


def _write(pieces: Sequence[_Piece], target: Path, shard_bytes: int) -> None:
    shards: list[list[_Piece]] = [[]]
    room = shard_bytes
    for piece in pieces:
        if shards[-1] and piece.entry.bytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(piece)
        room -= piece.entry.bytes
    if len(shards) == 1:
        _write_file(shards[0], target / SINGLE)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(shard, target / name)
        weight_map |= {piece.name: name for piece in shard}
    total = sum(piece.entry.bytes for piece in pieces)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (target / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_file(pieces: Sequence[_Piece], path: Path) -> None:
    header, offset = {}, 0
    for piece in pieces:
        header[piece.name] = (piece.entry.dtype, piece.entry.shape, offset, offset + piece.entry.bytes)
        offset += piece.entry.bytes
    handles: dict[Path, int] = {}
    try:
        with path.open("wb", buffering=0) as output:
            output.write(encode_header(header))
            for piece in pieces:
                file = piece.entry.file
                if file is None:
                    raise TypeError(f"tensor {piece.name} has no file")
                if file not in handles:
                    handles[file] = os.open(file, os.O_RDONLY)
                _copy(handles[file], output.fileno(), piece.entry.start, piece.entry.bytes)
    finally:
        for handle in handles.values():
            os.close(handle)


def _copy(source: int, target: int, start: int, count: int) -> None:
    """Append `count` bytes at `start` of `source` to `target`, inside the kernel where the system can."""
    end = start + count
    while start < end:
        try:
            copied = os.copy_file_range(source, target, end - start, start)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            copied = os.write(target, os.pread(source, min(_CHUNK, end - start), start))
        if copied == 0:
            raise BoomspecError("a checkpoint became shorter while it was read")
        start += copied
