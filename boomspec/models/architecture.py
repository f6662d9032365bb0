"""Compute the tensors of a small Llama decoder that a spec trains itself, before it exists."""

from typing import Any

from boomspec.core.tasks import Architecture
from boomspec.models.checkpoint import TensorEntry
from boomspec.models.facts import ModelFacts, model_facts


def llama_facts(architecture: Architecture) -> ModelFacts:
    """Facts of `transformers.LlamaForCausalLM` in fp32, from its dimensions alone."""
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
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (a.vocabulary, a.hidden_size)}
    for i in range(a.layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (a.hidden_size,)
    if not a.tied:
        shapes["lm_head.weight"] = (a.vocabulary, a.hidden_size)
    config: dict[str, Any] = {
        "model_type": "llama",
        "num_hidden_layers": a.layers,
        "hidden_size": a.hidden_size,
        "num_attention_heads": a.attention_heads,
        "num_key_value_heads": a.key_value_heads,
        "max_position_embeddings": a.context,
        "tie_word_embeddings": a.tied,
    }
    return model_facts(config, {n: TensorEntry(n, "F32", s) for n, s in shapes.items()}, "teacher.pretrain")
