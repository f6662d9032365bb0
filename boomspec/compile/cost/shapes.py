"""Compute a model's FLOPs and cost inputs from its tensor shapes, without per-architecture code.

Every two-dimensional weight of a layer is a matrix product on each token. How wide queries and keys are and whether the
MLP is gated, which attention's operations and the memory of activations need, is checked against the shapes: a layer
that does not fit is an `UnknownCostError`, with the reason.

Operations are counted as in torch's FlopCounterMode: a multiply-add is two; matrix products and attention count; norms,
activations, softmaxes and the optimiser do not. For one token, with P elements in the layers' matrices, queries of
width q, T tokens a sequence and a projection of D x V:

    forward of a layer      2 P + 4 T q       queries x keys and scores x values in full: the causal half that a kernel
                                              may leave out is counted, by torch and here
    backward of a layer     4 P + 10 T q      gradients of inputs and weights; attention computes its scores again
    head                    2 D V forward, 2 D V for the gradient of the hidden state, 2 D V for that of the matrix
                            (not of a frozen one). The gradients are taken inside of the forward pass, chunk by chunk:
                            nothing is computed twice

A frozen embedding saves nothing in the layers: the first norm's weight is trained, and stands before them.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from boomspec.core.layers import STUDENT, TEACHER, LayerPlan
from boomspec.core.model_costs import LayerCosts, ModelCosts
from boomspec.models.checkpoint import TensorEntry
from boomspec.models.facts import ModelFacts
from boomspec.models.families import row_of

# Activations that transformers computes in steps, each of which keeps a tensor: how many more than a native one
# keeps. gelu_new: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) keeps tanh, 0.5 x and 1 + tanh beside x.
_KEPT_BY_STEPS = {"gelu_new": 3, "gelu_fast": 3, "quick_gelu": 1}
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function", "activation")
_OTHER_ATTENTION = {
    "kv_lora_rank": "its attention is latent",
    "attn_logit_softcapping": "its attention keeps all scores",
    "linear_num_key_heads": "its attention is linear",
    "alibi": "its attention has a bias",
}


class UnknownCostError(Exception):
    """Costs do not follow from shapes; the text says why."""


@lru_cache(1 << 12)
def assembled(plan: LayerPlan, teacher: ModelCosts, student: ModelCosts | None, *, tied: bool) -> ModelCosts:
    """The model of a layer plan. Everything is stored as the teacher's is."""
    owners = {TEACHER: teacher, STUDENT: student or teacher}
    layers = tuple(owners[layer.owner].layers[layer.index] for layer in plan)
    head = 0 if tied else teacher.own_head or teacher.projection
    rest = (teacher.embedding + teacher.norm + head) * teacher.width
    return replace(teacher, layers=layers, own_head=head, rest_bytes=rest)


def model_of(facts: ModelFacts) -> ModelCosts:
    """The model that facts describe. Raises UnknownCostError."""
    config = {**(facts.config.get("text_config") or {}), **facts.config}
    for key, reason in _OTHER_ATTENTION.items():
        if config.get(key):
            raise UnknownCostError(reason)
    heads = next((config[name] for name in _HEADS if isinstance(config.get(name), int)), None)
    if heads is None:
        raise UnknownCostError(f"its config.json has no {_HEADS[0]}")
    vocabulary, hidden = facts.token_embedding.shape[:2]
    size = config.get("head_dim") or hidden // heads
    keys = (config.get("num_key_value_heads") or heads) * size
    projections = [tensor for tensor in facts.head if len(tensor.shape) == 2]
    activation = str(next((config[name] for name in _ACTIVATIONS if config.get(name)), ""))
    layers: dict[tuple[Any, ...], LayerCosts] = {}  # most are alike
    kinds = [tuple((tensor.shape, tensor.dtype) for tensor in tensors) for tensors in facts.layers]
    for kind, tensors in zip(kinds, facts.layers, strict=True):
        if kind not in layers:
            layers[kind] = _layer(tensors, hidden, heads * size, keys, heads)
    return ModelCosts(
        layers=tuple(layers[kind] for kind in kinds),
        hidden=hidden,
        vocabulary=projections[-1].shape[0] if projections else vocabulary,
        embedding=sum(tensor.elements for tensor in facts.embedding),
        norm=sum(tensor.elements for tensor in facts.norm),
        own_head=0 if facts.tied else sum(tensor.elements for tensor in facts.head),
        rest_bytes=sum(tensor.bytes for tensor in (*facts.embedding, *facts.norm, *facts.head)),
        width=facts.embedding[0].bytes // max(1, facts.embedding[0].elements),
        rotary=sum(len(tensor.shape) == 2 for tensor in facts.embedding) == 1,
        parallel=bool(config.get("use_parallel_residual", row_of(facts.model_type).parallel)),
        kept_by_steps=_KEPT_BY_STEPS.get(activation, 0),
    )


def _layer(tensors: Sequence[TensorEntry], hidden: int, queries: int, keys: int, heads: int) -> LayerCosts:
    if any(len(tensor.shape) > 2 or ".experts." in tensor.name for tensor in tensors):
        raise UnknownCostError("its layers hold more than matrices on every token (experts or convolutions)")
    matrices = [tensor for tensor in tensors if len(tensor.shape) == 2]
    attention = [tensor for tensor in matrices if _in_attention(tensor.name)]
    inner = [tensor for tensor in matrices if not _in_attention(tensor.name)]
    if sum(tensor.elements for tensor in attention) != 2 * hidden * (queries + keys):
        raise UnknownCostError("its attention is not made of queries, keys, values and an output alone")
    down = min((math.prod(tensor.shape) // hidden for tensor in inner), default=0)
    parts, rest = divmod(sum(tensor.elements for tensor in inner), max(1, down * hidden))
    if rest or parts not in (2, 3):
        raise UnknownCostError("its MLP has neither two nor three matrices")
    norms = [tensor.name for tensor in tensors if len(tensor.shape) == 1 and tensor.name.endswith(".weight")]
    of_heads = [name for name in norms if _in_attention(name) and ("q_" in name or "k_" in name)]
    names = {tensor.name for tensor in tensors}
    return LayerCosts(
        matrices=sum(tensor.elements for tensor in matrices),
        parameters=sum(tensor.elements for tensor in tensors),
        bytes=sum(tensor.bytes for tensor in tensors),
        largest=max(tensor.elements for tensor in tensors),
        queries=queries,
        keys=keys,
        heads=heads,
        fused=len(attention) == 2,
        inner=down,
        gated=parts == 3,
        inner_linears=len(inner) - 1,
        norms=len(norms) - len(of_heads),
        head_norms=bool(of_heads),
        plain_norms=not any(name.removesuffix("weight") + "bias" in names for name in norms),
    )


def _in_attention(name: str) -> bool:
    parts = name.lower().split(".")
    return any("attn" in part or "attention" in part for part in parts) and not any("layernorm" in p for p in parts)
