"""Write one size as a GGUF file, as llama.cpp's own converter would: names, layout, types and metadata.

    names    gguf's table from the tensors of transformers to those of ggml (`gguf.get_tensor_name_map`)
    layout   llama rotates neighbouring pairs where transformers rotates halves: rows of query and key change places;
             GPT-2 holds its matrices transposed
    types    of a tensor in f16, bf16 or q8_0: vectors and position embeddings stay f32

Tensors are read from safetensors, changed and written one after the other: one is in memory at a time. What llama.cpp
takes for granted of an architecture is checked in the config, and anything else refused.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

import gguf
import numpy as np
from numpy.typing import NDArray

from boomspec.core.errors import BoomspecError
from boomspec.models.checkpoint import TensorEntry
from boomspec.models.fit import Made
from runners.assembly.checkpoint_writer import convert
from runners.assembly.gguf_vocabulary import Vocabulary
from runners.modeling.model_config import complete

FileType = Literal["f32", "f16", "bf16", "q8_0"]
FILE_TYPES: Final[tuple[str, ...]] = get_args(FileType)
_STORED: Final[dict[str, FileType]] = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_OF_FILE = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
_OF_TENSOR = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}
_BLOCK = 32  # values of a row that share a scale in q8_0
Values = NDArray[np.float32]
Config = Mapping[str, Any]


@dataclass(frozen=True)
class About:
    """What a file says of itself beside its model."""

    name: str
    parameters: int
    base_model: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    languages: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Architecture:
    """How one family of transformers becomes one of ggml."""

    arch: str
    heads: str = "num_attention_heads"
    layers: str = "num_hidden_layers"
    hidden: str = "hidden_size"
    inner: str = "intermediate_size"
    context: str = "max_position_embeddings"
    eps: str = "rms_norm_eps"
    rope: bool = True
    permuted: bool = False  # rows of query and key
    transposed: tuple[str, ...] = ()  # ends of names of matrices
    wants: Mapping[str, tuple[Any, ...]] = field(
        default_factory=dict
    )  # what its graph takes for granted, by config key


_GATED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
}
_WINDOWS: dict[str, tuple[Any, ...]] = {"use_sliding_window": (False, None)}
_LLAMA = Architecture("llama", permuted=True, wants=_GATED)
ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Architecture("qwen2", wants={"hidden_act": ("silu",), **_WINDOWS}),
    "qwen3": Architecture("qwen3", wants={**_GATED, **_WINDOWS}),
    "starcoder2": Architecture(
        "starcoder2", eps="norm_epsilon", wants={"hidden_act": ("gelu_pytorch_tanh",), "use_bias": (True,)}
    ),
    "gpt2": Architecture(
        "gpt2",
        heads="n_head",
        layers="n_layer",
        hidden="n_embd",
        inner="n_inner",
        context="n_positions",
        eps="layer_norm_epsilon",
        rope=False,
        transposed=("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"),
        wants={
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
    ),
}


def check_known(model_type: str, what: str) -> Architecture:
    """How a family becomes GGUF. Raises BoomspecError, which names what is known, for another one."""
    if (known := ARCHITECTURES.get(model_type)) is None:
        message = f"{what}: a {model_type} model is not written as GGUF here: nothing has shown that it comes out right"
        others = "known are " + ", ".join(ARCHITECTURES)
        hint = f"{others}; export without --gguf, and convert the folder with llama.cpp's convert_hf_to_gguf.py"
        raise BoomspecError(message, hint=hint)
    return known


def file_type(asked: str | None, dtype: str) -> FileType:
    """What was asked for; else as the weights are stored."""
    found = asked if asked is not None else _STORED.get(dtype)
    if found not in FILE_TYPES:
        raise BoomspecError(
            f"weights that are stored as {dtype}: as which type?", hint=f"--gguf {'|'.join(FILE_TYPES)}"
        )
    return found  # type: ignore[return-value]  # one of them


def write_gguf(
    made: Sequence[Made], config: Config, vocabulary: Vocabulary, path: Path, *, about: About, kind: FileType
) -> list[str]:
    """Write a model, given by its tensors and its config, into a file. Returns what people should know of it.

    Raises BoomspecError, before anything is written, for what the file could not say.
    """
    model_type = str(config.get("model_type"))
    known = check_known(model_type, str(path))
    config = complete(dict(config)) or config
    _check(known, config, model_type)
    notes = list(vocabulary.notes)
    context = config[known.context]
    if (window := _window(config)) is not None and window < context:
        why = f"further on the model looks at the last {window} alone, and llama.cpp at all"
        notes.append(f"{path.name}: its context is {window} tokens, not {context}: {why}")
        context = window
    writer = gguf.GGUFWriter(path, known.arch)
    with closing(writer):
        _write(writer, made, vocabulary, known, config, about=about, context=context, kind=kind)
    return notes


def _write(
    writer: gguf.GGUFWriter,
    made: Sequence[Made],
    vocabulary: Vocabulary,
    known: Architecture,
    config: Config,
    *,
    about: About,
    context: int,
    kind: FileType,
) -> None:
    _describe(writer, about)
    _hyperparameters(writer, known, config, context)
    writer.add_file_type(_OF_FILE[kind])
    names = gguf.get_tensor_name_map(_arch(known), config[known.layers])
    extra = _rope_factors(config) if known.rope else None
    planned = [(_name(names, tensor.name), tensor, source) for tensor, source in made]
    vocabulary.write(writer, next(tensor.shape[0] for name, tensor, _ in planned if name == "token_embd.weight"))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if extra is not None:
        writer.add_tensor_info("rope_freqs.weight", extra.shape, extra.dtype, extra.nbytes)
    for name, tensor, _ in planned:
        shape = _changed_shape(known, tensor)
        stored = _type_of(name, shape, kind)
        size = gguf.quant_shape_to_byte_shape(shape, stored) if stored != gguf.GGMLQuantizationType.F32 else shape
        dtype: Any = np.float32 if stored == gguf.GGMLQuantizationType.F32 else np.uint8
        writer.add_tensor_info(
            name, size, np.dtype(dtype), math.prod(size) * np.dtype(dtype).itemsize, raw_dtype=stored
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if extra is not None:
        writer.write_tensor_data(extra)
    for name, tensor, source in planned:
        values = _changed(known, config, tensor, _values(tensor, source))
        writer.write_tensor_data(_encoded(name, values, _type_of(name, values.shape, kind)))


def _arch(known: Architecture) -> gguf.MODEL_ARCH:
    return next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == known.arch)


def _name(names: gguf.TensorNameMap, name: str) -> str:
    if (found := names.get_name(name, try_suffixes=(".weight", ".bias"))) is None:
        message = f"'{name}' has no place in a GGUF file of this architecture"
        raise BoomspecError(message, hint="export without --gguf")
    return found


def _check(known: Architecture, config: Config, model_type: str) -> None:
    for key, allowed in known.wants.items():
        if (value := config.get(key)) not in allowed:
            shown = " or ".join(str(one) for one in allowed if one is not None)
            message = f"config.json: {key} is {value}, and llama.cpp's {known.arch} takes {shown} for granted"
            raise BoomspecError(message, hint="export without --gguf")
    layers = config.get("layer_types")
    if layers and set(layers) - {"full_attention"} and model_type.startswith("qwen"):
        message = (
            f"config.json: layer_types has {', '.join(sorted(set(layers)))}: llama.cpp's {known.arch} has one kind"
        )
        raise BoomspecError(message, hint="export without --gguf")
    scaling = _rope(config).get("rope_type", "default")
    if known.rope and scaling not in ("default", "linear", "llama3"):
        message = f"config.json: rotary embeddings of type {scaling} are not written as GGUF here"
        raise BoomspecError(message, hint="known are default, linear and llama3; export without --gguf")


def _window(config: Config) -> int | None:
    """How many tokens back each layer looks, where that is limited."""
    return config.get("sliding_window") if config.get("use_sliding_window", True) else None


def _rope(config: Config) -> Mapping[str, Any]:
    found: Mapping[str, Any] = config.get("rope_parameters") or {}
    return found


def _hyperparameters(writer: gguf.GGUFWriter, known: Architecture, config: Config, context: int) -> None:
    hidden, heads = config[known.hidden], config[known.heads]
    head = config.get("head_dim") or hidden // heads
    writer.add_block_count(config[known.layers])
    writer.add_context_length(context)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(config[known.inner] or 4 * hidden)
    writer.add_head_count(heads)
    if (shared := config.get("num_key_value_heads")) is not None:
        writer.add_head_count_kv(shared)
    if known.rope:
        writer.add_rope_freq_base(_rope(config)["rope_theta"])
        if _rope(config).get("rope_type") == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(_rope(config)["factor"])
    if known.eps.startswith("rms"):
        writer.add_layer_norm_rms_eps(config[known.eps])
    else:
        writer.add_layer_norm_eps(config[known.eps])
    if known.permuted:
        writer.add_vocab_size(config["vocab_size"])
        writer.add_rope_dimension_count(head)
    if head * heads != hidden or known.arch == "qwen3":
        writer.add_key_length(head)
        writer.add_value_length(head)


def _rope_factors(config: Config) -> Values | None:
    """By what each frequency theta^(-2i/d) of llama3's rotary embeddings is divided, shape (head_dim / 2,).

    None where they are not of that type.
    """
    rope = _rope(config)
    if rope.get("rope_type") != "llama3":
        return None
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    frequencies = rope["rope_theta"] ** -(np.arange(0, head, 2, dtype=np.float64) / head)
    length = rope["original_max_position_embeddings"]
    low, high, factor = (rope[key] for key in ("low_freq_factor", "high_freq_factor", "factor"))
    turns = length * frequencies / (2 * math.pi)  # of each frequency over the original context
    smooth = np.clip((turns - low) / (high - low), 0, 1)  # 0: a long wave, which is stretched; 1: a short one
    factors: Values = (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
    return factors


def _values(tensor: TensorEntry, source: TensorEntry | None) -> Values:
    """The values of a tensor of the size, in float32: what the exported folder would hold."""
    if source is None or source.file is None:
        return np.zeros(tensor.shape, np.float32)
    with source.file.open("rb") as stream:
        stream.seek(source.start)
        data = stream.read(source.end - source.start)
    if source.dtype != tensor.dtype:
        data = convert(data, source.dtype, tensor.dtype)
    if tensor.dtype not in (*_STORED, "F64"):
        raise BoomspecError(f"'{tensor.name}' is stored as {tensor.dtype}, which is not written as GGUF here")
    floats = data if tensor.dtype == "F32" else convert(data, tensor.dtype, "F32")
    return np.frombuffer(floats, "<f4").reshape(tensor.shape)


def _changed_shape(known: Architecture, tensor: TensorEntry) -> tuple[int, ...]:
    return tensor.shape[::-1] if tensor.name.endswith(known.transposed) else tensor.shape


def _changed(known: Architecture, config: Config, tensor: TensorEntry, values: Values) -> Values:
    """A tensor as ggml has it, where transformers has (out, in) or, in GPT-2, (in, out)."""
    if tensor.name.endswith(known.transposed):
        return np.ascontiguousarray(values.T)
    if known.permuted and tensor.name.endswith("self_attn.q_proj.weight"):
        return _neighbours(values, config["num_attention_heads"])
    if known.permuted and tensor.name.endswith("self_attn.k_proj.weight"):
        return _neighbours(values, config["num_key_value_heads"])
    return values


def _neighbours(values: Values, heads: int) -> Values:
    """Rows of each head, (0 .. d/2-1, d/2 .. d-1) that are rotated in pairs (i, i + d/2), as pairs (2i, 2i + 1)."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def _type_of(name: str, shape: Sequence[int], kind: FileType) -> gguf.GGMLQuantizationType:
    """How a tensor is stored in a file of this kind."""
    if len(shape) < 2 or name.startswith("position_embd"):
        return gguf.GGMLQuantizationType.F32
    if kind == "q8_0" and shape[-1] % _BLOCK:
        return gguf.GGMLQuantizationType.F16
    return _OF_TENSOR[kind]


def _encoded(name: str, values: Values, stored: gguf.GGMLQuantizationType) -> NDArray[Any]:
    if stored == gguf.GGMLQuantizationType.F32:
        return values
    if stored == gguf.GGMLQuantizationType.F16:
        with np.errstate(over="ignore"):
            narrow = values.astype(np.float16)
        if bool(np.any(np.isinf(narrow) & np.isfinite(values))):
            raise BoomspecError(f"'{name}': a weight is too large for f16", hint="--gguf bf16, or f32")
        return narrow.view(np.uint8)
    return gguf.quants.quantize(values, stored).view(np.uint8)


def _describe(writer: gguf.GGUFWriter, about: About) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(about.name)
    writer.add_size_label(gguf.size_label(about.parameters, 0, 0, 0))
    if about.license is not None:
        writer.add_license(about.license)
    if about.license_name is not None:
        writer.add_license_name(about.license_name)
    if about.license_link is not None:
        writer.add_license_link(about.license_link)
    if about.base_model is not None:
        writer.add_base_model_count(1)
        organization, _, name = about.base_model.rpartition("/")
        writer.add_base_model_name(0, name)
        if organization:
            writer.add_base_model_organization(0, organization)
            writer.add_base_model_repo_url(0, f"https://huggingface.co/{about.base_model}")
    if about.tags:
        writer.add_tags(list(about.tags))
    if about.languages:
        writer.add_languages(list(about.languages))
