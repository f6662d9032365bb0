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

Behind the layers: the final norm; for losses on pairs, what is read inside of the teacher, what the formula keeps
(`boomspec/core/losses`), and the block that it works on where it takes gradients in the forward pass. Losses of logits
work on chunks and tiles of tokens (runners/training/head.py), which are counted in `_chunk`.

Moments that are compared: a chunk of the head; a block of relations; the backward pass of the last layer; the last
gradient of a step (the fused update of AdamW needs nothing beside it). With activation checkpointing a layer keeps its
input only, and one layer's activations exist at a time. Where each of several workers has a copy (DDP), all gradients
are there all the time. Where a model is cut over workers (FSDP), each holds its share, and layers are whole while they
compute; that follows from how `runners/training/parallel.py` cuts, and has not been measured on GPUs. The interpreter
and its libraries (some hundred MB of host memory) are not counted.
"""

from dataclasses import dataclass
from functools import lru_cache

from boomspec.core.model_costs import LayerCosts, ModelCosts
from boomspec.core.work_sizes import CHUNK_LOGITS, LEAST_CHUNK, TILE_LOGITS


@dataclass(frozen=True)
class TrainingStep:
    """What a training step's memory follows from, beside the models."""

    tokens: int  # of one micro batch
    micro_batches: int
    bf16: bool
    on_gpu: bool
    frozen_embedding: bool = False
    working: int = 1  # of losses that read logits: copies of a tile's logits in fp32; one of cross-entropy
    teacher_logits: int = 0  # teachers whose logits are read
    held: int = 0  # elements for each token of what is read inside of the teacher: states, attention
    compared: int = 0  # bytes that losses on pairs keep for each token
    block: int = 0  # bytes that such a loss works on at once, where it takes gradients block by block
    beside: int = 0  # parameters that losses train beside the student
    passes: int = 1  # through the head
    checkpointing: bool = False  # of activations: each layer's are computed again in its backward pass
    ddp: bool = False  # on several workers; gradients then lie in buckets that stay
    shards: int = 1  # workers over which the student is cut
    teacher_shards: int = 1


@lru_cache(1 << 12)
def training(model: ModelCosts, step: TrainingStep, teachers: tuple[ModelCosts, ...] = ()) -> dict[str, int]:
    """Bytes at the largest moment of a training step, by what holds them."""
    narrow, cut, layers = 2 if step.bf16 else 4, step.shards, model.layers
    trained = model.parameters - (model.embedding if step.frozen_embedding else 0)
    head = 0 if model.tied and step.frozen_embedding else model.projection  # elements of the head that is trained
    always = {"weights": 4 * model.parameters // cut, "optimizer": 8 * trained // cut}
    if step.beside:
        always["losses"] = 16 * step.beside  # with moments and gradients
    for number, teacher in enumerate(teachers, start=1):
        held = teacher.parameters
        if step.teacher_shards > 1:  # its layers are cut, two of them are whole at a time
            sizes = [layer.parameters for layer in teacher.layers]
            held += sum(sizes) // step.teacher_shards - sum(sizes) + 2 * max(sizes)
        always[f"teacher {number}" if number > 1 else "teacher"] = held * narrow
    if cut > 1:  # parameters and gradients of what is not a layer, and of the layer that computes and the next one
        rest = model.embedding + model.norm + model.own_head
        always["gathered"] = 8 * (rest + 2 * max(layer.parameters for layer in layers))
    # The bf16 copies of weights, while a chunk of the head computes and in a layer's backward pass.
    head_cache = cache = 2 * (model.matrices + head) if step.bf16 else 0
    if step.bf16 and cut > 1 and step.checkpointing:
        head_cache, cache = 2 * head, 2 * max(layer.matrices for layer in layers)
    gradients = 4 * trained // cut if step.micro_batches > 1 or step.ddp else 0
    of_layers = [_kept(model, layer, step) for layer in layers]
    again = max(of_layers) if step.checkpointing else 0
    state = step.tokens * model.hidden
    kept = 4 * state * len(of_layers) if step.checkpointing else step.tokens * sum(of_layers)
    kept += 4 * state * (3 if layers[-1].plain_norms else 2) + step.tokens * step.compared
    teacher_states = step.tokens * max(step.held, model.hidden * min(1, step.teacher_logits)) * narrow
    if step.teacher_logits:
        teacher_states += step.tokens * narrow * sum(other.hidden for other in teachers[1:])
    # Of the last layer's MLP: two gradients, and that of a matrix.
    backward = step.tokens * 2 * layers[-1].inner * narrow + layers[-1].largest * (6 if step.bf16 else 4)
    chunk, temporary = _chunk(model, step, 4 * head), 0 if step.frozen_embedding else 4 * model.projection
    moments = [
        {"gradients": gradients, "activations": kept + teacher_states, "head": chunk, "cache": head_cache},
        {"gradients": gradients, "activations": kept + teacher_states, "relations": step.block, "cache": head_cache},
        {"gradients": max(gradients, 4 * head), "activations": kept + step.tokens * again + backward, "cache": cache},
        {"gradients": 4 * trained // cut, "temporary": temporary},
    ]
    moment = max(moments, key=lambda moment: sum(moment.values()))
    return {name: count for name, count in {**always, **moment}.items() if count}


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
    return norms + linear + attention + narrow * layer.inner * (4 if layer.gated else 2) + in_steps


def _chunk(model: ModelCosts, step: TrainingStep, matrix: int) -> int:
    """Bytes of the head's terms beside the kept activations: a chunk's logits, a tile's losses, gradients being summed.

    Logits of one element each: the student's, whose place their gradient takes, and the teacher's. Of a tile: fp32
    copies of bf16 ones, and what the losses work on. `matrix`: bytes of the gradient of the head's matrix.
    """
    if not step.working:
        return 0
    narrow, place = 2 if step.bf16 else 4, "cuda" if step.on_gpu else "cpu"
    rows = min(step.tokens, max(LEAST_CHUNK[place], CHUNK_LOGITS // model.vocabulary))
    tile = min(rows, max(1, TILE_LOGITS[place] // model.vocabulary))
    copies, logits = (1 + step.teacher_logits if step.bf16 else 0), 1 + step.teacher_logits
    of_tile = 4 * (copies + step.working)
    part = matrix // 2 if step.bf16 else 0  # of the chunk at hand; in fp32 the product is added in place
    summed = step.tokens * model.hidden * (4 + (narrow if step.bf16 else 0)) + matrix
    return (
        step.passes * summed + model.vocabulary * rows * narrow * logits + max(tile * model.vocabulary * of_tile, part)
    )
