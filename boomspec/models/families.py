"""Per-architecture exceptions, keyed by `model_type`, that config and headers do not show; most families have none.

Names are canonical ones: those under which this project compares and writes tensors, and transformers loads them.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

Renamed = tuple[tuple[str, str], ...]  # patterns and replacements, all applied, in this order
Place = Callable[[int, int, Mapping[str, Any]], object]  # of index, number of layers, config


@dataclass(frozen=True)
class Translation:
    """How a model of one family is read as a model of another one that computes the same."""

    names: Renamed
    keys: Mapping[str, str]  # config keys of the one and of the other
    fixed: Mapping[str, Any]  # config values that the one has built in
    zeros: frozenset[str]  # tensors of the other that the one has not: zeros change nothing


@dataclass(frozen=True)
class Plain:
    """The tensors that a family always has; a sweep over all families (tests/sweeps) has found every size right."""

    layer: frozenset[str]  # of every layer, after its index
    shared: frozenset[str]  # the others, but the head
    switches: tuple[str, ...] = ()  # of the config: what makes layers differ, where it is set


@dataclass(frozen=True)
class FamilyRules:
    """A family's exceptions; the defaults are what most families do."""

    # Names of tensors.
    trunk: str = "model."  # what a trunk saved on its own (`AutoModel`) leaves out in front of its names
    head: str = "lm_head.weight"  # the projection onto the vocabulary
    embedding: str = "model.embed_tokens.weight"  # where head and embedding are one matrix, its name in such a file
    renamed: Renamed = ()  # old checkpoints name some tensors differently
    dropped: str | None = None  # no weights: masks and positions that older versions stored, heads of other tasks
    head_transform: str | None = None  # matrices of the head that are not its projection onto the vocabulary
    final_norm: str | None = ""  # the beginning of its name, or of what is there beside it; None: layers end in a norm
    norm_weights: bool = True
    # What a config leaves unsaid.
    tied: bool = False  # head and embedding are one where the config says nothing
    alike: bool = False  # all layers are of one kind; of other families transformers is asked, which costs its import
    unless: str | None = None  # the switch of the config that makes them differ
    letters: bool = False  # its class reads the types of the layers as letters and as a list
    lists_dense: bool = False  # its class makes a list of the number of leading dense layers, which then says nothing
    by_place: tuple[str, Place] | None = None  # why, and in what, a layer depends on its place although no key says so
    last_layer: str | None = None  # the type of the last layer, whatever its list says
    refused: str | None = None  # why it cannot be interpolated
    full_attention_every: int | None = None  # all others attend to windows, although the config names no layers
    windowed: bool = False  # every layer attends to windows
    parallel: bool = False  # attention and MLP read the same state
    masked: bool = False  # a masked language model, whatever its config calls it
    encoder_decoder: bool = False  # two stacks of layers, although its config need not say so
    # Modules of a layer whose outputs are added to the stream as they are, from norms in front of it: of attention, and
    # of the MLP. None: not known to be so.
    writes: tuple[str, str] | None = None
    # How it is handled.
    plain: Plain | None = None
    tiny: Mapping[str, int] = field(default_factory=dict)  # keys of the config that mean other sizes than usual
    read_as: Mapping[str, Translation] = field(default_factory=dict)  # by the other family

    def canonical_name(self, name: str) -> str | None:
        """The canonical name of a tensor, or None for one that is no weight of a language model."""
        name = renamed(name, self.renamed)
        dropped = re.search(_DROPPED_ALWAYS, name) or (self.dropped and re.search(self.dropped, name))
        return None if dropped else name

    @property
    def untied_head(self) -> tuple[tuple[str, str | None], ...]:
        """Names that untying adds to a model, each with the tensor it is a copy of (None: the token embedding)."""
        bias = _UNTIED_BIASES.get(self.head)
        return ((self.head, None),) if bias is None else ((self.head, None), bias)

    def is_head(self, name: str) -> bool:
        """Whether a tensor outside of the trunk belongs to the head of a language model of this family."""
        return name.startswith((f"{self.head.split('.')[0]}.", "vocab_")) or self.is_head_transform(name)

    def is_head_transform(self, name: str) -> bool:
        """Whether a head tensor works on hidden states, in front of the projection onto the vocabulary."""
        return self.head_transform is not None and re.search(self.head_transform, name) is not None


# Of all families: tensors that are no weights of a language model (rotary frequencies, positions, layers that predict
# more than the next token, which no class of transformers loads, heads of other tasks).
_DROPPED_ALWAYS = (
    r"\brotary_(pos_)?emb\.(inv_freq|cos_cached|sin_cached)$|\bembeddings\.position_ids$"
    r"|(^|\.)mtp(_\w+)?\.|^(v_head|value_head|score|classifier|reward_head)\."
)
# What else an untied model has that a tied one does not, and the tensor that it is a copy of.
_UNTIED_BIASES: Mapping[str, tuple[str, str]] = {
    "cls.predictions.decoder.weight": ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    "lm_head.decoder.weight": ("lm_head.decoder.bias", "lm_head.bias"),
}
# What wrappers put around the names of the weights that they wrap: torch.compile, and data parallel training.
WRAPPERS: Renamed = ((r"^module\.", ""), (r"\b_orig_mod\.", ""))
# Layers after those that config.json counts, which predict tokens further ahead: where the config says how many, and
# a tensor that no other layer has.
NEXT_TOKENS_KEYS = ("num_nextn_predict_layers", "num_mtp_layers")
NEXT_TOKENS_TENSOR = r"(^|\.)(eh_proj|shared_head)\."
# What the number under a key of the config does to the logits after the output matrix.
LOGITS: Mapping[str, Literal["capped", "divided", "multiplied"]] = {
    "final_logit_softcapping": "capped", "logits_soft_cap": "capped", "logits_scaling": "divided",
    "logit_scale": "multiplied", "lm_head_multiplier": "multiplied",
}  # fmt: skip


def row_of(model_type: object) -> FamilyRules:
    return FAMILIES.get(str(model_type), _NO_EXCEPTIONS)


def unwrapped(name: str) -> str:
    """A tensor's name without what a wrapper has put around it."""
    return renamed(name, WRAPPERS)


def renamed(name: str, rows: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rows:
        name = re.sub(pattern, replacement, name)
    return name


def _weights(*modules: str, kinds: tuple[str, ...] = ("weight",)) -> frozenset[str]:
    return frozenset(f"{module}.{kind}" for text in modules for module in text.split() for kind in kinds)


_both = partial(_weights, kinds=("weight", "bias"))


def _encoder(head: str, transform: str, trunk: str, more: Mapping[str, Any]) -> FamilyRules:
    options = {"tied": True, "final_norm": None, **more}
    embedding = f"{trunk}.embeddings.word_embeddings.weight"
    return FamilyRules(head=head, embedding=embedding, head_transform=transform, **options)


def _bert(trunk: str = "bert", **more: Any) -> FamilyRules:
    return _encoder("cls.predictions.decoder.weight", r"^cls\.predictions\.transform\.", trunk, more)


def _roberta(trunk: str = "roberta", **more: Any) -> FamilyRules:
    return _encoder("lm_head.decoder.weight", r"^lm_head\.(dense|layer_norm)\.", trunk, more)


def _gpt(embedding: str = "wte", *, tied: bool = True, **more: Any) -> FamilyRules:
    return FamilyRules(trunk="transformer.", embedding=f"transformer.{embedding}.weight", tied=tied, **more)


def _mamba(**more: Any) -> FamilyRules:
    return FamilyRules(trunk="backbone.", embedding="backbone.embeddings.weight", **more)


# Families whose layers compute attention without transformers' attention interface: nothing can read it there.
OWN_ATTENTION = frozenset({
    "big_bird", "bloom", "codegen", "cpmant", "falcon", "falcon_mamba", "fuyu", "gemma4_assistant",
    "gemma4_unified_assistant", "got_ocr2", "gpt_neo", "gpt_neox_japanese", "gptj", "mamba", "mamba2",
    "megatron-bert", "mpt", "mvp", "openai-gpt", "prophetnet", "reformer", "rembert", "roformer", "rwkv", "trocr",
    "xglm", "xlm", "xlnet", "xlstm",
})  # fmt: skip
_NO_EXCEPTIONS = FamilyRules()
_LAYER_NORMS: Renamed = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
_MASKS = r"\.attn\.(masked_)?bias$"
_ATTENTION = "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj"
_MLP = "mlp.gate_proj mlp.up_proj mlp.down_proj"
_NORMS = "input_layernorm post_attention_layernorm"
_SHARED = frozenset({"model.embed_tokens.weight", "model.norm.weight"})
_WRITES = ("self_attn.o_proj", "mlp.down_proj")
_LLAMA = Plain(_weights(_ATTENTION, _MLP, _NORMS), _SHARED)

_DISTILBERT_AS_BERT = Translation(
    names=(
        (r"^distilbert\.embeddings\.", "bert.embeddings."),
        (r"^distilbert\.transformer\.layer\.", "bert.encoder.layer."),
        (r"\.attention\.q_lin\.", ".attention.self.query."), (r"\.attention\.k_lin\.", ".attention.self.key."),
        (r"\.attention\.v_lin\.", ".attention.self.value."), (r"\.attention\.out_lin\.", ".attention.output.dense."),
        (r"\.sa_layer_norm\.", ".attention.output.LayerNorm."),
        (r"\.ffn\.lin1\.", ".intermediate.dense."), (r"\.ffn\.lin2\.", ".output.dense."),
        (r"\.output_layer_norm\.", ".output.LayerNorm."),
        (r"^vocab_transform\.", "cls.predictions.transform.dense."),
        (r"^vocab_layer_norm\.", "cls.predictions.transform.LayerNorm."),
        (r"^vocab_projector\.bias$", "cls.predictions.bias"),
        (r"^vocab_projector\.weight$", "cls.predictions.decoder.weight"),
    ),
    keys={
        "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads", "activation": "hidden_act",
        "tie_word_embeddings": "tie_word_embeddings", "vocab_size": "vocab_size",
    },
    fixed={"layer_norm_eps": 1e-12},
    zeros=frozenset({"bert.embeddings.token_type_embeddings.weight"}),
)  # fmt: skip

FAMILIES: dict[str, FamilyRules] = {
    **dict.fromkeys(("albert", "deberta", "deberta-v2"), FamilyRules(masked=True)),
    **dict.fromkeys((
        "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "encoder-decoder", "fsmt", "led", "longt5",
        "m2m_100", "marian", "mbart", "mt5", "mvp", "nllb-moe", "pegasus", "pegasus_x", "pix2struct", "plbart",
        "prophetnet", "seamless_m4t", "seamless_m4t_v2", "speech-encoder-decoder", "speech_to_text",
        "switch_transformers", "t5", "t5gemma", "t5gemma2", "umt5", "vision-encoder-decoder", "whisper",
        "xlm-prophetnet",
    ), FamilyRules(encoder_decoder=True)),
    **dict.fromkeys((
        "axk1", "axk2", "bailing_hybrid", "deepseek_v32", "dots3_note", "exaone_moe", "glm4_moe_lite", "glm_moe_dsa",
        "hy_v3", "hy_v4", "inkling_text", "kimi_linear", "laguna", "mellum", "mimo_v2_flash", "minimax_m3_vl_text",
    ), FamilyRules(lists_dense=True)),
    **dict.fromkeys((
        "cohere", "cohere_compass_text", "cpmant", "ernie4_5", "ernie4_5_moe", "gemma3", "gemma3n", "gemma4",
        "gemma4_unified", "granite_swa", "jetmoe", "minicpm3", "recurrent_gemma", "smollm3", "vaultgemma", "xglm",
        "youtu",
    ), FamilyRules(tied=True)),
    "beam": FamilyRules(
        lists_dense=True, by_place=("a layer's residual stream depends on its index", lambda i, n, _: i),
    ),
    "bert": _bert(
        renamed=(*_LAYER_NORMS, (r"^(?!bert\.|cls\.)", "bert.")), dropped=r"^bert\.pooler\.|^cls\.seq_relationship\.",
        alike=True, masked=True,
    ),
    "bert-generation": FamilyRules(
        head="lm_head.decoder.weight", embedding="bert.embeddings.word_embeddings.weight", tied=True, final_norm=None,
    ),
    "big_bird": _bert(),
    "biogpt": FamilyRules("biogpt.", "output_projection.weight", "biogpt.embed_tokens.weight", tied=True),
    "bloom": _gpt("word_embeddings"),
    "blt": FamilyRules(embedding="model.local_encoder.embed_tokens.weight"),
    "camembert": _roberta(),
    "codegen": _gpt(tied=False, dropped=r"\.attn\.(causal_mask|(masked_)?bias)$"),
    "cohere2": FamilyRules(tied=True, full_attention_every=4),
    "cohere2_moe": FamilyRules(tied=True, lists_dense=True),
    "ctrl": _gpt("w"),
    "data2vec-text": _roberta("data2vec_text"),
    "dbrx": _gpt(tied=False),
    "diffllama": FamilyRules(
        by_place=("lambda of the differential attention is worked out of the layer's index", lambda i, n, _: i),
    ),
    "distilbert": FamilyRules(
        head="vocab_projector.weight", embedding="distilbert.embeddings.word_embeddings.weight",
        renamed=(*_LAYER_NORMS, (r"^(?!distilbert\.|vocab_)", "distilbert.")), head_transform=r"^vocab_transform\.",
        final_norm=None, tied=True, alike=True, masked=True, read_as={"bert": _DISTILBERT_AS_BERT},
    ),
    "electra": FamilyRules(
        head="generator_lm_head.weight", embedding="electra.embeddings.word_embeddings.weight",
        head_transform=r"^generator_predictions\.", final_norm=None, tied=True, masked=True,
    ),
    "ernie": _bert("ernie"),
    "falcon": _gpt("word_embeddings"),
    "falcon_h1": FamilyRules(tiny={"mamba_d_head": 16}),
    "falcon_mamba": _mamba(tied=True),
    "gemma": FamilyRules(tied=True, alike=True, writes=_WRITES, plain=_LLAMA),
    "gemma2": FamilyRules(tied=True, full_attention_every=2),
    "gemma3_text": FamilyRules(tied=True, full_attention_every=6),
    "gemma3n_text": FamilyRules(
        tied=True, refused="one table embeds the tokens for all layers together, and layers share keys and values",
    ),
    **dict.fromkeys(("gemma4_text", "gemma4_unified_text"), FamilyRules(tied=True, last_layer="full_attention")),
    "git": FamilyRules(head="output.weight", embedding="git.embeddings.word_embeddings.weight"),
    "gpt-sw3": _gpt(),
    "gpt2": _gpt(
        renamed=((r"^(?!transformer\.|lm_head\.)", "transformer."),), dropped=_MASKS, alike=True,
        writes=("attn.c_proj", "mlp.c_proj"),
        plain=Plain(
            _both("ln_1 ln_2 attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj"),
            _weights("transformer.wte transformer.wpe") | _both("transformer.ln_f"),
            ("scale_attn_by_inverse_layer_idx", "add_cross_attention"),
        ),
    ),
    "gpt_bigcode": _gpt(dropped=_MASKS),
    "gpt_neo": _gpt(dropped=r"\.attn\.attention\.(masked_)?bias$"),
    "gpt_neox": FamilyRules(
        trunk="gpt_neox.", head="embed_out.weight", embedding="gpt_neox.embed_in.weight",
        renamed=((r"^lm_head\.", "embed_out."),), dropped=r"\.attention\.(masked_)?bias$", alike=True, parallel=True,
        writes=("attention.dense", "mlp.dense_4h_to_h"),
        plain=Plain(
            _both(_NORMS, "attention.query_key_value attention.dense mlp.dense_h_to_4h mlp.dense_4h_to_h"),
            _weights("gpt_neox.embed_in") | _both("gpt_neox.final_layer_norm"),
        ),
    ),
    "gpt_neox_japanese": FamilyRules(
        trunk="gpt_neox_japanese.", head="embed_out.weight", embedding="gpt_neox_japanese.embed_in.weight",
        dropped=r"\.attention\.(masked_)?bias$", tied=True,
        by_place=("only the last layer has a bias", lambda i, n, _: i == n - 1),
    ),
    "gptj": _gpt(tied=False, dropped=_MASKS, alike=True),
    "granite": FamilyRules(alike=True, plain=_LLAMA),
    **dict.fromkeys(("lfm2", "lfm2_moe", "lfm3"), FamilyRules(tied=True, final_norm="model.embedding_norm.")),
    "llama": FamilyRules(alike=True, writes=_WRITES, plain=_LLAMA),
    "mamba": _mamba(tied=True),
    "mamba2": _mamba(tiny={"num_heads": 8}),  # of the state space, twice as wide as the hidden states
    "megatron-bert": _bert(final_norm=""),
    "minimax": FamilyRules(
        by_place=("the decay of linear attention depends on index and number of layers", lambda i, n, _: (i, n)),
    ),
    "mistral": FamilyRules(alike=True, windowed=True, writes=_WRITES, plain=_LLAMA),
    "mixtral": FamilyRules(alike=True, windowed=True),
    "modernbert-decoder": FamilyRules(
        head="decoder.weight", embedding="model.embeddings.tok_embeddings.weight", head_transform=r"^lm_head\.",
        tied=True, by_place=("only the first layer has no norm in front", lambda i, n, _: i == 0),
    ),
    "mpt": _gpt(),
    "nanochat": FamilyRules(norm_weights=False),
    "nemotron_h": FamilyRules(letters=True),
    "olmo": FamilyRules(norm_weights=False, alike=True),
    "olmo2": FamilyRules(
        alike=True,
        plain=Plain(
            _weights(_ATTENTION, _MLP, "self_attn.q_norm self_attn.k_norm")
            | _weights("post_attention_layernorm post_feedforward_layernorm"),
            _SHARED,
        ),
    ),
    "openai-gpt": _gpt("tokens_embed", norm_weights=False, dropped=r"\.attn\.bias$"),
    # Behind the layers of OPT-350m is a matrix, whose counterpart is in front.
    "opt": FamilyRules(
        embedding="model.decoder.embed_tokens.weight", tied=True, final_norm="model.decoder.project_out.", alike=True,
    ),
    "phi": FamilyRules(alike=True),
    "phi3": FamilyRules(
        alike=True, windowed=True, writes=_WRITES,
        plain=Plain(_weights("self_attn.qkv_proj self_attn.o_proj mlp.gate_up_proj mlp.down_proj", _NORMS), _SHARED),
    ),
    "qwen2": FamilyRules(
        alike=True, unless="use_sliding_window", writes=_WRITES,
        plain=Plain(_LLAMA.layer | {f"self_attn.{name}_proj.bias" for name in "qkv"}, _SHARED, ("use_sliding_window",)),
    ),
    "qwen2_moe": FamilyRules(alike=True, unless="use_sliding_window"),
    "qwen3": FamilyRules(
        alike=True, unless="use_sliding_window", writes=_WRITES,
        plain=Plain(_LLAMA.layer | _weights("self_attn.q_norm self_attn.k_norm"), _SHARED, ("use_sliding_window",)),
    ),
    "qwen3_moe": FamilyRules(alike=True),
    "rembert": FamilyRules(final_norm=None),
    "roberta": _roberta(masked=True),
    "roberta-prelayernorm": _roberta("roberta_prelayernorm", final_norm=""),
    "roc_bert": _bert("roc_bert"),
    "roformer": _bert("roformer"),
    "rwkv": FamilyRules(
        trunk="rwkv.", head="head.weight", embedding="rwkv.embeddings.weight",
        by_place=("only the first layer has a norm in front", lambda i, n, _: i == 0),
    ),
    "starcoder2": FamilyRules(tied=True, windowed=True),
    "xlm": FamilyRules(head="pred_layer.proj.weight", embedding="transformer.embeddings.weight", tied=True),
    "xlm-roberta": _roberta(),
    "xlm-roberta-xl": _roberta(final_norm=""),
    "xlnet": FamilyRules(head="lm_loss.weight", embedding="transformer.word_embedding.weight", tied=True),
    "xlstm": _mamba(),
    "xmod": _roberta(final_norm=""),
    "zamba": FamilyRules(tied=True, refused="its attention layers share one set of weights"),
    "zamba2": FamilyRules(tied=True, refused="its attention layers share one set of weights"),
    "zaya": FamilyRules(tied=True, by_place=("only the first layer has no average of routers", lambda i, n, _: i == 0)),
}  # fmt: skip
