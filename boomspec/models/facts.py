"""Read a model's layers, tensor shapes and dtypes from config.json and safetensors headers, without torch.

The repeated group `<prefix>.<i>.<rest>`, i = 0..N-1, IS the layer stack. Of the other tensors, what stands
in front of the stack (token and position embeddings) and what follows it (final norm, head) follows from
where they live and their shapes:

    <base>.<stack>.<i>.*        the layers; <base> is what is in front of the stack's own name
    outside <base>              the head ("lm_head.weight", "embed_out.weight")
    in <base>, one-dimensional  the final norm, unless its name says embedding
    in <base>, the rest         embeddings

<base> is the longest prefix that has a matrix beside the stack. What a family does otherwise is a row of `families`. A
model with other parts (an image encoder, a projector) is read as its text decoder alone, whose own config is an object
in config.json (`text_config`) and whose tensors are under a name of their own ("language_model.model.layers.0...").
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from boomspec.core.errors import BoomspecError
from boomspec.core.tasks import Architecture
from boomspec.models.checkpoint import TensorEntry, Tensors, read_checkpoint, same_bytes
from boomspec.models.code import DECODER_CONFIGS, is_native
from boomspec.models.families import NEXT_TOKENS_KEYS, NEXT_TOKENS_TENSOR, FamilyRules, renamed, row_of, unwrapped
from boomspec.models.folder import CONFIG, check_fetched, names_in, refusal

_LAYER = re.compile(r"^(?P<prefix>.*?)\.?(?<![^.])(?P<index>\d+)\.(?P<rest>.+)$")
Same = Callable[[TensorEntry, TensorEntry], bool | None]  # None where that is not known
Layers = tuple[tuple[TensorEntry, ...], ...]
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
# Where decoders are, each pattern with what stands there in a model of the decoder alone; the first that fits is taken.
_PART = r"^(model\.)?(language_model|text_model|llm)\."
DECODERS = ((rf"{_PART}lm_head\.", "lm_head."), (rf"{_PART}model\.", "model."), (_PART, "model."))
POSITIONS = ("max_position_embeddings", "n_positions")  # the key that says how many a model has
_TOGETHER = ("torch_dtype", "dtype")  # what the whole config may say for the decoder


@dataclass(frozen=True)
class ModelFacts:
    """Tensors of a decoder by place, under canonical names. `layers[i]` are those of layer i."""

    model_type: str
    prefix: str  # of the layer stack: "model.layers"
    layers: Layers
    embedding: tuple[TensorEntry, ...]
    norm: tuple[TensorEntry, ...]
    head: tuple[TensorEntry, ...]  # without what is tied to the embedding, so mostly empty in a tied model
    tied: bool
    config: Mapping[str, Any]
    left_out: tuple[TensorEntry, ...] = ()  # what the checkpoint holds beside the decoder: an image encoder
    believed: bool = False  # tied as far as some places show: head and embedding on the hub were not read whole
    partial: bool = False  # the config holds only some keys of its family: the model is read as one of another
    written: Mapping[str, Any] = field(default_factory=dict)  # the config as the file has it
    stored: tuple[TensorEntry, ...] = ()  # all that is in the file, under its own names

    @property
    def count(self) -> int:
        return len(self.layers)

    @cached_property
    def token_embedding(self) -> TensorEntry:
        """The matrix in front of the stack that has a row for each token."""
        return _token_embedding(self.embedding, self.config)

    @property
    def logits(self) -> int:
        """How many it has: the rows of its head, which may be more than its tokenizer has tokens."""
        projections = [tensor for tensor in self.head if len(tensor.shape) == 2] or [self.token_embedding]
        return projections[-1].shape[0]

    @cached_property
    def untied_head(self) -> tuple[TensorEntry, ...]:
        """The whole head; of a tied model, the one that it has when untied: with a copy of the embedding."""
        if not self.tied:
            return self.head
        present: dict[str | None, TensorEntry] = {None: self.token_embedding}
        present |= {tensor.name: tensor for tensor in self.head}
        copies = [(name, present.get(source)) for name, source in row_of(self.model_type).untied_head]
        return (*self.head, *(replace(tensor, name=name) for name, tensor in copies if tensor is not None))

    def tensors(self, layers: Sequence[int], *, tied: bool) -> list[TensorEntry]:
        """The tensors of a model made of these layers (repeats allowed); untied, its head is a copy of an embedding."""
        rest = [*self.embedding, *self.norm, *(self.head if tied else self.untied_head)]
        return [*rest, *(tensor for i in layers for tensor in self.layers[i])]

    @cached_property
    def dtype(self) -> str:
        """The safetensors dtype that most bytes are stored in."""
        totals: dict[str, int] = defaultdict(int)
        for tensor in self.tensors(range(self.count), tied=True):
            totals[tensor.dtype] += tensor.bytes
        return max(totals, key=lambda dtype: totals[dtype])


def positions_of(facts: ModelFacts) -> int | None:
    """How many positions a model has; None where its config does not say."""
    return next((facts.config[key] for key in POSITIONS if isinstance(facts.config.get(key), int)), None)


def total_parameters(tensors: Iterable[TensorEntry]) -> int:
    return sum(tensor.elements for tensor in tensors)


def total_bytes(tensors: Iterable[TensorEntry]) -> int:
    return sum(tensor.bytes for tensor in tensors)


def size_of(tensors: Sequence[TensorEntry]) -> tuple[int, int]:
    """Parameters and bytes."""
    return total_parameters(tensors), total_bytes(tensors)


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a model folder; numbers that JSON has not ("Infinity") are as transformers writes them."""
    path = folder / CONFIG
    try:
        check_fetched(path)
        config = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: {"__float__": name})
    except FileNotFoundError as error:
        if not folder.is_dir():
            raise BoomspecError(f"{folder}: no such folder") from error
        found = refusal(list(names_in(folder)), str(folder))
        raise found or BoomspecError(f"{folder}: no readable {CONFIG}") from error
    except OSError as error:
        raise BoomspecError(f"{folder}: no readable {CONFIG}: {error.strerror}") from error
    except ValueError as error:
        raise BoomspecError(f"{path}: not JSON: {error}") from error
    if not isinstance(config, dict):
        raise BoomspecError(f"{path}: not an object")
    return config


def read_facts(folder: Path) -> ModelFacts:
    return model_facts(read_config(folder), read_checkpoint(folder), str(folder))


def model_facts(config: Mapping[str, Any], tensors: Tensors, where: str, *, same: Same = same_bytes) -> ModelFacts:
    """Find the layer stack and sort the other tensors around it. `same`: how a head is compared with the embedding."""
    written, stored = config, tuple(tensors.values())
    left_out: list[TensorEntry] = []
    tensors = {unwrapped(tensor.name): tensor for tensor in tensors.values()}
    if (inner := decoder_config(config)) is not None:
        tensors, left_out = decoder_tensors(config, inner, tensors, where)
        config = inner
    model_type = str(config.get("model_type", "unknown"))
    row = row_of(model_type)
    prefix, layers, others = _layer_stack(_canonical(tensors, row, where), where)
    layers, config = _without_next_tokens(layers, config, where)
    others = _with_embedding(others, config, row)
    base = _base(others, prefix, where)
    embedding, norm, head = [], [], []
    for tensor in others:
        if _is_outside(tensor, base):
            head.append(tensor)
        elif (row.final_norm and tensor.name.startswith(row.final_norm)) or (
            len(tensor.shape) <= 1 and "embed" not in tensor.name.lower()
        ):
            norm.append(tensor)
        else:
            embedding.append(tensor)
    if row.final_norm is None and not head:
        raise BoomspecError(f"{where}: no head found: looked for tensors that are not under '{base}*'")
    if row.final_norm is not None and not norm and row.norm_weights:
        raise BoomspecError(f"{where}: no final norm found: looked for a vector under '{base}*' beside '{prefix}.*'")
    # Where there is a head of this family, the others are heads of something else.
    head = [tensor for tensor in head if row.is_head(tensor.name)] or head
    tokens = _token_embedding(embedding, config)
    projections = [t for t in head if t.name == row.head or (len(t.shape) == 2 and tokens.shape[0] in t.shape)]
    projections = [t for t in projections if not row.is_head_transform(t.name)]
    asked = config.get("tie_word_embeddings")
    if asked is False and not projections:
        message = f"{where}: config.json says `tie_word_embeddings: false`, and the checkpoint holds no head"
        hint = f"looked for '{row.head}'; a trunk saved without its head is no language model"
        raise BoomspecError(message, hint=hint)
    tied = not projections or bool(row.tied if asked is None else asked)
    if tied and any(same(projection, tokens) is False for projection in projections):
        tied = False  # as transformers loads it: a file that holds another head is believed
    if tied:
        of_untied = {name for name, _ in row.untied_head} | {tensor.name for tensor in projections}
        head = [tensor for tensor in head if tensor.name not in of_untied]
    parts = (tuple(embedding), tuple(norm), tuple(head))
    return ModelFacts(model_type, prefix, layers, *parts, tied, config, tuple(left_out), written=written, stored=stored)


def decoder_config(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The config of the text decoder that a model holds among other parts; None for a model that is one itself."""
    inner = next((config[key] for key in DECODER_CONFIGS if isinstance(config.get(key), dict)), None)
    if inner is None:
        return None
    shared = {key: config[key] for key in _TOGETHER if config.get(key) is not None and inner.get(key) is None}
    tied = config.get("tie_word_embeddings", inner.get("tie_word_embeddings"))
    return {**inner, **shared, **({} if tied is None else {"tie_word_embeddings": tied})}


def decoder_name(name: str) -> str | None:
    """What a tensor of a whole model is called in the decoder alone; None for one that is no part of it."""
    for pattern, replacement in DECODERS:
        if re.search(pattern, name):
            return re.sub(pattern, replacement, name)
    return name if name.startswith("lm_head.") else None


def decoder_tensors(
    config: Mapping[str, Any], inner: Mapping[str, Any], tensors: Tensors, where: str
) -> tuple[dict[str, TensorEntry], list[TensorEntry]]:
    """Tensors of the decoder alone, whose config is `inner`, and what is left out. Raises BoomspecError without one."""
    whole, decoder = config.get("model_type", "unknown"), inner.get("model_type")
    if decoder is None or is_native(inner, "model") is False:
        unknown = f"no causal language model of that ({decoder or 'its config says no model_type'})"
        message = f"{where}: a {whole} model holds a text decoder among other parts, and transformers has {unknown}"
        raise BoomspecError(message, hint="save the text decoder as a model of its own, and give that")
    named = [(tensor, decoder_name(tensor.name)) for tensor in tensors.values()]
    found = {name: replace(tensor, name=name) for tensor, name in named if name is not None}
    if not any(name.startswith("model.") for name in found):
        raise BoomspecError(f"{where}: no text decoder found: looked for tensors under 'language_model.'")
    return found, [tensor for tensor, name in named if name is None]


def _without_next_tokens(layers: Layers, config: Mapping[str, Any], where: str) -> tuple[Layers, Mapping[str, Any]]:
    """The layers that config.json counts: those after them that predict further tokens are no part of the model."""
    declared = next((config[key] for key in LAYER_COUNTS if config.get(key) is not None), len(layers))
    if declared != len(layers):
        extra = layers[declared:]
        known = next((config[key] for key in NEXT_TOKENS_KEYS if config.get(key)), 0)
        named = bool(extra) and all(any(re.search(NEXT_TOKENS_TENSOR, t.name) for t in layer) for layer in extra)
        if not (named or 0 < len(extra) <= known):
            raise BoomspecError(f"{where}: config.json says {declared} layers, the checkpoint holds {len(layers)}")
    return layers[:declared], {**config, **{key: 0 for key in NEXT_TOKENS_KEYS if config.get(key)}}


def _with_embedding(others: list[TensorEntry], config: Mapping[str, Any], row: FamilyRules) -> list[TensorEntry]:
    """The tensors beside the layers; where a tied model holds its one matrix as the head, as the embedding."""
    head = next((tensor for tensor in others if tensor.name == row.head), None)
    tied = head is not None and config.get("tie_word_embeddings", row.tied)
    if head is None or not tied or any(tensor.shape == head.shape for tensor in others if tensor is not head):
        return others
    return [replace(tensor, name=row.embedding) if tensor is head else tensor for tensor in others]


def read_as(facts: ModelFacts, model_type: str, where: str) -> ModelFacts:
    """The same model under the names of the family `model_type`. Raises BoomspecError where that cannot be."""
    if facts.model_type == model_type:
        return facts
    rows = row_of(facts.model_type).read_as.get(model_type)
    if rows is None:
        raise BoomspecError(f"a {model_type} and a {facts.model_type} model cannot be interpolated")
    tensors = facts.tensors(range(facts.count), tied=facts.tied)
    named = {name: replace(t, name=name) for t in tensors if (name := renamed(t.name, rows.names))}
    # As much of a config as the other family's config must agree with.
    config = {rows.keys[key]: value for key, value in facts.config.items() if key in rows.keys}
    return replace(model_facts({**config, **rows.fixed, "model_type": model_type}, named, where), partial=True)


def _canonical(tensors: Tensors, row: FamilyRules, where: str) -> dict[str, TensorEntry]:
    """The tensors under their canonical names, also where a trunk was saved without its head."""
    result: dict[str, TensorEntry] = {}
    stored: dict[str, str] = {}
    names = [unwrapped(name) for name in tensors]
    alone = row.embedding.startswith(row.trunk) and row.embedding.removeprefix(row.trunk) in names
    missing = row.trunk if alone and not any(name.startswith(row.trunk) for name in names) else ""
    for tensor in tensors.values():
        own = unwrapped(tensor.name)
        name = row.canonical_name(own if row.is_head(own) else missing + own)
        if name is None:
            continue
        if name in stored:
            raise BoomspecError(f"{where}: tensors '{stored[name]}' and '{tensor.name}' are both '{name}'")
        stored[name] = tensor.name
        result[name] = tensor if name == tensor.name else replace(tensor, name=name)
    return result


def _is_outside(tensor: TensorEntry, base: str) -> bool:
    return not tensor.name.startswith(base) or tensor.name.startswith("lm_head.")


def _base(others: Sequence[TensorEntry], prefix: str, where: str) -> str:
    parts = prefix.split(".")[:-1] if prefix else []
    bases = [".".join(parts[:end]) + "." for end in range(len(parts), 0, -1)] or [""]
    for base in bases:
        if any(len(tensor.shape) == 2 and not _is_outside(tensor, base) for tensor in others):
            return base
    message = f"{where}: no token embedding found: looked for a matrix under '{bases[-1]}*' beside '{prefix}.*'"
    raise BoomspecError(message)


def _token_embedding(embedding: Sequence[TensorEntry], config: Mapping[str, Any]) -> TensorEntry:
    matrices = [tensor for tensor in embedding if len(tensor.shape) == 2]
    of_vocabulary = [tensor for tensor in matrices if tensor.shape[0] == config.get("vocab_size")]
    # A position table can be as long as the vocabulary.
    by_name = [tensor for tensor in of_vocabulary if not re.search(r"pos|wpe|type", tensor.name)]
    return max(by_name or of_vocabulary or matrices, key=lambda tensor: tensor.shape[0])


def _layer_stack(tensors: Tensors, where: str) -> tuple[str, Layers, list[TensorEntry]]:
    groups: dict[str, dict[int, list[TensorEntry]]] = defaultdict(lambda: defaultdict(list))
    found = {tensor.name: _LAYER.match(tensor.name) for tensor in tensors.values()}
    for tensor in tensors.values():
        if match := found[tensor.name]:
            groups[match["prefix"]][int(match["index"])].append(tensor)
    if not groups:
        raise BoomspecError(f"{where}: no layer stack found: looked for tensors named '<prefix>.<i>.<rest>'")
    prefix = max(groups, key=lambda name: sum(t.bytes for layer in groups[name].values() for t in layer))
    stack = groups[prefix]
    if missing := sorted(set(range(max(stack) + 1)) - set(stack)):
        raise BoomspecError(f"{where}: layer {missing[0]} of '{prefix}' is missing from the checkpoint")
    others = [t for t in tensors.values() if (match := found[t.name]) is None or match["prefix"] != prefix]
    return prefix, tuple(tuple(stack[i]) for i in range(len(stack))), others


def llama_config(architecture: Architecture) -> dict[str, Any]:
    """The dimensions under the names of `transformers.LlamaConfig`."""
    names = {"layers": "num_hidden_layers", "attention_heads": "num_attention_heads", "vocabulary": "vocab_size"}
    names |= {"key_value_heads": "num_key_value_heads", "context": "max_position_embeddings"}
    names["tied"] = "tie_word_embeddings"
    return {names.get(name, name): value for name, value in architecture.model_dump().items()}


def llama_facts(architecture: Architecture) -> ModelFacts:
    """Facts of the `transformers.LlamaForCausalLM` in fp32 that a spec trains itself, from its dimensions alone."""
    a = architecture
    head_size = a.hidden_size // a.attention_heads
    queries, keys = a.attention_heads * head_size, a.key_value_heads * head_size
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (queries, a.hidden_size),
        "self_attn.k_proj.weight": (keys, a.hidden_size),
        "self_attn.v_proj.weight": (keys, a.hidden_size),
        "self_attn.o_proj.weight": (a.hidden_size, queries),
        "mlp.gate_proj.weight": (a.intermediate_size, a.hidden_size),
        "mlp.up_proj.weight": (a.intermediate_size, a.hidden_size),
        "mlp.down_proj.weight": (a.hidden_size, a.intermediate_size),
        "input_layernorm.weight": (a.hidden_size,),
        "post_attention_layernorm.weight": (a.hidden_size,),
    }
    shapes = {"model.embed_tokens.weight": (a.vocabulary, a.hidden_size), "model.norm.weight": (a.hidden_size,)}
    shapes |= {f"model.layers.{i}.{name}": shape for i in range(a.layers) for name, shape in layer.items()}
    if not a.tied:
        shapes["lm_head.weight"] = (a.vocabulary, a.hidden_size)
    config = {"model_type": "llama", **llama_config(architecture)}
    return model_facts(config, {n: TensorEntry(n, "F32", s) for n, s in shapes.items()}, "teacher.pretrain")
