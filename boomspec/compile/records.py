"""Build the hashed parameters ("record") of every task from a resolved spec."""

from typing import Any, Literal

from boomspec.compile.lm_eval.asking import asked
from boomspec.compile.lm_eval.sources import only_generates, task_chance, task_source
from boomspec.compile.model_sources import architecture
from boomspec.compile.resolved import ResolvedSpec
from boomspec.compile.trainings import isolates, recipe
from boomspec.core import tasks
from boomspec.core.graph import Source
from boomspec.core.layers import LayerPlan
from boomspec.core.losses import Losses
from boomspec.spec.sections.baselines import DroppedRun, LaCoSpec
from boomspec.spec.sections.data import CalibrationSpec, LossOn, SourceSpec
from boomspec.spec.sections.evaluation import DuringSpec
from boomspec.spec.sections.interpolate import OrderSearch, SeamSpec
from boomspec.spec.sections.schemes import OnPolicySpec, SamplingSpec
from boomspec.spec.sections.student import KeepChoice
from boomspec.spec.sections.training import DistillSpec, FaithfulSpec
from boomspec.spec.spec_file import Spec, SpecFile, memoized_for

Initial = Literal["teacher", "random"]  # what a student begins as


def _determinism(spec: Spec) -> tasks.record.Determinism | None:
    """None for the defaults, which are then not written into the records."""
    section = spec.determinism
    if not section.tf32 and section.algorithms == "deterministic":
        return None
    return tasks.record.Determinism(algorithms=section.algorithms, tf32=section.tf32)


def tokenize(
    resolved: ResolvedSpec, name: str, *, learns: bool, loss_on: LossOn | None = None, template: str | None = None
) -> tasks.Tokenize:
    """The tokens of one source. `learns`: the tokenizer is trained on it. `loss_on`: where it is not the source's.

    `template`: the text of the chat template that the source brings.
    """
    data, pretrain, bos = resolved.data.texts[name], resolved.spec.teacher.pretrain, resolved.data.bos
    assert data.text_field is not None
    trained = None
    if learns:
        assert pretrain is not None
        trained = tasks.TrainTokenizer(vocabulary=pretrain.tokenizer.vocabulary, bytes=pretrain.tokenizer.train_on)
    return tasks.Tokenize(
        text_field=data.text_field,
        train_tokenizer=trained,
        skip=data.skip,
        max_tokens=data.max_tokens,
        held_out_every=(data.held_out.every or 0) if data.held_out else 0,
        held_out_offset=data.held_out.offset if data.held_out else 0,
        bos=None if bos == "auto" else bos,
        on_bad_row="skip" if data.on_bad_row == "skip" else None,
        chat=_conversations(data, loss_on, template) if data.is_chat else None,
    )


def _conversations(data: SourceSpec, loss_on: LossOn | None, template: str | None) -> tasks.Conversations:
    responses = (loss_on or data.loss_on) == "responses"
    return tasks.Conversations(
        messages=data.messages,
        tools=data.tools,
        prompt=data.prompt,
        response=data.response,
        loss_on="responses" if responses else None,
        template=template,
    )


def pretrain(resolved: ResolvedSpec, *, seed: int | None = None) -> tasks.Pretrain:
    """`seed`: where it is not that of the spec."""
    spec, section = resolved.spec, resolved.spec.teacher.pretrain
    assert section is not None
    steps = recipe(section, resolved.data, seed=spec.seed if seed is None else seed)
    return tasks.Pretrain(architecture=architecture(section), recipe=steps, determinism=_determinism(spec))


def generate(resolved: ResolvedSpec) -> tasks.Generate:
    spec, section = resolved.spec, resolved.spec.distill
    assert section is not None
    assert section.generated is not None
    written, length = section.generated, resolved.data.sequence_length
    return tasks.Generate(
        rows=max(1, round(written.tokens / length)),
        sequence_length=length,
        prompt_tokens=written.prompt_tokens,
        label_prompts=True if written.label_prompts and written.prompt_tokens else None,
        sampling=sampling(written),
        seed=spec.seed,
        precision=section.precision,
        determinism=_determinism(spec),
    )


def sampling(section: SamplingSpec) -> tasks.Sampling:
    top_p = None if section.top_p == 1 else section.top_p
    return tasks.Sampling(temperature=section.temperature, top_k=section.top_k, top_p=top_p)


def distill(
    resolved: ResolvedSpec,
    kept: tuple[int, ...],
    *,
    start: tuple[int, ...] | None = None,
    initial: Initial = "teacher",
    tokens: int | None = None,
    losses: Losses | None = None,
    patched: tasks.Patched | None = None,
    sizes: tuple[tasks.BuiltSize, ...] | None = None,
) -> tasks.Distill:
    """`tokens`, `losses`: of the training, where they are not those of the section. One with losses of its own, as a
    published baseline has, trains on the text alone, and has no balance. `patched`: models that it
    trains, too. `sizes`: made with it, whose held-out loss is measured meanwhile, beside its own; None: nothing is.
    """
    spec, section = resolved.spec, resolved.spec.distill
    assert section is not None
    assert section.faithful is not None
    return tasks.Distill(
        kept=kept,
        start=start,
        initial=initial,
        train_embedding=spec.student.train_embedding,
        losses=losses or section.losses,
        balance=section.balance if losses is None else None,
        recipe=recipe(section, resolved.data, seed=spec.seed, tokens=tokens),
        on_policy=_on_policy(section.on_policy, resolved.data.sequence_length) if losses is None else None,
        faithful=None if section.faithful == FaithfulSpec() else tasks.Faithful(**section.faithful.model_dump()),
        determinism=_determinism(spec),
        patched=patched,
        teacher_outputs=_stored(section),
        others=_others(section),
        during=None if sizes is None else _during(resolved, sizes, tokens=tokens),
    )


def _during(resolved: ResolvedSpec, sizes: tuple[tasks.BuiltSize, ...], *, tokens: int | None) -> tasks.During:
    spec, section = resolved.spec, resolved.spec.distill
    assert spec.evaluate is not None
    assert spec.evaluate.every is not None
    assert section is not None
    steps = recipe(section, resolved.data, seed=spec.seed, tokens=tokens).steps
    asked = spec.evaluate.during or DuringSpec()
    every = max(1, min(steps, spec.evaluate.every.of(steps)))
    return tasks.During(every=every, sizes=sizes, max_tokens=asked.max_tokens)


def _others(section: DistillSpec) -> tasks.OtherTeachers | None:
    if (teachers := section.teachers) is None:
        return None
    weights = tuple(other.weight for other in teachers.others)
    return tasks.OtherTeachers(weights=weights, combine=teachers.combine)


def _stored(section: DistillSpec) -> tasks.TopTokens | tasks.Samples | None:
    if (outputs := section.teacher_outputs) is None:
        return None
    if outputs.top_k is not None:
        return tasks.TopTokens(k=outputs.top_k)
    assert outputs.samples is not None
    assert outputs.temperature is not None
    return tasks.Samples(count=outputs.samples, temperature=outputs.temperature)


def teacher_outputs(training: tasks.Distill) -> tasks.TeacherOutputs:
    """What is stored for a training: a function of which tokens it sees, and phases before it on the same text."""
    recipe = training.recipe
    assert training.teacher_outputs is not None
    return tasks.TeacherOutputs(
        stored=training.teacher_outputs,
        seed=recipe.seed,
        rows=(training.steps.stop + training.draws) * recipe.sequences,
        sequence_length=recipe.sequence_length,
        isolate=recipe.isolate,
        precision=recipe.precision,
        determinism=training.determinism,
    )


def block_states(resolved: ResolvedSpec, layer: int, *, begin: int | None, tokens: int | None) -> tasks.BlockStates:
    """The states that a layer reads, computed from those that layer `begin` reads; None: from the tokens."""
    spec, section = resolved.spec, resolved.spec.distill
    assert section is not None
    trained = recipe(section, resolved.data, seed=spec.seed, tokens=tokens)
    return tasks.BlockStates(
        layer=layer,
        begin=begin,
        seed=trained.seed,
        sequences=trained.steps * trained.sequences,
        sequence_length=trained.sequence_length,
        isolate=trained.isolate,
        precision=trained.precision,
        determinism=_determinism(spec),
    )


def distill_block(
    resolved: ResolvedSpec, block: range, *, initial: Initial = "teacher", tokens: int | None = None
) -> tasks.DistillBlock:
    spec, section = resolved.spec, resolved.spec.distill
    assert section is not None
    assert section.blockwise is not None
    return tasks.DistillBlock(
        first=block.start,
        end=block.stop,
        stored=section.blockwise.stored,
        initial="random" if initial == "random" else None,
        losses=section.losses,
        recipe=recipe(section, resolved.data, seed=spec.seed, tokens=tokens),
        determinism=_determinism(spec),
    )


def join_blocks(kept: tuple[int, ...]) -> tasks.JoinBlocks:
    return tasks.JoinBlocks(kept=kept)


def polish(resolved: ResolvedSpec, kept: tuple[int, ...], *, tokens: int | None = None) -> tasks.Distill:
    """The training of the whole student after that of its blocks, which took `tokens`, or those of the section."""
    spec, section = resolved.spec, resolved.spec.distill
    assert section is not None
    assert section.blockwise is not None
    training = section.polish_training
    return tasks.Distill(
        kept=kept,
        start=tuple(range(len(kept))),
        initial="teacher",
        passed_steps=recipe(section, resolved.data, seed=spec.seed, tokens=tokens).steps,
        train_embedding=spec.student.train_embedding,
        losses=training.losses,
        recipe=recipe(training, resolved.data, seed=spec.seed),
        determinism=_determinism(spec),
    )


def _on_policy(section: OnPolicySpec | None, sequence_length: int) -> tasks.OnPolicy | None:
    if section is None:
        return None
    return tasks.OnPolicy(
        share=section.share,
        prompt_tokens=section.prompt_tokens,
        new_tokens=section.length(sequence_length) - max(1, section.prompt_tokens),
        sampling=sampling(section),
        teacher_share=section.teacher_share or None,
        long_range=section.long_range or None,
    )


def laco(resolved: ResolvedSpec, section: LaCoSpec, *, layers: int, of: int) -> tasks.Baseline:
    """The teacher's `of` layers collapsed to `layers`."""
    settings = section.model_dump(exclude={"calibration"}) | _measured(resolved, section.calibration)
    return tasks.Baseline(build=tasks.LaCo(layers=layers, lowest=0, highest=of, **settings))


def search(resolved: ResolvedSpec, section: KeepChoice | OrderSearch, kept: tuple[int, ...] = ()) -> tasks.Search:
    """The search for the kept layers, or for the order in which those of the student's `kept` ones are patched."""
    choice: tasks.LayerChoice | tasks.PatchOrder
    if isinstance(section, KeepChoice):
        choice = tasks.LayerChoice(method=section.method, count=section.count)
    else:
        settings = section.model_dump(exclude={"search", "calibration"})
        choice = tasks.PatchOrder(method=section.search, kept=kept, **settings)
    return tasks.Search(choice=choice, **_measured(resolved, section.calibration))


def run_distances(resolved: ResolvedSpec, section: DroppedRun) -> tasks.Search:
    """How far the teacher's state moves over each run of layers."""
    return tasks.Search(
        choice=tasks.RunDistances(positions=section.positions), **_measured(resolved, section.calibration)
    )


def seam(resolved: ResolvedSpec, section: SeamSpec, plan: LayerPlan, **known: Any) -> tasks.Seam:
    """What is fitted for one size. `known`: kept layers, and where layers add to the stream."""
    settings: dict[str, Any] = {"reach": None if section.reach == "all" else section.reach, "ridge": section.ridge}
    return tasks.Seam(plan=plan, fit=section.fit, **settings, **known, **_measured(resolved, section.calibration))


def _measured(resolved: ResolvedSpec, calibration: CalibrationSpec) -> dict[str, Any]:
    """On which text and how a search computes: as the models are measured, else as the student is trained."""
    spec = resolved.spec
    section = spec.evaluate or spec.distill
    text = {
        "sequences": calibration.sequences,
        "sequence_length": resolved.data.sequence_length,
        "seed": spec.seed,
        "isolate": isolates(resolved.data),
    }
    return {
        "calibration": tasks.Calibration.model_validate(text),
        "precision": section.precision if section is not None else "bf16",
        "determinism": _determinism(spec),
    }


@memoized_for("evaluate", "teacher", "data", "seed", "determinism")
def evaluations(file: SpecFile) -> list[tuple[str, tasks.Evaluate, Source | None]]:
    """How every model is measured, by name; lm-eval tasks with where they come from."""
    found: list[tuple[str, tasks.Evaluate, Source | None]] = []
    evaluate, data = file.spec.evaluate, file.spec.data
    if evaluate is None:
        return []
    settings: dict[str, Any] = {"precision": evaluate.precision, "determinism": _determinism(file.spec)}
    if evaluate.held_out is not None and data is not None:
        text = tasks.HeldOut(
            sequence_length=data.sequence_length, max_tokens=evaluate.held_out.max_tokens, isolate=isolates(data)
        )
        found.append(("held_out", tasks.Evaluate(measure=text, **settings), None))
    for i, (name, task) in enumerate(zip(evaluate.names, evaluate.tasks, strict=True)):
        source, asking = task_source(file, task.task, i), asked(file, task)
        draws, bootstraps = task_chance(file, task, asking.generation)
        measure = tasks.LmEval(
            task=task.task,
            num_fewshot=task.num_fewshot,
            limit=task.limit,
            seed=file.spec.seed if draws else None,
            # 0 leaves out every standard error, those with a formula, too.
            bootstrap_iters=evaluate.bootstrap_iters if bootstraps or not evaluate.bootstrap_iters else None,
            **asking._asdict(),
        )
        vllm = {"backend": "vllm"} if evaluate.backend == "vllm" and only_generates(file, task.task) else {}
        found.append((name, tasks.Evaluate(measure=measure, **settings, **vllm), source))
    return found


@memoized_for("evaluate", "seed", "determinism")
def deployments(file: SpecFile) -> list[tasks.Record]:
    """What is looked at of every model beside its quality. The prompts must have been read."""
    found: list[tasks.Record] = []
    if (evaluate := file.spec.evaluate) is None:
        return found
    if (asked := evaluate.texts) is not None:
        assert asked.prompts is not None
        draws = asked.temperature > 0
        written = tasks.Texts(
            prompts=asked.prompts,
            chat=asked.with_chat,
            system=asked.system,
            template=asked.template or None,
            settings=tasks.Generation(**asked.model_dump(include=set(tasks.Generation.model_fields))),
            samples=asked.samples if asked.samples > 1 else None,
            seed=file.spec.seed if draws else None,
            precision=evaluate.precision,
            determinism=_determinism(file.spec),
        )
        found.append(written)
    if (speed := evaluate.speed) is not None:
        found.append(tasks.Speed(**speed.model_dump(), precision=evaluate.precision))
    return found
