"""Estimate peak memory of a training step or an evaluation from tensor shapes.

What autograd keeps of a layer until its backward pass, in elements of one token (D hidden width, q and k widths of
queries and of keys, I width inside the MLP, n norms), follows from what each operation needs of its input and output,
as in Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1), here without dropout and without stored scores:

    norms           D each for the input (one in all, where attention and MLP read the same); an RMSNorm, which is
                    computed in steps, keeps D more: the normalised state in front of its weight
    linear inputs   D for attention and D for the MLP
    attention       q + 2k (rotated queries and keys, values) and q for its result, which the output matrix reads too,
                    and one fp32 number for each head. Where one matrix makes all three, rotated ones are copies
                    beside it: 2q + 3k. With norms of their own, queries and keys keep input and normalised state
    MLP             gated: 4 I (gate, its activation, up, their product); else 2 I (in front of the activation, behind
                    it), and I more for every tensor that an activation keeps which is computed in steps

Elements have 4 bytes. Under bf16 autocast the residual stream and the norms stay fp32, what lies between two matrix
products has 2 bytes, each linear keeps a bf16 copy of its own of an fp32 input, and the bf16 copies of the weights
live until the step's last backward ("cache"); where the model is cut, each linear keeps its own, so with activation
checkpointing there are those of one layer alone, or of the head while that computes.

Behind the layers: the final norm; for losses of hidden states, of each pair, the teacher's state, what the formula
keeps (`boomspec/core/losses`) and the places of the labels (two 8-byte indices a token). Losses of logits work on
chunks of tokens (runners/training/losses.py), whose copies of the logits are counted in `_chunk`.

Moments that are compared: a chunk of the head; the backward pass of the last layer; the last gradient of a step;
AdamW's update. With activation checkpointing a layer keeps its input only, and one layer's activations exist at a
time. Where each of several workers has a copy (DDP), all gradients are there all the time. Where a model is cut over
workers (FSDP), each holds its share, and layers are whole while they compute; that follows from how
`runners/training/parallel.py` cuts, and has not been measured on GPUs. The interpreter and its libraries (some
hundred MB of host memory) are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from boomspec.core.work_sizes import CHUNK_LOGITS, LEAST_CHUNK, MEASURED_LOGITS

if TYPE_CHECKING:
    from boomspec.compile.cost.shapes import LayerCosts, ModelCosts

_REMEMBERED = 1 << 12

Memory = dict[str, int]


@dataclass(frozen=True)
class TrainingStep:
    """What a training step's memory follows from, beside the models."""

    tokens: int  # of one micro batch
    micro_batches: int
    bf16: bool
    on_gpu: bool
    frozen_embedding: bool = False
    working: int = 1  # of losses that read logits: copies of a chunk's logits in fp32 while they are computed
    kept: int = 1  # and those kept until their backward pass; those of cross-entropy by default
    teacher_logits: bool = False
    pairs: int = 0  # of hidden states of the teacher that are held
    compared: int = 0  # bytes that losses of states keep for each token
    passes: int = 1  # through the head
    checkpointing: bool = False  # of activations: each layer's are computed again in its backward pass
    ddp: bool = False  # on several workers; gradients then lie in buckets that stay
    shards: int = 1  # workers over which the student is cut
    teacher_shards: int = 1


@lru_cache(_REMEMBERED)
def training(model: ModelCosts, step: TrainingStep, teacher: ModelCosts | None = None) -> Memory:
    """Bytes at the largest moment of a training step, by what holds them."""
    trained = model.parameters - (model.embedding if step.frozen_embedding else 0)
    head_trained = not (model.tied and step.frozen_embedding)
    cut = step.shards
    always = {"weights": 4 * model.parameters // cut, "optimizer": 8 * trained // cut}
    if teacher is not None:
        always["teacher"] = _frozen(teacher, step.teacher_shards) * (2 if step.bf16 else 4)
    if cut > 1:  # parameters and gradients of what is not a layer, and of the layer that computes and the next one
        rest = model.embedding + model.norm + model.own_head
        always["gathered"] = 8 * (rest + 2 * max(layer.parameters for layer in model.layers))
    head_cache, cache = _caches(model, step, head_trained)
    gradients = 4 * trained // cut if step.micro_batches > 1 or step.ddp else 0
    of_layers = [_kept(model, layer, step) for layer in model.layers]
    again = max(of_layers) if step.checkpointing else 0
    kept = step.tokens * (4 * model.hidden * len(of_layers) if step.checkpointing else sum(of_layers))
    kept += step.tokens * 4 * model.hidden * (3 if model.layers[-1].plain_norms else 2)
    state = step.tokens * model.hidden
    compared = step.tokens * step.compared
    teacher_states = max(step.pairs, int(step.teacher_logits)) * state * (2 if step.bf16 else 4)
    moments = [
        {
            "gradients": gradients,
            "activations": kept + compared + teacher_states,
            "head": _chunk(model, step, head_trained),
            "cache": head_cache,
        },
        {
            "gradients": max(gradients, 4 * model.projection if head_trained else 0),
            "activations": kept + compared + step.tokens * again + _backward(model.layers[-1], step),
            "cache": cache,
        },
        {
            "gradients": 4 * trained // cut,
            "temporary": 0 if step.frozen_embedding else 4 * model.hidden * model.vocabulary,
        },
        {"gradients": 4 * trained // cut, "temporary": _update(model, trained, step) // cut},
    ]
    largest = max(moments, key=lambda moment: sum(moment.values()))
    return {name: count for name, count in {**always, **largest}.items() if count}


def _frozen(teacher: ModelCosts, shards: int) -> int:
    """Elements of a teacher on one worker: its layers are cut, two of them are whole at a time."""
    if shards == 1:
        return teacher.parameters
    layers = sum(layer.parameters for layer in teacher.layers)
    whole = 2 * max(layer.parameters for layer in teacher.layers)
    return teacher.parameters - layers + layers // shards + whole


@lru_cache(_REMEMBERED)
def measuring(model: ModelCosts, *, bf16: bool, tokens: int) -> Memory:
    """Bytes at the largest moment of a forward pass over `tokens` tokens, without gradients."""
    width = 2 if bf16 else 4
    widest = max(3 * layer.inner + 2 * model.hidden for layer in model.layers)
    rows = min(tokens, max(1, MEASURED_LOGITS // model.vocabulary))
    logits = rows * model.vocabulary * 8  # in fp32, and their log-softmax
    hidden = tokens * model.hidden * width
    moments = [{"activations": tokens * widest * width}, {"activations": hidden, "head": logits}]
    largest = max(moments, key=lambda moment: sum(moment.values()))
    return {"weights": model.parameters * width, **largest}


def _caches(model: ModelCosts, step: TrainingStep, head_trained: bool) -> tuple[int, int]:
    """Bytes of the bf16 copies of weights: while a chunk of the head computes, and in a layer's backward pass."""
    if not step.bf16:
        return 0, 0
    head = 2 * model.projection if head_trained else 0
    if step.shards > 1 and step.checkpointing:
        return head, 2 * max(layer.matrices for layer in model.layers)
    return 2 * model.matrices + head, 2 * model.matrices + head


def _kept(model: ModelCosts, layer: LayerCosts, step: TrainingStep) -> int:
    """Bytes that autograd keeps of a layer for one token."""
    wide, narrow = 4, 2 if step.bf16 else 4
    inputs = 1 if model.parallel else layer.norms
    norms = wide * model.hidden * (inputs + layer.norms * layer.plain_norms)
    readers = (1 if layer.fused else 3) + layer.inner_linears
    linear = 2 * model.hidden * readers if step.bf16 else 4 * model.hidden * min(layer.norms, 2)
    values = layer.queries + 2 * layer.keys if layer.fused else layer.keys
    rotated = layer.queries + layer.keys if model.rotary or not layer.fused else 0
    attention = narrow * (values + rotated + layer.queries) + 4 * layer.heads
    if layer.head_norms:
        attention += (wide + narrow) * (layer.queries + layer.keys)
    # The powers in such an activation are taken in fp32 by CUDA's autocast, not by the CPU's.
    in_steps = layer.inner * model.kept_by_steps * (wide if step.on_gpu else narrow)
    mlp = narrow * layer.inner * (4 if layer.gated else 2) + in_steps
    return norms + linear + attention + mlp


def _chunk(model: ModelCosts, step: TrainingStep, head_trained: bool) -> int:
    """Bytes of the head's term beside the kept activations: a chunk's logits, and gradients that are being summed.

    Logits of one element each, in the forward pass: the student's, the teacher's, and what the losses work on. In the
    backward pass: what they keep, and three gradients.
    """
    narrow = 2 if step.bf16 else 4
    rows = min(step.tokens, max(LEAST_CHUNK["cuda" if step.on_gpu else "cpu"], CHUNK_LOGITS // model.vocabulary))
    if not step.working:
        return 0
    ahead = narrow * (1 + step.teacher_logits) + 4 * step.working
    back = 4 * step.kept + 12
    states = step.tokens * model.hidden * (8 + narrow * step.teacher_logits)
    matrix = 4 * model.projection if head_trained else 0
    earlier = (step.passes - 1) * (states + matrix)
    return earlier + states + matrix + max(rows * model.vocabulary * ahead, rows * model.vocabulary * back + matrix)


def _backward(layer: LayerCosts, step: TrainingStep) -> int:
    """Bytes in the backward pass of a layer's MLP beside what is kept: two gradients, and that of a matrix."""
    return step.tokens * 2 * layer.inner * (2 if step.bf16 else 4) + layer.largest * (6 if step.bf16 else 4)


def _update(model: ModelCosts, trained: int, step: TrainingStep) -> int:
    """Bytes of AdamW's update: the root of the second moments, of all parameters on a GPU, else of one at a time."""
    if step.on_gpu:
        return 4 * trained
    largest = max(layer.largest for layer in model.layers)
    return 8 * (largest if step.frozen_embedding else max(largest, model.projection))
