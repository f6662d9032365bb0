"""A tiny teacher that brings its own code along, as models of the hub do: model, config and tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.runners import tiny

_MODEL = """\
from pathlib import Path

from transformers import LlamaForCausalLM, LlamaModel

from .configuration_quiet import QuietConfig
from .parts import GAIN, told

told("model")


class QuietModel(LlamaModel):
    CONFIG_CLASS

    def forward(self, *arguments, **options):
        found = super().forward(*arguments, **options)
        found.last_hidden_state = found.last_hidden_state * GAIN
        return found


class QuietForCausalLM(LlamaForCausalLM):
    CONFIG_CLASS

    def __init__(self, config):
        super().__init__(config)
        self.model = QuietModel(config)
        self.post_init()
"""
_CONFIG = """\
from transformers import LlamaConfig

from .parts import told

told("config")


class QuietConfig(LlamaConfig):
    model_type = "quiet"
"""
_TOKENIZER = """\
from transformers import PreTrainedTokenizerFast

from .parts import told

told("tokenizer")


class QuietTokenizer(PreTrainedTokenizerFast):
    pass
"""
_PARTS = """\
GAIN = 0.5


def told(what):
    with open({marker!r}, "a") as file:
        file.write(what + "\\n")
"""
MAP = {"AutoConfig": "configuration_quiet.QuietConfig", "AutoModelForCausalLM": "modeling_quiet.QuietForCausalLM"}


def write(
    folder: Path,
    *,
    native: bool = False,
    layers: int = 4,
    tokenizer: bool = True,
    seed: int = 0,
    marker: Path | None = None,
) -> Path:
    """The teacher's folder. Returns the file that its code writes a line into whenever it is imported.

    native: transformers has a class for it, too. tokenizer: it brings code for that, too.
    """
    marker = marker or folder.parent / f"{folder.name}-code-has-run"
    model = tiny.model(layers=layers, seed=seed, vocab_size=300)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    mapped = {"AutoModelForCausalLM": MAP["AutoModelForCausalLM"]} if native else MAP
    config |= {"auto_map": mapped} | ({} if native else {"model_type": "quiet", "architectures": ["QuietForCausalLM"]})
    (folder / "config.json").write_text(json.dumps(config))
    own = _MODEL.replace("CONFIG_CLASS", "pass" if native else "config_class = QuietConfig")
    for name, text in {"modeling": own, "configuration": _CONFIG, "tokenization": _TOKENIZER}.items():
        (folder / f"{name}_quiet.py").write_text(text)
    (folder / "parts.py").write_text(_PARTS.format(marker=str(marker)))
    write_tokenizer(folder, brings_code=tokenizer)
    return marker


def write_tokenizer(folder: Path, *, brings_code: bool) -> None:
    """Bytes as tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE({"<eos>": 0, **{byte: i + 1 for i, byte in enumerate(alphabet)}}, []))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>").save_pretrained(folder)
    if brings_code:
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text())
        auto_map = {"AutoTokenizer": [None, "tokenization_quiet.QuietTokenizer"]}
        path.write_text(json.dumps(config | {"tokenizer_class": "QuietTokenizer", "auto_map": auto_map}))


def without_a_weight(folder: Path) -> None:
    """Take one weight of the last layer away from a model folder."""
    from safetensors.torch import load_file

    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.3.mlp.up_proj.weight"]
    save_file({name: torch.clone(weight) for name, weight in weights.items()}, file, metadata={"format": "pt"})
