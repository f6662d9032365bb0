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

# No weights of a language model: masks and frequencies that older versions stored, heads of other tasks.
_DROPPED_ALWAYS = r"\brotary_emb\.inv_freq$|\bembeddings\.position_ids$"
_DROPPED: Mapping[str, str] = {
    "gpt2": r"\.attn\.(masked_)?bias$",
    "gpt_neo": r"\.attn\.attention\.(masked_)?bias$",
    "gpt_neox": r"\.attention\.(masked_)?bias$",
    "bert": r"^bert\.pooler\.|^cls\.seq_relationship\.",
}

# Families whose layers end in a norm of their own, so that none stands between the last layer and the head.
NO_FINAL_NORM = frozenset({"bert", "distilbert"})

# Families that tie head and embedding where the config says nothing.
TIED_BY_DEFAULT = frozenset(
    {"bert", "bloom", "cohere", "cohere2", "distilbert", "falcon", "gemma", "gemma2", "gemma3_text", "gpt2"}
    | {"gpt_bigcode", "gpt_neo", "mpt", "opt", "smollm3", "starcoder2"}
)

# What an untied model has that a tied one does not: name, and the tensor it is a copy of (None: the embedding).
_UNTIED: Mapping[str, tuple[tuple[str, str | None], ...]] = {
    "gpt_neox": (("embed_out.weight", None),),
    "bert": (("cls.predictions.decoder.weight", None), ("cls.predictions.decoder.bias", "cls.predictions.bias")),
    "distilbert": (("vocab_projector.weight", None),),
}
_UNTIED_BY_DEFAULT: tuple[tuple[str, str | None], ...] = (("lm_head.weight", None),)

# Matrices of the head that are not its projection onto the vocabulary.
_HEAD_TRANSFORMS: Mapping[str, str] = {"bert": r"^cls\.predictions\.transform\.", "distilbert": r"^vocab_transform\."}


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


def translation(source: str, target: str) -> Translation | None:
    """How models of type `source` are read as models of type `target`, where they can be."""
    return _TRANSLATIONS.get((source, target))


def translated_name(rows: Translation, name: str) -> str:
    return _replaced(name, rows.names)


def translated_config(rows: Translation, config: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """As much of a config as the other family's config must agree with."""
    renamed = {rows.keys[key]: value for key, value in config.items() if key in rows.keys}
    return {**renamed, **rows.fixed, "model_type": model_type}


def untied_head(model_type: str) -> tuple[tuple[str, str | None], ...]:
    """Names that untying adds to a model, each with the tensor it is a copy of (None: the token embedding)."""
    return _UNTIED.get(model_type, _UNTIED_BY_DEFAULT)


def is_head_transform(model_type: str, name: str) -> bool:
    """Whether a head tensor works on hidden states, in front of the projection onto the vocabulary."""
    pattern = _HEAD_TRANSFORMS.get(model_type)
    return pattern is not None and re.search(pattern, name) is not None


def _replaced(name: str, rows: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rows:
        name = re.sub(pattern, replacement, name)
    return name
