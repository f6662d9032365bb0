"""Folders of models of which nothing but files, names and shapes is looked at."""

import json
import math
from pathlib import Path

from boomspec.models.checkpoint import encode_header
from boomspec.models.folder import SINGLE

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


def llama(folder: Path, *, layers: int) -> Path:
    """A Llama of the names that it always has; its weights are zeros."""
    width, inner, rows = 8, 16, 32
    square = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (width, width) for name in square}
    shapes |= {"mlp.gate_proj.weight": (inner, width), "mlp.up_proj.weight": (inner, width)}
    shapes |= {"mlp.down_proj.weight": (width, inner)}
    shapes |= {f"{name}.weight": (width,) for name in ("input_layernorm", "post_attention_layernorm")}
    every = {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in shapes.items()}
    every |= {
        "model.embed_tokens.weight": (rows, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (rows, width),
    }
    entries, end = {}, 0
    for name, shape in every.items():
        start, end = end, end + 4 * math.prod(shape)
        entries[name] = ("F32", shape, start, end)
    folder.mkdir(parents=True)
    (folder / SINGLE).write_bytes(encode_header(entries) + b"\0" * end)
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_attention_heads": 2, "vocab_size": rows}
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": layers, **sizes}))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}, "added_tokens": []}))
    return folder
