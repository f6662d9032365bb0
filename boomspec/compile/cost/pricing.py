"""What each task of a graph costs, from its record and the shapes of its models.

`priced` walks the nodes in their order and knows each one's model from those before it: a student is some of its
teacher's layers, a size is layers of both. Where something decides the cost that is not known before a run (how many
tokens held-out text has, how many requests lm-eval makes), the cost says so in `unknown`; `boomspec.plan.known_costs`
fills in what the store has by then. What cannot be read off shapes is never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from boomspec.compile.cost import flops, memory, searches
from boomspec.compile.cost.shapes import Model, Models, UnknownCostError
from boomspec.core.graph import Cost, Node, Source
from boomspec.core.layers import STUDENT, TEACHER, patchable, teacher_layers
from boomspec.core.losses import Losses
from boomspec.core.tasks import (
    Architecture,
    Baseline,
    Calibration,
    Dequantize,
    Distill,
    Evaluate,
    HeldOut,
    Interpolate,
    LayerChoice,
    PatchOrder,
    Precision,
    Pretrain,
    Recipe,
    Record,
    Search,
    Subset,
    Tokenize,
)
from boomspec.models.architecture import llama_facts
from boomspec.models.facts import ModelFacts, total_bytes
from boomspec.models.whole import rest_of

AFTER_TOKENIZE = "how many tokens the text has: known after tokenize"
REQUESTS = "how many requests lm-eval makes, and of what length"
_MERGES = "how many merges are tried"
_MICRO_BATCH, _BATCH_SIZE = 8, 8  # as in runners/training/loop.py, runners/tasks/evaluate.py; held by a test
_SIMILARITY_WINDOWS = 8  # as in runners/tasks/distill.py
_CHECKPOINTS = 3  # the two that are kept, and the one that is being written
_BUFFER = 2**18  # as in runners/assembly/checkpoint_writer.py
_SHARD = 2**31  # as in runners/tasks/dequantize.py
_HELD_LOGITS, _HELD_STATES = 2**30, 4 * 2**30  # as in runners/search

_REMEMBERED = 1 << 12  # a sweep's models are few

_MODELS = Models()  # of all graphs of this process: a sweep's experiments have the same few


def priced(
    nodes: Mapping[str, Node], sources: Mapping[str, Source], facts: Mapping[str, ModelFacts]
) -> dict[str, Node]:
    """The nodes, each with its cost. `facts` are those of the sources that are models, by id."""
    models: dict[str, Model | UnknownCostError] = {}
    for source_id, of_source in facts.items():
        try:
            models[source_id] = _MODELS.of(of_source)
        except UnknownCostError as error:
            models[source_id] = error
    width = max((_token_width(model.vocabulary) for model in models.values() if isinstance(model, Model)), default=4)
    found = {}
    for task_id, node in nodes.items():
        record, inputs = node.task.record, node.task.inputs
        owned = {role: models[i] for role, i in inputs.items() if i in models}
        unknown = next((model for model in owned.values() if isinstance(model, UnknownCostError)), None)
        try:
            if unknown is not None:
                models[task_id] = unknown
                raise unknown
            known = {role: model for role, model in owned.items() if isinstance(model, Model)}
            if (made := _made(node, known)) is not None:
                models[task_id] = made
            cost = _cost(node, made, known)
        except UnknownCostError as error:
            cost = Cost(unknown=str(error))
        if isinstance(record, Tokenize):
            cost = _tokenize(record, sources.get(inputs["text"]), width)
        if _keeps_rest(record):
            more = max((total_bytes(rest_of(of_source)) for of_source in facts.values()), default=0)
            cost = replace(cost, disk=cost.disk + more, read=cost.read + more)
        found[task_id] = replace(node, cost=cost)
    return found


def _keeps_rest(record: Record) -> bool:
    match record:
        case Interpolate(rest=rest) | Baseline(build=Subset(rest=rest)):
            return bool(rest)
    return False


def _made(node: Node, models: Mapping[str, Model]) -> Model | None:
    """The model that a task makes; None where it makes none."""
    match node.task.record:
        case Dequantize():
            return models["model"]
        case Pretrain(architecture=architecture):
            return _MODELS.of(_llama(architecture))
        case Distill(kept=kept):
            teacher = models["teacher"]
            return _MODELS.made(teacher_layers(kept), {TEACHER: teacher}, tied=teacher.tied)
        case Interpolate(plan=plan, tied=tied):
            return _MODELS.made(plan, {TEACHER: models["teacher"], STUDENT: models["student"]}, tied=tied)
        case Baseline(build=build):
            teacher = models["teacher"]
            plan = build.plan if isinstance(build, Subset) else teacher_layers(range(build.layers))
            return _MODELS.made(plan, {TEACHER: teacher}, tied=teacher.tied)
    return None


def _cost(node: Node, made: Model | None, models: Mapping[str, Model]) -> Cost:
    record, options, on_gpu = node.task.record, node.execution.options, node.execution.gpus > 0
    match record:
        case Dequantize():
            assert made is not None  # its parts are at most as large as what they become
            return Cost(memory={"buffers": min(_SHARD, made.bytes)}, disk=made.bytes, read=made.bytes)
        case Pretrain(recipe=recipe):
            assert made is not None
            return _training(made, None, recipe, options=options, on_gpu=on_gpu, pretrain=True)
        case Distill():
            assert made is not None
            return _distill(record, made, models["teacher"], options, on_gpu)
        case Search(choice=choice, calibration=calibration, precision=precision):
            rows = int(options.get("batch_size", _BATCH_SIZE))
            return _search(choice, calibration, precision, models["teacher"], models.get("student"), rows)
        case Baseline(build=build) if not isinstance(build, Subset):
            assert made is not None
            tokens = min(8, build.calibration.sequences) * build.calibration.sequence_length
            held = memory.measuring(models["teacher"], bf16=build.precision == "bf16", tokens=tokens)
            return Cost(memory=held, disk=made.bytes, read=models["teacher"].bytes, unknown=_MERGES)
        case Interpolate() | Baseline():
            assert made is not None
            return Cost(memory={"buffers": _BUFFER}, disk=made.bytes, read=made.bytes)
        case Evaluate():
            return _evaluate(record, models["model"], int(options.get("batch_size", _BATCH_SIZE)))
    return Cost()


def _distill(record: Distill, student: Model, teacher: Model, options: Mapping[str, Any], on_gpu: bool) -> Cost:
    faithful = record.faithful
    return _training(
        student,
        teacher,
        record.recipe,
        options=options,
        on_gpu=on_gpu,
        losses=record.losses,
        frozen=not record.train_embedding,
        padding=faithful is not None and faithful.padding,
        kl_apart=faithful is not None and faithful.kl_on_padding,
    )


def _training(
    model: Model,
    teacher: Model | None,
    recipe: Recipe,
    *,
    options: Mapping[str, Any],
    on_gpu: bool,
    pretrain: bool = False,
    losses: Losses | None = None,
    frozen: bool = False,
    padding: bool = False,
    kl_apart: bool = False,
) -> Cost:
    """Cost of a training. `kl_apart`: KL takes a pass of its own through the head, over padding, too."""
    entropy = pretrain or (losses is not None and losses.cross_entropy is not None)
    kl = losses is not None and losses.kl is not None
    cosine = losses.hidden_cosine if losses is not None else None
    apart = kl_apart and kl
    length, trained = recipe.sequence_length, not (model.tied and frozen)
    workers, again = int(options.get("workers", 1)), bool(options.get("activation_checkpointing", False))
    cut = options.get("parallel") == "fsdp"
    rows = -(-recipe.sequences // workers)  # of a step on one worker
    micro_batch = min(int(options.get("micro_batch", _MICRO_BATCH)), rows)
    once = flops.head_and_gradients(model, trained=trained)
    each = flops.forward_and_backward(model, length) + (flops.forward(model, length) if again else 0)
    labelled = once if entropy or (kl and not apart) else 0  # for each token that has a label
    if apart:
        each += once + (flops.head(teacher) if teacher else 0)
    elif kl and teacher is not None:
        labelled += flops.head(teacher)
    compared = 0
    if teacher is not None:
        if kl or cosine is not None:
            each += flops.forward(teacher, length)
        both = flops.forward(model, length) + flops.forward(teacher, length)
        compared = 2 * _SIMILARITY_WINDOWS * length * both  # similarity before and after
    step = memory.Training(
        tokens=micro_batch * length,
        micro_batches=-(-rows // micro_batch),
        bf16=recipe.precision == "bf16",
        on_gpu=on_gpu,
        frozen_embedding=frozen,
        cross_entropy=entropy,
        kl=kl,
        pairs=len(model.layers) + cosine.embedding if cosine is not None else 0,
        passes=2 if apart and entropy else 1,
        checkpointing=again,
        ddp=workers > 1 and not cut,
        shards=workers if cut else 1,
        teacher_shards=workers if options.get("teacher") == "sharded" else 1,
    )
    parameters = model.parameters - (model.embedding if frozen else 0)
    return Cost(
        flops=recipe.tokens * (each + labelled) + compared,
        memory=memory.training(model, step, teacher),
        disk=4 * model.parameters if pretrain else model.bytes,
        read=0 if teacher is None else teacher.bytes,
        tokens=recipe.tokens,
        real_tokens=None if padding else recipe.tokens,
        flops_per_real_token=labelled if padding else 0,
        scratch=_CHECKPOINTS * 12 * parameters,
    )


def _search(
    choice: PatchOrder | LayerChoice,
    calibration: Calibration,
    precision: Precision,
    teacher: Model,
    student: Model | None,
    batch_size: int,
) -> Cost:
    tokens, layers = calibration.sequences * calibration.sequence_length, len(teacher.layers)
    bf16 = precision == "bf16"
    held = memory.measuring(
        teacher, bf16=bf16, tokens=min(batch_size, calibration.sequences) * calibration.sequence_length
    )
    read, heads = teacher.bytes, 0
    if isinstance(choice, LayerChoice):
        run = searches.of_layer_choice(choice, layers)
    else:
        run, heads = searches.of_patch_order(choice, layers)
        measured = tokens if choice.positions == "all" else calibration.sequences
        logits = 2 * 4 * measured * teacher.vocabulary
        states = tokens * teacher.hidden * (2 if bf16 else 4)
        held["head"] = held.get("head", 0) + (logits if logits <= _HELD_LOGITS else states)
        held["states"] = min(_HELD_STATES, states * len(patchable(choice.kept, layers)))
        heads *= measured
    if student is not None:
        held["weights"] += student.parameters * (2 if bf16 else 4)
        read += student.bytes
    work = run * tokens * flops.layer_forward(teacher, calibration.sequence_length) + heads * flops.head(teacher)
    return Cost(flops=round(work), memory=held, read=read, tokens=tokens, real_tokens=tokens)


def _evaluate(record: Evaluate, model: Model, batch_size: int) -> Cost:
    bf16, measure = record.precision == "bf16", record.measure
    if isinstance(measure, HeldOut):
        return _held_out(model, measure.sequence_length, measure.max_tokens, bf16, batch_size)
    return _lm_eval(model, bf16)


@lru_cache(_REMEMBERED)
def _held_out(model: Model, length: int, max_tokens: int | None, bf16: bool, batch_size: int) -> Cost:
    rate = flops.forward(model, length) + flops.head(model)
    tokens = 0 if max_tokens is None else max_tokens - 1  # the first is no label
    return Cost(
        flops=rate * tokens,
        memory=memory.measuring(model, bf16=bf16, tokens=batch_size * length),
        read=model.bytes,
        tokens=tokens,
        real_tokens=tokens or None,
        flops_per_real_token=rate,
        unknown="" if tokens else AFTER_TOKENIZE,
    )


@lru_cache(_REMEMBERED)
def _lm_eval(model: Model, bf16: bool) -> Cost:
    return Cost(
        memory={"weights": model.parameters * (2 if bf16 else 4)},
        read=model.bytes,
        real_tokens=None,
        flops_per_real_token=flops.forward(model, 0) + flops.head(model),
        unknown=REQUESTS,
    )


def _tokenize(record: Tokenize, text: Source | None, width: int) -> Cost:
    read = sum(file["bytes"] for file in text.identity.get("files", ())) if text is not None else 0
    if record.max_tokens is None:
        return Cost(read=read, unknown=AFTER_TOKENIZE)
    if record.train_tokenizer is not None:
        width = _token_width(record.train_tokenizer.vocabulary)
    held_out = record.max_tokens // (record.held_out_every - 1) if record.held_out_every > 1 else 0
    return Cost(read=read, disk=width * (record.max_tokens + held_out))


def _token_width(vocabulary: int) -> int:
    return 2 if vocabulary <= 1 << 16 else 4


@lru_cache(1 << 10)
def _llama(architecture: Architecture) -> ModelFacts:
    return llama_facts(architecture)
