"""What headers and config cannot say of a family, as rows of data. A family without a row here is read as it is.

canonical name   a checkpoint's tensor names as this project compares and writes them; transformers loads them
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# Old checkpoints (gpt2, pythia, bert-base-uncased) name some tensors differently.
_LAYER_NORMS = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
_RENAMED: Mapping[str, tuple[tuple[str, str], ...]] = {
    "gpt2": ((r"^(?!transformer\.|lm_head\.)", "transformer."),),
    "gpt_neox": ((r"^lm_head\.", "embed_out."),),
    "bert": (*_LAYER_NORMS, (r"^(?!bert\.|cls\.)", "bert.")),
    "distilbert": (*_LAYER_NORMS, (r"^(?!distilbert\.|vocab_)", "distilbert.")),
}

# What wrappers put around the names of the weights that they wrap: torch.compile, and data parallel training.
WRAPPERS: tuple[tuple[str, str], ...] = ((r"^module\.", ""), (r"\b_orig_mod\.", ""))

# What a trunk saved on its own (`AutoModel`) leaves out in front of its names; of all others "model.".
_TRUNKS: Mapping[str, frozenset[str]] = {
    "transformer.": frozenset({
        "bloom", "codegen", "ctrl", "dbrx", "falcon", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "mpt",
        "openai-gpt",
    }),
    "backbone.": frozenset({"falcon_mamba", "mamba", "mamba2", "xlstm"}),
    "gpt_neox.": frozenset({"gpt_neox"}),
    "gpt_neox_japanese.": frozenset({"gpt_neox_japanese"}),
    "rwkv.": frozenset({"rwkv"}),
    "biogpt.": frozenset({"biogpt"}),
}  # fmt: skip

# No weights of a language model: masks, positions and frequencies that older versions stored, layers that predict
# more than the next token (no class of transformers loads them into its model), heads of other tasks.
_DROPPED_ALWAYS = (
    r"\brotary_(pos_)?emb\.(inv_freq|cos_cached|sin_cached)$|\bembeddings\.position_ids$"
    r"|(^|\.)mtp(_\w+)?\.|^(v_head|value_head|score|classifier|reward_head)\."
)
_DROPPED: Mapping[str, str] = {
    "codegen": r"\.attn\.(causal_mask|(masked_)?bias)$",
    "gpt2": r"\.attn\.(masked_)?bias$",
    "gpt_bigcode": r"\.attn\.(masked_)?bias$",
    "gpt_neo": r"\.attn\.attention\.(masked_)?bias$",
    "gpt_neox": r"\.attention\.(masked_)?bias$",
    "gpt_neox_japanese": r"\.attention\.(masked_)?bias$",
    "gptj": r"\.attn\.(masked_)?bias$",
    "openai-gpt": r"\.attn\.bias$",
    "bert": r"^bert\.pooler\.|^cls\.seq_relationship\.",
}

# Families without a norm between the last layer and the head (layers end in one of their own), and families whose
# norms have no weights.
NO_FINAL_NORM = frozenset({
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "distilbert", "electra", "ernie",
    "rembert", "roberta", "roc_bert", "roformer", "xlm-roberta",
})  # fmt: skip
NORMS_WITHOUT_WEIGHTS = frozenset({"nanochat", "olmo", "openai-gpt"})  # openai-gpt has none, and a head that is tied

# Families whose final norm has a name that says something else, or what is there beside it, or instead.
FINAL_NORMS: Mapping[str, str] = {
    "lfm2": "model.embedding_norm.",
    "lfm2_moe": "model.embedding_norm.",
    "lfm3": "model.embedding_norm.",
    "opt": "model.decoder.project_out.",  # of OPT-350m: behind the layers, whose counterpart is in front
}

# Layers behind those that config.json counts, which predict tokens further ahead: where the config says how many, and
# a tensor that no other layer has.
NEXT_TOKENS_KEYS = ("num_nextn_predict_layers", "num_mtp_layers")
NEXT_TOKENS_TENSOR = r"(^|\.)(eh_proj|shared_head)\."

# Families that tie head and embedding where the config says nothing.
TIED_BY_DEFAULT = frozenset({
    "bert", "bert-generation", "big_bird", "biogpt", "bloom", "camembert", "cohere", "cohere2", "cohere2_moe",
    "cohere_compass_text", "cpmant", "ctrl", "data2vec-text", "distilbert", "electra", "ernie", "ernie4_5",
    "ernie4_5_moe", "falcon", "falcon_mamba", "gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text",
    "gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neo",
    "gpt_neox_japanese", "granite_swa", "jetmoe", "lfm2", "lfm2_moe", "lfm3", "mamba", "megatron-bert", "minicpm3",
    "modernbert-decoder", "mpt", "openai-gpt", "opt", "recurrent_gemma", "roberta", "roberta-prelayernorm",
    "roc_bert", "roformer", "smollm3", "starcoder2", "vaultgemma", "xglm", "xlm", "xlm-roberta", "xlm-roberta-xl",
    "xlnet", "xmod", "youtu", "zamba", "zamba2", "zaya",
})  # fmt: skip

# Where head and embedding are one matrix: its two names. The second stands for the first in a file that holds one.
_TIED_NAMES: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("bert", "big_bird", "ernie", "megatron-bert", "roc_bert", "roformer"),
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight")),
    **dict.fromkeys(("camembert", "roberta", "xlm-roberta", "xlm-roberta-xl", "xmod"),
        ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight")),
    **dict.fromkeys(("bloom", "falcon"), ("lm_head.weight", "transformer.word_embeddings.weight")),
    **dict.fromkeys(("codegen", "dbrx", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "mpt"),
        ("lm_head.weight", "transformer.wte.weight")),
    **dict.fromkeys(("falcon_mamba", "mamba", "mamba2", "xlstm"), ("lm_head.weight", "backbone.embeddings.weight")),
    "bert-generation": ("lm_head.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    "biogpt": ("output_projection.weight", "biogpt.embed_tokens.weight"),
    "blt": ("lm_head.weight", "model.local_encoder.embed_tokens.weight"),
    "ctrl": ("lm_head.weight", "transformer.w.weight"),
    "data2vec-text": ("lm_head.decoder.weight", "data2vec_text.embeddings.word_embeddings.weight"),
    "distilbert": ("vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight"),
    "electra": ("generator_lm_head.weight", "electra.embeddings.word_embeddings.weight"),
    "ernie": ("cls.predictions.decoder.weight", "ernie.embeddings.word_embeddings.weight"),
    "git": ("output.weight", "git.embeddings.word_embeddings.weight"),
    "gpt_neox": ("embed_out.weight", "gpt_neox.embed_in.weight"),
    "gpt_neox_japanese": ("embed_out.weight", "gpt_neox_japanese.embed_in.weight"),
    "modernbert-decoder": ("decoder.weight", "model.embeddings.tok_embeddings.weight"),
    "openai-gpt": ("lm_head.weight", "transformer.tokens_embed.weight"),
    "opt": ("lm_head.weight", "model.decoder.embed_tokens.weight"),
    "roberta-prelayernorm": ("lm_head.decoder.weight", "roberta_prelayernorm.embeddings.word_embeddings.weight"),
    "roc_bert": ("cls.predictions.decoder.weight", "roc_bert.embeddings.word_embeddings.weight"),
    "roformer": ("cls.predictions.decoder.weight", "roformer.embeddings.word_embeddings.weight"),
    "rwkv": ("head.weight", "rwkv.embeddings.weight"),
    "xlm": ("pred_layer.proj.weight", "transformer.embeddings.weight"),
    "xlnet": ("lm_loss.weight", "transformer.word_embedding.weight"),
}  # fmt: skip
_TIED_BY_NAME = ("lm_head.weight", "model.embed_tokens.weight")

# What else an untied model has that a tied one does not, and the tensor that it is a copy of.
_UNTIED_BIASES: Mapping[str, tuple[str, str]] = {
    "cls.predictions.decoder.weight": ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    "lm_head.decoder.weight": ("lm_head.decoder.bias", "lm_head.bias"),
}

# Matrices of the head that are not its projection onto the vocabulary.
_HEAD_TRANSFORMS: Mapping[str, str] = {
    **dict.fromkeys(
        ("bert", "big_bird", "ernie", "megatron-bert", "roc_bert", "roformer"), r"^cls\.predictions\.transform\."
    ),
    **dict.fromkeys(
        ("camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
        r"^lm_head\.(dense|layer_norm)\.",
    ),
    "distilbert": r"^vocab_transform\.",
    "electra": r"^generator_predictions\.",
    "modernbert-decoder": r"^lm_head\.",
}


@dataclass(frozen=True)
class Translation:
    """How a model of one family is read as a model of another one that computes the same."""

    names: tuple[tuple[str, str], ...]  # patterns and replacements, all applied, in this order
    keys: Mapping[str, str]  # config keys of the one and of the other
    fixed: Mapping[str, Any]  # config values that the one has built in
    zeros: frozenset[str]  # tensors of the other that the one has not: zeros change nothing


_TRANSLATIONS: Mapping[tuple[str, str], Translation] = {
    ("distilbert", "bert"): Translation(
        names=(
            (r"^distilbert\.embeddings\.", "bert.embeddings."),
            (r"^distilbert\.transformer\.layer\.", "bert.encoder.layer."),
            (r"\.attention\.q_lin\.", ".attention.self.query."),
            (r"\.attention\.k_lin\.", ".attention.self.key."),
            (r"\.attention\.v_lin\.", ".attention.self.value."),
            (r"\.attention\.out_lin\.", ".attention.output.dense."),
            (r"\.sa_layer_norm\.", ".attention.output.LayerNorm."),
            (r"\.ffn\.lin1\.", ".intermediate.dense."),
            (r"\.ffn\.lin2\.", ".output.dense."),
            (r"\.output_layer_norm\.", ".output.LayerNorm."),
            (r"^vocab_transform\.", "cls.predictions.transform.dense."),
            (r"^vocab_layer_norm\.", "cls.predictions.transform.LayerNorm."),
            (r"^vocab_projector\.bias$", "cls.predictions.bias"),
            (r"^vocab_projector\.weight$", "cls.predictions.decoder.weight"),
        ),
        keys={
            "n_layers": "num_hidden_layers",
            "n_heads": "num_attention_heads",
            "activation": "hidden_act",
            "tie_word_embeddings": "tie_word_embeddings",
            "vocab_size": "vocab_size",
        },
        fixed={"layer_norm_eps": 1e-12},
        zeros=frozenset({"bert.embeddings.token_type_embeddings.weight"}),
    )
}


def canonical_name(model_type: str, name: str) -> str | None:
    """The name a tensor has in this family, or None for one that is no weight of a language model."""
    name = _replaced(name, _RENAMED.get(model_type, ()))
    dropped = _DROPPED.get(model_type)
    return None if re.search(_DROPPED_ALWAYS, name) or (dropped and re.search(dropped, name)) else name


def unwrapped(name: str) -> str:
    """A tensor's name without what a wrapper has put around it."""
    return _replaced(name, WRAPPERS)


def trunk_prefix(model_type: str) -> str:
    """What the names of a model's trunk begin with, where head and trunk are one model."""
    return next((prefix for prefix, families in _TRUNKS.items() if model_type in families), "model.")


def translation(source: str, target: str) -> Translation | None:
    """How models of type `source` are read as models of type `target`, where they can be."""
    return _TRANSLATIONS.get((source, target))


def translated_name(rows: Translation, name: str) -> str:
    return _replaced(name, rows.names)


def translated_config(rows: Translation, config: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """As much of a config as the other family's config must agree with."""
    renamed = {rows.keys[key]: value for key, value in config.items() if key in rows.keys}
    return {**renamed, **rows.fixed, "model_type": model_type}


def tied_names(model_type: str) -> tuple[str, str]:
    """The name of the head's matrix, and that of the embedding that it is tied to in a tied model."""
    return _TIED_NAMES.get(model_type, _TIED_BY_NAME)


def untied_head(model_type: str) -> tuple[tuple[str, str | None], ...]:
    """Names that untying adds to a model, each with the tensor it is a copy of (None: the token embedding)."""
    head, _ = tied_names(model_type)
    bias = _UNTIED_BIASES.get(head)
    return ((head, None),) if bias is None else ((head, None), bias)


def is_head(model_type: str, name: str) -> bool:
    """Whether a tensor outside of the trunk belongs to the head of a language model of this family."""
    first = tied_names(model_type)[0].split(".")[0]
    return name.startswith((f"{first}.", "vocab_")) or is_head_transform(model_type, name)


def is_head_transform(model_type: str, name: str) -> bool:
    """Whether a head tensor works on hidden states, in front of the projection onto the vocabulary."""
    pattern = _HEAD_TRANSFORMS.get(model_type)
    return pattern is not None and re.search(pattern, name) is not None


def _replaced(name: str, rows: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rows:
        name = re.sub(pattern, replacement, name)
    return name
