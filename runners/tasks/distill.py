"""Distil a teacher into a student of fewer layers (arXiv 2510.05064).

The student is the kept layers of the teacher and its embedding, final norm and head, trained on the weighted sum of the
losses that the record names (`boomspec.core.losses`). Where the teacher is an assistant, or a student of the generation
before, the student begins as layers of the model that these began as: the input `start`. That is the student itself
where it was trained before, block by block. Where the teacher's outputs were stored before
(`runners/tasks/teacher_outputs.py`), they are read in its place: then no teacher is loaded.

Writes `model/` (in the dtype of the teacher's files, with the tokenizer and `student_config.json`),
`metrics.jsonl` and `similarity.json`, which is empty where no teacher is loaded. Of a phase that another one follows
`training/`, too: what the training goes on from. The metrics of a phase are those of all steps so far, and its
similarities are measured before the first phase, and after its own last step.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import STUDENT, TEACHER, LayerPlan, Owner, teacher_layers
from boomspec.core.losses import Losses
from boomspec.core.tasks import Distill, Faithful, OtherTeachers
from boomspec.core.work_sizes import SIMILARITY_WINDOWS
from boomspec.models.facts import read_facts
from boomspec.models.folder import STUDENT_CONFIG
from runners.assembly.assemble import assemble
from runners.data.tokens import TokenStream
from runners.evaluation.during import HeldOutDuring
from runners.modeling.attention import check_attention
from runners.modeling.foreign_code import prepare_custom_code
from runners.modeling.hidden_states import LMHead, check_apart, check_head, embedding_parameters, hidden_pairs
from runners.modeling.models import MODEL, Code, load, load_frozen, model_folder, save_weights, stored_dtype
from runners.modeling.sampling import Ends
from runners.runtime.context import Context
from runners.runtime.device import MASTER_DTYPE, deterministic_mode, device, frozen_dtype
from runners.training.cohort import SharedTargets, taking_turns
from runners.training.compiling import check_compiler
from runners.training.distillation import (
    StudentLoss,
    TargetsOf,
    TermValues,
    alignment,
    stored_targets,
    student_loss,
    teacher_targets,
)
from runners.training.loop import Batches, MicroBatches, MicroLoss, micro_batches
from runners.training.loss_parameters import LossParameters
from runners.training.moment import START, Moment
from runners.training.on_policy import StudentText
from runners.training.output_files import StoredRows
from runners.training.parallel import ParallelModel, is_sharded, shard_frozen, with_checkpointing_or_compile
from runners.training.patched import PatchedModels, in_plan
from runners.training.phases import part_of
from runners.training.process_group import ALONE, ProcessGroup, process_group
from runners.training.similarity import SIMILARITY, similarities, write_similarities
from runners.training.teachers import ONE_TEACHER, Teachers
from runners.training.weighting import weighting

_HOST = torch.device("cpu")  # where a model is loaded before it is cut over the workers
_NOT_FAITHFUL = Faithful(padding=False, kl_on_padding=False, summed_micro_batches=1)


def run(context: Context[Distill]) -> None:
    with deterministic_mode(context.record.determinism, context.progress.note):
        for _ in _distill(context):
            pass


def run_together(contexts: Sequence[Context[Distill]]) -> Iterator[tuple[int, BoomspecError | None]]:
    """Distil students of one teacher on the same batches, sharing its forward pass.

    Yields the number of a context when its files are written, or when its student could not be trained.
    """
    first = contexts[0]
    if first.training.compile:
        check_compiler()
    with deterministic_mode(first.record.determinism, first.progress.note), ExitStack() as compiled:
        teachers, layers = load_teachers(first), read_facts(model_folder(first.inputs["teacher"])).count
        aligned = [alignment(context.record.losses, context.record.kept, layers) for context in contexts]
        shared = SharedTargets(stored_outputs(first) or teacher_targets(teachers, aligned))
        # How much of the time is whose, nobody knows: without its job a student has no costs, and so no MFU.
        contexts = [replace(context, job=None) for context in contexts]
        for teacher in teachers:
            compiled.enter_context(with_checkpointing_or_compile(teacher, compiled=first.training.compile))
        yield from taking_turns([_distill(context, teachers, shared) for context in contexts], shared)


def load_teachers(context: Context[Distill], place: torch.device | None = None) -> list[PreTrainedModel]:
    """The models that are run beside the student, the family's own teacher first; none where outputs are stored."""
    record = context.record
    if record.teacher_outputs is not None:
        return []
    options: dict[str, Any] = {"dtype": frozen_dtype(record.recipe.precision), "place": place, "code": context.code}
    roles = ("teacher", *(record.others.roles if record.others is not None else ()))
    teachers = [load_frozen(model_folder(context.inputs[role]), **options) for role in roles]
    sizes = [LMHead(teacher).vocabulary for teacher in teachers]
    if len(set(sizes)) > 1:
        listed = ", ".join(f"{role} {size}" for role, size in zip(roles, sizes, strict=True))
        raise BoomspecError(f"the teachers have different numbers of logits: {listed}")
    return teachers


def weights_of(others: OtherTeachers | None) -> Teachers:
    """The weights of all teachers, and what becomes of their distributions."""
    return ONE_TEACHER if others is None else Teachers((1 - sum(others.weights), *others.weights), others.combine)


def stored_outputs(context: Context[Distill]) -> TargetsOf | None:
    """What is stored of the teacher's outputs, for the micro batches of a training; None where the teacher is run."""
    if context.record.teacher_outputs is None:
        return None
    recipe, stream = context.record.recipe, TokenStream(context.inputs["tokens"].folder)
    before = context.record.draws * recipe.sequences
    shape = {"sequence_length": recipe.sequence_length, "seed": recipe.seed}
    row_of = lambda row: stream.first_draw(row + before, **shape)  # noqa: E731
    return stored_targets(StoredRows(context.inputs["outputs"].folder), row_of, recipe.sequences)


def _distill(
    context: Context[Distill],
    shared_teachers: Sequence[PreTrainedModel] | None = None,
    targets_of: TargetsOf | None = None,
) -> MicroBatches:
    options, workers = context.training, process_group(context.resume, local_leader=context.local_leader)
    if options.compile:
        check_compiler()
    shards_teacher = is_sharded(workers, options.teacher)
    record, recipe, precision = context.record, context.record.recipe, context.record.recipe.precision
    apart = bool(recipe.isolate)
    tokens, folder = context.inputs["tokens"].folder, model_folder(context.inputs["teacher"])
    begins = model_folder(context.inputs.get("start", context.inputs["teacher"]))
    held_out = context.inputs.get("held_out", context.inputs["tokens"]).folder
    target, code = context.path / MODEL, context.code
    stream, layers, dtype = TokenStream(tokens, apart=apart), read_facts(folder).count, stored_dtype(begins)
    student = initial_student(record, begins, target, workers, cut=is_sharded(workers, options.parallel), code=code)
    place = _HOST if shards_teacher else None
    teachers = load_teachers(context, place) if shared_teachers is None else shared_teachers
    if stream.vocabulary > (rows := student.get_input_embeddings().weight.shape[0]):
        raise BoomspecError(f"the tokens have a vocabulary of {stream.vocabulary}, but the teacher embeds {rows}")
    beside = loss_parameters(record.losses, student, seed=recipe.seed)
    parallel = ParallelModel(student, workers, parallel=options.parallel, losses=beside)
    for teacher in teachers if shards_teacher else ():
        shard_frozen(teacher)
    for model in (student, *teachers):
        parallel.call(check_head, model)
        if apart:
            parallel.call(check_apart, model)
    aligned = alignment(record.losses, record.kept, layers)
    for model, is_teacher in ((student, False), *((teacher, True) for teacher in teachers[:1])):
        if attention := aligned.attention(teacher=is_teacher):
            if options.compile:
                raise BoomspecError("losses on attention are not computed in a compiled model: set compile: false")
            parallel.call(check_attention, model, attention)

    pairs = hidden_pairs(record.kept, layers) if teachers else []
    compared_BT = similarity_batch(held_out, recipe.sequence_length, apart=apart).to(device())
    compared = partial(parallel.call, similarities, student, teachers, pairs, compared_BT, precision)
    before = compared()
    faithful = record.faithful or _NOT_FAITHFUL
    draw = stream.padded_batch if faithful.padding else stream.batch
    shape = {"sequences": recipe.sequences, "sequence_length": recipe.sequence_length, "seed": recipe.seed}
    batch: Batches = lambda step: draw(step + record.draws, **shape)  # noqa: E731
    everywhere = recipe.sequences * recipe.sequence_length if faithful.kl_on_padding else 0
    patched = None
    if record.patched is not None:
        family: dict[Owner, PreTrainedModel] = {TEACHER: teachers[0], STUDENT: student}
        folders: dict[Owner, Path] = {TEACHER: folder, STUDENT: target}
        again = options.activation_checkpointing
        patched = PatchedModels(record.patched, record.kept, family, folders, seed=recipe.seed, checkpointing=again)
    loss = distillation_loss(
        student,
        teachers,
        record.losses,
        record.kept,
        everywhere=everywhere,
        shared=targets_of or stored_outputs(context),
        combined=weights_of(record.others),
        parameters=beside,
        patched=patched,
    )
    measured = None
    if record.during is not None:
        members: dict[Owner, PreTrainedModel] = {STUDENT: student, **({TEACHER: teachers[0]} if teachers else {})}
        headers: dict[Owner, Path] = {STUDENT: target, **({TEACHER: folder} if teachers else {})}
        rows = {"rows_at_once": options.micro_batch, "group": workers}
        measured = HeldOutDuring(record.during, recipe, held_out, members, headers, **rows)
    written = None
    if record.on_policy is not None:
        ends = Ends(stream.eos, stream.prefix, stream.vocabulary)
        written = StudentText(
            record.on_policy, recipe, batch, ends, student, teachers[0], workers, rows_at_once=options.micro_batch
        )
        batch, loss = written.batch, written.loss(loss, record.losses)
    rows_of = [said.row for said in (written, patched, measured) if said is not None]
    with ExitStack() as compiled:
        if patched is not None:
            compiled.callback(patched.close)
        if measured is not None:
            compiled.callback(measured.close)
        for teacher in teachers:
            compiles = options.compile and shared_teachers is None
            compiled.enter_context(with_checkpointing_or_compile(teacher, compiled=compiles))
        yield from micro_batches(
            student,
            recipe=recipe,
            batch=batch,
            loss=loss,
            weights=weighting(record.losses, recipe.steps, balance=record.balance),
            context=context,
            gradient_scale=float(faithful.summed_micro_batches),
            parallel=parallel,
            described=lambda step: {name: value for row in rows_of for name, value in row(step).items()},
            last_row=None if measured is None else measured.last_row,
            unlabelled=stream.unlabelled,
            # A layer that a step does not train has no gradient: to AdamW that is one of zeros, as in every worker.
            absent_is_zero=patched is not None,
            part=part_of(context),
        )
    after = compared()
    trained = parallel.gathered(lambda: load(target, dtype=MASTER_DTYPE, place=_HOST, code=code))
    if trained is None:
        return

    write_similarities(context.path / SIMILARITY, pairs, before, after)
    save_weights(trained, target, dtype=dtype)
    goes_on = record.passed_steps is not None
    copied, count = (record.kept, layers) if goes_on else (record.begins, read_facts(begins).count)
    config = {"copied_teacher_layers": copied, "pruned_teacher_layers": sorted(set(range(count)) - set(copied))}
    text = json.dumps(config, indent=1, allow_nan=False) + "\n"
    (target / STUDENT_CONFIG).write_text(text, encoding="utf-8")


def initial_student(
    record: Distill, teacher: Path, folder: Path, workers: ProcessGroup = ALONE, *, cut: bool = False, code: Code = ()
) -> PreTrainedModel:
    """The student before training, in fp32, its files written into `folder`; in the host's memory where it is `cut`.

    `teacher`: the model whose layers it begins as.
    """
    if workers.writes:
        assemble({TEACHER: teacher}, teacher_layers(record.begins), folder, tied=read_facts(teacher).tied, code=code)
    workers.barrier()
    place = _HOST if cut else device()
    student = load(folder, dtype=MASTER_DTYPE, place=place, code=code)
    if record.initial == "random":
        copied = student
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(record.recipe.seed)
            trusts = prepare_custom_code(folder, "model", code)
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trusts)
            student = AutoModelForCausalLM.from_config(config, dtype=MASTER_DTYPE, trust_remote_code=trusts)
            student = student.to(place).eval()
        if not record.train_embedding:
            # A frozen random embedding would teach nothing about the layers.
            with torch.no_grad():
                for random, own in zip(embedding_parameters(student), embedding_parameters(copied), strict=True):
                    random.copy_(own)
    if not record.train_embedding:
        for parameter in embedding_parameters(student):
            parameter.requires_grad_(False)
    return student


def distillation_loss(
    student: PreTrainedModel,
    teachers: Sequence[PreTrainedModel],
    losses: Losses,
    kept: Sequence[int],
    *,
    everywhere: int = 0,
    shared: TargetsOf | None = None,
    combined: Teachers = ONE_TEACHER,
    parameters: LossParameters | None = None,
    patched: PatchedModels | None = None,
) -> MicroLoss:
    """The loss of one micro batch. `patched`: models that some steps train in the student's place.

    `shared`: what the teachers say, to several students, or what was stored of it; None: to this student alone.
    `parameters`: those that the losses train; where none are given, and some are needed, they are as they are at first.
    """
    # Without a teacher no term reads states.
    layers = teachers[0].config.get_text_config().num_hidden_layers if teachers else len(kept)
    parameters = parameters or loss_parameters(losses, student, seed=0)
    aligned = alignment(losses, kept, layers)
    targets_of = shared or teacher_targets(teachers, [aligned])
    heads = [LMHead(teacher) for teacher in teachers]
    own = student_loss(student, aligned, heads, everywhere, combined, parameters)
    of_plan: dict[LayerPlan, StudentLoss] = {}

    def loss_of(step: int) -> StudentLoss:
        if patched is None or (plan := patched.plan_of(step)) is None:
            return own
        if plan not in of_plan:
            of_plan[plan] = student_loss(patched.model(plan), in_plan(aligned, plan), heads, everywhere, combined)
        return of_plan[plan]

    def loss(inputs_BT: Tensor, labels_BT: Tensor, count: int, moment: Moment = START) -> TermValues:
        return loss_of(moment.step)(inputs_BT, labels_BT, count, targets_of(inputs_BT, moment), moment)

    return loss


def loss_parameters(losses: Losses, student: PreTrainedModel, *, seed: int) -> LossParameters | None:
    """What the losses train beside the student; None where they train nothing."""
    shape = student.config.get_text_config()
    made = LossParameters(
        losses, layers=shape.num_hidden_layers, hidden=shape.hidden_size, seed=seed, device=student.device
    )
    return made if any(True for _ in made.parameters()) else None


def similarity_batch(tokens: Path, sequence_length: int, *, apart: bool = False) -> Tensor:
    """tokens_BT that the similarity is measured on: held-out windows; training ones where none is held out."""
    held_out = TokenStream(tokens, "held_out", apart=apart)
    stream = held_out if held_out.windows(sequence_length) else TokenStream(tokens, apart=apart)
    windows = min(SIMILARITY_WINDOWS, stream.windows(sequence_length))
    return torch.from_numpy(stream.inputs(0, sequences=windows, sequence_length=sequence_length, seed=0))
