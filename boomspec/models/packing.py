"""Whether the documents of a packed row can be kept apart in a model, as far as its config says it.

What a config does not say is tried on tiny weights before a run, and on the model itself when it is loaded.
"""

import re
from typing import Any

from boomspec.models.facts import ModelFacts
from boomspec.models.families import row_of

_ALIBI = re.compile(r"bloom")  # its class makes the bias of its attention from a mask of padding alone
_STATE_SPACE = re.compile(r"mamba|jamba|bamba|zamba|rwkv|recurrent|falcon_h1|xlstm|granitemoehybrid|plamo|nemotron_h")
# Of `layer_types`: kinds of layers that see an earlier document through a state, or attend to pieces of a fixed grid.
_LAYERS = {"linear_attention", "mamba", "mamba2", "conv", "recurrent", "chunked_attention", "state_space", "hybrid"}
_BOTH_WAYS = ("use_bidirectional_attention", "is_encoder_decoder")


def refuse_apart(facts: ModelFacts) -> str | None:
    """Why the documents of a row cannot be kept apart in this model; None where nothing speaks against it."""
    kind, config = facts.model_type, facts.config
    row = row_of(kind)
    if row.masked or row.encoder_decoder or any(config.get(name) for name in _BOTH_WAYS):
        return f"a {kind} model reads its text in both directions"
    if _ALIBI.search(kind) or (kind == "falcon" and config.get("alibi")):
        return f"a {kind} model takes no positions: the bias of its attention (ALiBi) is counted over the whole row"
    if _STATE_SPACE.search(kind):
        return f"a {kind} model carries a state from one document to the next"
    if found := sorted(_LAYERS & _layer_kinds(config)):
        return f"this {kind} model has layers of the kind '{found[0]}', which see more than one document"
    return None


def _layer_kinds(config: Any) -> set[str]:
    named = [config.get(key) for key in ("layer_types", "layers_block_type")]
    return {str(kind) for kinds in named if isinstance(kinds, list | tuple) for kind in kinds}
