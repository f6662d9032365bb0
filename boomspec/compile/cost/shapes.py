"""What costs follow from of a model: the shapes of its tensors, and how wide its attention is. No family names.

Every two-dimensional weight of a layer is a matrix product on each token, whatever it is called. What else is read
off a layer (how wide queries and keys are, whether its MLP is gated) serves the attention's operations and the memory
of activations, and is checked against the shapes: a layer that does not fit is an `UnknownCostError`, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boomspec.compile.cost import flops, memory
from boomspec.core.layers import STUDENT, TEACHER, Owner, Plan
from boomspec.models.checkpoint import TensorEntry
from boomspec.models.facts import ModelFacts

# Activations that transformers computes in steps, each of which keeps a tensor: how many more than a native one
# keeps. gelu_new: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) keeps tanh, 0.5 x and 1 + tanh beside x.
_KEPT_BY_STEPS = {"gelu_new": 3, "gelu_fast": 3, "quick_gelu": 1}
_OTHER_ATTENTION = {
    "kv_lora_rank": "its attention is latent",
    "attn_logit_softcapping": "its attention keeps all scores",
    "linear_num_key_heads": "its attention is linear",
    "alibi": "its attention has a bias",
}


class UnknownCostError(Exception):
    """Costs cannot be told from shapes; the text says why."""


@dataclass(frozen=True)
class Layer:
    """One decoder layer. Widths are in elements of one token."""

    matrices: int  # elements of all two-dimensional weights
    parameters: int
    bytes: int  # as stored
    largest: int  # elements of the largest tensor
    queries: int  # heads x size of a head
    keys: int  # heads that keep keys and values x size of a head
    heads: int
    fused: bool  # queries, keys and values come from one matrix
    inner: int  # width inside the MLP
    gated: bool
    inner_linears: int  # matrices that read the MLP's input
    norms: int  # over the whole width
    head_norms: bool  # queries and keys have norms of their own
    plain_norms: bool  # norms without a bias (RMSNorm) are computed in steps


@dataclass(frozen=True, eq=False)
class Model:
    """A causal language model as far as costs go. Two that are the same object cost the same."""

    layers: tuple[Layer, ...]
    hidden: int
    vocabulary: int
    embedding: int  # elements of everything in front of the layers
    norm: int  # elements behind the layers
    own_head: int  # elements of a head of its own; 0 where it is tied
    rest_bytes: int  # of embedding, norm and head, as stored
    width: int  # bytes of a stored element, of most
    rotary: bool
    parallel: bool  # attention and MLP read the same state
    kept_by_steps: int  # tensors that the MLP's activation keeps beyond a native one's

    @property
    def tied(self) -> bool:
        return self.own_head == 0

    @property
    def parameters(self) -> int:
        return self.embedding + self.norm + self.own_head + sum(layer.parameters for layer in self.layers)

    @property
    def bytes(self) -> int:
        return self.rest_bytes + sum(layer.bytes for layer in self.layers)

    @property
    def matrices(self) -> int:
        """Elements of the weights that a token is multiplied with in the layers."""
        return sum(layer.matrices for layer in self.layers)

    @property
    def projection(self) -> int:
        """Elements of the matrix from hidden states to logits."""
        return self.hidden * self.vocabulary

    @property
    def depth(self) -> int:
        return len(self.layers)

    def forward(self, length: int) -> int:
        return flops.forward(self, length)

    def head(self) -> int:
        return 2 * self.projection

    def measuring(self, *, bf16: bool, tokens: int) -> dict[str, int]:
        return dict(memory.measuring(self, bf16=bf16, tokens=tokens))


class Models:
    """Models made of facts and of each other; the same parts give the same object."""

    def __init__(self) -> None:
        self._of_facts: dict[int, tuple[ModelFacts, Model | UnknownCostError]] = {}
        self._asked: dict[tuple[Any, ...], Model] = {}
        self._made: dict[tuple[Any, ...], Model] = {}
        self._models: dict[tuple[Any, ...], Model] = {}
        self._layers: dict[Layer, Layer] = {}

    def of(self, facts: ModelFacts) -> Model:
        """The model that facts describe. Raises UnknownCostError."""
        if id(facts) not in self._of_facts:
            try:
                found: Model | UnknownCostError = self._same(self._read(facts))
            except UnknownCostError as error:
                found = error
            self._of_facts[id(facts)] = facts, found  # held, so that its id is not another's
        found = self._of_facts[id(facts)][1]
        if isinstance(found, UnknownCostError):
            raise found
        return found

    def made(self, plan: Plan, owners: Mapping[Owner, Model], *, tied: bool) -> Model:
        """The model of a layer plan. Everything is stored as the teacher's is."""
        base = owners.get(TEACHER) or owners[STUDENT]
        asked = (plan, tied, *owners.values())
        if asked in self._asked:
            return self._asked[asked]
        layers = tuple(owners[layer.owner].layers[layer.index] for layer in plan)
        key = (base, tied, *map(id, layers))
        if key not in self._made:
            head = 0 if tied else base.own_head or base.projection
            rest = base.embedding + base.norm + head
            made = Model(**{**vars(base), "layers": layers, "own_head": head, "rest_bytes": rest * base.width})
            self._made[key] = self._same(made)
        self._asked[asked] = self._made[key]
        return self._made[key]

    def _same(self, model: Model) -> Model:
        """The object that stands for all models that are equal to this one."""
        values = {**vars(model), "layers": tuple(map(id, model.layers))}
        return self._models.setdefault(tuple(values.values()), model)

    def _read(self, facts: ModelFacts) -> Model:
        config = {**(facts.config.get("text_config") or {}), **facts.config}
        for key, reason in _OTHER_ATTENTION.items():
            if config.get(key):
                raise UnknownCostError(reason)
        hidden, vocabulary = facts.token_embedding.shape[1], facts.token_embedding.shape[0]
        heads = _number(config, "num_attention_heads", "n_head", "n_heads")
        size = config.get("head_dim") or hidden // heads
        keys = (config.get("num_key_value_heads") or heads) * size
        projections = [tensor for tensor in facts.head if len(tensor.shape) == 2]
        rest = [*facts.embedding, *facts.norm, *facts.head]
        return Model(
            layers=self._stack(facts, hidden, heads * size, keys, heads),
            hidden=hidden,
            vocabulary=projections[-1].shape[0] if projections else vocabulary,
            embedding=sum(tensor.elements for tensor in facts.embedding),
            norm=sum(tensor.elements for tensor in facts.norm),
            own_head=0 if facts.tied else sum(tensor.elements for tensor in facts.head),
            rest_bytes=sum(tensor.bytes for tensor in rest),
            width=facts.embedding[0].bytes // max(1, facts.embedding[0].elements),
            rotary=sum(len(tensor.shape) == 2 for tensor in facts.embedding) == 1,
            parallel=bool(config.get("use_parallel_residual", facts.model_type == "gpt_neox")),
            kept_by_steps=_KEPT_BY_STEPS.get(_activation(config), 0),
        )

    def _stack(self, facts: ModelFacts, hidden: int, queries: int, keys: int, heads: int) -> tuple[Layer, ...]:
        stack, alike = [], dict[tuple[Any, ...], Layer]()  # most layers are
        for tensors in facts.layers:
            kind = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
            if kind not in alike:
                layer = _layer(tensors, hidden, queries, keys, heads)
                alike[kind] = self._layers.setdefault(layer, layer)
            stack.append(alike[kind])
        return tuple(stack)


def _layer(tensors: Sequence[TensorEntry], hidden: int, queries: int, keys: int, heads: int) -> Layer:
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
    norms = [tensor for tensor in tensors if len(tensor.shape) == 1 and tensor.name.endswith(".weight")]
    of_heads = [
        tensor for tensor in norms if _in_attention(tensor.name) and ("q_" in tensor.name or "k_" in tensor.name)
    ]
    names = {tensor.name for tensor in tensors}
    return Layer(
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
        plain_norms=not any(norm.name.removesuffix("weight") + "bias" in names for norm in norms),
    )


def _in_attention(name: str) -> bool:
    parts = name.lower().split(".")
    return any("attn" in part or "attention" in part for part in parts) and not any("layernorm" in p for p in parts)


def _number(config: Mapping[str, Any], *names: str) -> int:
    found = next((config[name] for name in names if isinstance(config.get(name), int)), None)
    if found is None:
        raise UnknownCostError(f"its config.json has no {names[0]}")
    return int(found)


def _activation(config: Mapping[str, Any]) -> str:
    names = ("hidden_act", "hidden_activation", "activation_function", "activation")
    return str(next((config[name] for name in names if config.get(name)), ""))
