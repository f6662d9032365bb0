"""Folders of models of which nothing but files, names and shapes is looked at."""

import json
import math
from pathlib import Path

from boomspec.models.checkpoint import encode_header
from boomspec.models.files import SINGLE

CONFIG = {"model_type": "llama", "num_hidden_layers": 2, "vocab_size": 8, "hidden_size": 4}
TENSORS = {
    "model.embed_tokens.weight": (8, 4),
    "model.layers.0.mlp.up_proj.weight": (4, 4),
    "model.layers.1.mlp.up_proj.weight": (4, 4),
    "model.norm.weight": (4,),
    "lm_head.weight": (8, 4),
}


def weights(file: Path, names: list[str] | None = None) -> None:
    entries, end = {}, 0
    for name in names or TENSORS:
        start, end = end, end + 4 * math.prod(TENSORS[name])
        entries[name] = ("F32", TENSORS[name], start, end)
    file.write_bytes(encode_header(entries) + b"\0" * end)


def model(folder: Path, **config: object) -> Path:
    """A model of two layers of which nothing but names and shapes is looked at."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}, "added_tokens": []}))
    weights(folder / SINGLE)
    return folder
