"""Save a tiny random model with the config keys and tensor names of a given model.

    outline (config, names, shapes) --tiny config--> random model --its class's names--> the names of the files

In the config widths, vocabularies and experts become tiny, the layers stay as they are. The name of a number says what
it is; those that belong together (hidden size = heads x head size) are given sizes that fit together in every family
that follows the names' convention; who does not says so in its row of `boomspec.models.families`.
"""

import json
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from boomspec.core.errors import BoomspecError
from boomspec.core.tasks import Outline
from boomspec.models.checkpoint import TensorEntry, checkpoint_files
from boomspec.models.code import CONFIGS, code_files
from boomspec.models.families import row_of
from boomspec.models.folder import SINGLE
from boomspec.models.outline import config_of, tensors_of
from runners.modeling.foreign_code import prepare_custom_code

Config = dict[str, Any]

VOCABULARY = 128
_HIDDEN, _HEADS, _HEAD, _RANK, _STATE, _POSITIONS, _WINDOW = 64, 4, 16, 16, 8, 128, 8

# The first pattern that fits the whole name says the largest value.
_LARGEST: tuple[tuple[str, int], ...] = (
    (r".*vocab_size.*_base", 256),
    (r"(unpadded_|text_|decoder_)?vocab_size|.*_vocab_size|vocab_size_.*|codebook_size|num_centroids", VOCABULARY),
    (r".*qk_head_dim", _HEAD * 2),
    (r"input_embedding_size|output_embedding_size|embedding_size", _HIDDEN // 2),
    (r"hidden_size_per_layer_input|ple_embed_dim", 16),
    (r"(moe|expert|shared_experts?|moe_shared_expert)_(ffn_)?(intermediate|hidden)_size|shared_intermediate_size", 32),
    (r".*intermediate_size.*|.*ffn_dim|.*ffn_hidden_size|feed_forward_size|mlp_dim", 96),
    (r"n_inner|d_ff|dff|dim_ff|d_inner", 96),
    (r"mamba_d_ssm|attention_hidden_size", _HIDDEN * 2),
    (r"hidden_size.*|d_model|n_embd|emb_dim|embedding_dim|lru_width|word_embed_proj_dim|.*_hidden_size", _HIDDEN),
    (r"(projector_|adapter_)?(in|input|out|output)_(dim|size)|out_hidden_size|vision_output_dim", _HIDDEN),
    (r"(mamba_n_heads|mamba_num_heads|n_mamba_heads)", 8),
    (r"(.*_)?(num|n)_(attention_)?heads?(_per_layer)?|(.*_)?attention_heads|(.*_)?query_groups", _HEADS),
    (r"num_kv_heads|kv_n_heads|.*key_value_heads", _HEADS),
    (r".*lora_rank|.*_rank|.*lowrank|time_step_rank|mamba_dt_rank", _RANK),
    (r"(.*_)?(head_dim|head_size|headdim|d_head|dim_head|kv_channels|d_kv|head_width)|rotary_dim", _HEAD),
    (r"(mamba_)?d_state|ssm_state_size|state_size", _STATE),
    (r"(.*_)?n_?groups|mamba_ngroups|o_groups", 2),
    (r"(.*_)?chunk_(size|length)|block_size|index_block_size", _WINDOW),
    (r"sliding_window(_size)?|local_attention(_window_len)?|(attention_|keep_)?window_size", _WINDOW),
    (r"(num_|n_|moe_num_)?(local_|routed_)?experts", 4),
    (r"zero_expert_num", 2),
    (r"num_experts_per_tok(en)?|moe_(top)?_?k|experts_per_token", 2),
    (r"n_group|num_expert_group|topk_group|n_groups", 2),
    (r"index_topk(_blocks)?", 4),
    (r"max_(position_embeddings|seq_len|target_positions)|n_positions|n_ctx|(context|model_max)_length", _POSITIONS),
    (r"log_scaling_n_floor|floor_scale|rel_extent", 16),
    (r"patch_size", 4),
    (r"image_size", 16),
    (r"depth|conf_num_hidden_layers|num_blocks|num_global_layers", 2),
)  # fmt: skip
_TOKEN = re.compile(r".*token_(id|index)|.*_idx$")


def tiny(config: Config, full: Config | None = None) -> Config:
    """The tiny config of `config`. `full`: with all that its class adds; what of that shrinks is in the result, too."""
    return {**_shrunk(config, full or {}), **row_of(config.get("model_type")).tiny}


def _shrunk(config: Config, full: Config) -> Config:
    everything: Config = {**full, **config}
    result: Config = {}
    for key, value in everything.items():
        smaller: Any = value
        if isinstance(value, dict) and key not in ("id2label", "label2id"):
            own, of_class = (found if isinstance(found := of.get(key), dict) else {} for of in (config, full))
            smaller = _shrunk(own, of_class)
        elif isinstance(value, list) and key == "mrope_section":  # as many parts, which together are half of a head
            part = _HEAD // 2 // len(value)
            smaller = [_HEAD // 2 - part * (len(value) - 1), *[part] * (len(value) - 1)]
        elif isinstance(value, list) and key in ("short_factor", "long_factor"):
            smaller = value[: _HEAD // 2]
        elif isinstance(value, list) and all(type(entry) is int for entry in value):
            smaller = [_number(key, entry, everything) for entry in value]
        elif type(value) is int:
            smaller = _number(key, value, everything)
        if key in config or smaller != value:
            result[key] = smaller
    return result


def _number(key: str, value: int, config: Config) -> int:
    if _TOKEN.fullmatch(key):
        return value if value < VOCABULARY else value % 89 + 16
    largest = next((largest for pattern, largest in _LARGEST if re.fullmatch(pattern, key)), None)
    if largest is None or ("key_value" not in key and "kv_" not in key):
        return value if largest is None or value <= 0 else min(value, largest)
    heads = next((config[k] for k in ("num_attention_heads", "n_heads", "n_head", "num_heads") if k in config), value)
    return 1 if value == 1 else min(value, _HEADS) if value == heads else 2


_LEFT_OUT = ("quantization_config", "torch_dtype", "dtype")  # of a tiny model in fp32
_TYPES = {"I64": torch.int64, "I32": torch.int32, "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8}


class NotTinyError(BoomspecError):
    """No tiny model of an architecture could be built."""


def lay_out(outline: Outline, folder: Path, *, seed: int, own: Path | None = None, code: Collection[str] = ()) -> None:
    """Write an outline's tiny model into `folder`; NotTinyError where its class refuses the sizes. `own`: its code."""
    folder.mkdir(parents=True)
    for name, file in code_files(own).items() if own is not None else ():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / name)
    config = {key: value for key, value in config_of(outline.config).items() if key not in _LEFT_OUT}
    full = read_config(config, folder, code)
    small = tiny(config, json.loads(full.to_json_string(use_diff=False)))
    try:
        trusts = prepare_custom_code(folder, "model", code)
        model = random_model(read_config(small, folder, code), seed=seed, code=trusts)
        model.save_pretrained(folder / "saved")
    except Exception as error:  # each class has its own sizes that do not go together, and exceptions for it
        raise NotTinyError(f"a tiny {config.get('model_type')} cannot be built: {error}") from error
    saved: dict[str, Tensor] = {}
    for file in checkpoint_files(folder / "saved"):
        saved |= load_file(file)
    shutil.rmtree(folder / "saved")
    named = _named(saved, tensors_of(outline.tensors), model, outline.tied)
    tensors = {name: tensor.contiguous() for name, tensor in named.items()}
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def read_config(config: Config, folder: Path, code: Collection[str]) -> Any:
    """transformers' config object of a config, which is then in the folder. Raises BoomspecError for one it refuses."""
    (folder / CONFIGS["model"]).write_text(json.dumps(config, indent=1), encoding="utf-8")
    trusts = prepare_custom_code(folder, "model", code)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trusts)
    except Exception as error:  # each config class has its own ideas of a wrong value, and of the exception for it
        raise BoomspecError(f"config.json: transformers refuses it: {error}") from error


def auto_class(config: Any) -> Any:
    masked = any("MaskedLM" in str(name) for name in getattr(config, "architectures", None) or ())
    return AutoModelForMaskedLM if masked else AutoModelForCausalLM


def random_model(config: Any, *, seed: int, code: bool = False) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto_class(config).from_config(config, dtype=torch.float32, trust_remote_code=code).eval()
    randomise(model, seed=seed)
    return model


@torch.no_grad()
def randomise(model: Any, *, seed: int) -> None:
    """Other weights, large enough that every layer shows in the logits, and none of which is that of another seed."""
    random = torch.Generator().manual_seed(seed)
    for parameter in filter(torch.is_floating_point, model.parameters()):
        drawn = torch.randn(parameter.shape, generator=random)
        if parameter.ndim < 2:  # norms, biases, gates: around what they begin as
            parameter.copy_(torch.nan_to_num(parameter).clamp(-4, 4) + drawn * 0.2)
        else:
            parameter.copy_(drawn * (0.3 if parameter.shape[-1] < 100 else 0.15))


def _named(saved: Mapping[str, Tensor], real: Mapping[str, TensorEntry], model: Any, tied: bool) -> dict[str, Tensor]:
    """The tiny tensors under the names of the real files; small ones for what the class drops, such as old masks."""
    row, prefix = row_of(model.config.model_type), f"{model.base_model_prefix}."
    result: dict[str, Tensor] = {}
    others: list[TensorEntry] = []
    sizes: dict[int, int] = {}
    for name, entry in real.items():
        bare = name.removeprefix("_orig_mod.")
        canonical = row.canonical_name(bare) or name
        spellings = (name, bare, canonical, f"{prefix}{bare}", bare.removeprefix(prefix))
        found = next((saved[spelling] for spelling in spellings if spelling in saved), None)
        if found is None:
            others.append(entry)
            continue
        result[name] = found.clone()
        if found.ndim == len(entry.shape):
            sizes.update(zip(entry.shape, found.shape, strict=True))
    embedding = model.get_input_embeddings().weight
    for entry in others:
        shape = [sizes.get(size, min(size, 8)) for size in entry.shape]
        if shape == list(embedding.shape):  # a head that is stored although the class ties it
            result[entry.name] = embedding.detach().clone() * (1 if tied else -1)
        elif entry.dtype in _TYPES:
            result[entry.name] = torch.zeros(shape, dtype=_TYPES[entry.dtype])
        else:
            result[entry.name] = torch.full(shape, 0.1)
    return result
