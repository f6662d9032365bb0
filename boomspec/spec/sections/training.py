"""The section `distill`, and what it has in common with `teacher.pretrain`: tokens, optimizer, schedule, losses."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from boomspec.core.losses import LOSSES, Losses, PairLoss, StateLoss, usual_losses
from boomspec.core.tasks import Precision
from boomspec.core.tasks.record import Balance
from boomspec.core.types import Count, Number, ShareField, Strict, about
from boomspec.spec.sections.models import TeachersSpec
from boomspec.spec.sections.phases import Phases, check_terms
from boomspec.spec.sections.schemes import Assistants, GeneratedSpec, OnPolicySpec, some_loss
from boomspec.spec.validate import FieldError, goes_with, only_one

Positive = Annotated[Count, Field(gt=0)]
NotNegative = Annotated[Count, Field(ge=0)]
Beta = Annotated[Number, Field(ge=0, lt=1)]


class OptimizerSpec(Strict):
    """AdamW. Weight decay acts on matrices only."""

    lr: Number = about("Peak learning rate.", default=3e-4, gt=0)
    betas: tuple[Beta, Beta] = about("Decay of the first and second moments.", default=(0.9, 0.95))
    eps: Number = about("Added to the root of the second moment.", default=1e-8, gt=0)
    weight_decay: Number = about("Decoupled, times the learning rate.", default=0.1, ge=0)
    clip: Number = about("Largest gradient norm; 0 switches clipping off.", default=1.0, ge=0)


class ScheduleSpec(Strict):
    """Linear warm-up, then `kind` down to `final` times the peak learning rate."""

    kind: Literal["cosine", "linear", "constant"] = about("Shape of the decay.", default="cosine")
    warmup: ShareField = about("Share of the steps, or a number of steps.", default="1%", validate_default=True)
    final: Number = about("Last learning rate as a share of the peak.", default=0.0, ge=0, le=1)

    def model_post_init(self, _: object) -> None:
        if self.kind == "constant" and "final" in self.model_fields_set:
            raise FieldError("a constant schedule has no final learning rate", at=("final",))


class Training(Strict):
    """How much and how a model is trained."""

    tokens: Positive | None = about("Training tokens in all.", default=None)
    batch_tokens: Positive
    """Tokens of one optimiser step, rounded to whole sequences; never depends on the machine."""
    optimizer: OptimizerSpec = about("AdamW and its settings.", default=OptimizerSpec())
    schedule: ScheduleSpec = about("The learning rate over the steps.", default=ScheduleSpec())
    precision: Precision = about("bf16: autocast with fp32 master weights, a frozen teacher in bf16.", default="bf16")

    @property
    def all_tokens(self) -> int:
        """Training tokens in all."""
        assert self.tokens is not None  # a section that may leave them out says itself how many there are
        return self.tokens


class FaithfulSpec(Strict):
    """Quirks of the published code (arXiv 2510.05064), to reproduce its numbers. None is a good default."""

    padding: bool = False
    """One document a sequence, cut or padded to its length; `tokens` then counts padding."""
    kl_on_padding: bool = about("The KL term is averaged over padding, too.", default=False)
    summed_micro_batches: int = Field(1, ge=1)
    """Gradients of so many micro batches are summed, not averaged, before clipping."""

    def model_post_init(self, _: object) -> None:
        if self.kl_on_padding and not self.padding:
            raise FieldError("there is no padding to average over: set padding: true", at=("kl_on_padding",))


class TeacherOutputsSpec(Strict):
    """The teacher's outputs are stored once, before the training, and no student runs it."""

    top_k: Positive | None = Field(None, examples=[64])
    """So many of the likeliest tokens of each position, with their log-probabilities and that of all others together:
    losses compare the distributions over these bins."""
    samples: Positive | None = Field(None, examples=[12])
    """So many tokens of each position, drawn from the teacher's distribution, with importance weights: the KL
    divergence is estimated without bias (RS-KD, arXiv 2503.16870)."""
    temperature: Number | None = Field(None, examples=[1.0], gt=0)
    """Of the distribution that samples are drawn from; the weights undo it. Default: 1."""

    def model_post_init(self, _: object) -> None:
        only_one(self, "top_k", "samples")
        goes_with(self, "samples", "temperature", not_with="top_k")


# What losses may read where models are trained that have only some of the student's layers.
_IN_SIZES = frozenset({
    "logits", "teacher_logits", "labels", "t", "states", "teacher_states", "inputs", "teacher_inputs",
})  # fmt: skip


class PatchAwareSpec(Strict):
    """At some steps, drawn with the seed, a larger model is trained than the student: in it layers of the teacher stand
    in the place of some of the student's, as they will in the sizes between the two. They stay what they are.
    """

    share: Number = about("Share of the steps.", default=0.5, gt=0, le=1)
    models: Literal["family", "any"] = "family"
    """family: one of the sizes between student and teacher is drawn; any: any blocks, each number of them as likely."""


class PolishSpec(Strict):
    """An ordinary distillation of the whole student, which begins from its blocks."""

    tokens: Positive = about("Training tokens, of text that the blocks were not trained on as far as there is any.")
    optimizer: OptimizerSpec | None = Field(None, examples=[{"lr": 1e-4}])
    """AdamW and its settings. Default: as of the blocks."""
    schedule: ScheduleSpec | None = Field(None, examples=[{"kind": "linear"}])
    """The learning rate over the steps. Default: as of the blocks."""
    losses: Annotated[Losses, AfterValidator(some_loss)] = about(
        "Terms of the loss; the key is the kind.", default=usual_losses()
    )


class BlockwiseSpec(Strict):
    """Every layer of the student is trained alone, on what the teacher's block reads and gives."""

    stored: bool = True
    """true: the teacher's states at the ends of blocks are computed once and stored; false: each block computes them
    again from the tokens, which takes no disk and the time of all layers below it."""
    polish: PolishSpec | None = Field(None, examples=[{"tokens": "20M"}])
    """A short training of the whole student after that. Default: none, so that the whole is never in memory."""


def block_losses() -> Losses:
    """What a block is trained on where the spec names no losses."""
    return Losses(hidden_nmse=LOSSES["hidden_nmse"]())


class DistillSpec(Training):
    """Distillation of the student from the teacher."""

    tokens: Positive | None = about("Training tokens in all; left out where `phases` say how many.", default=None)
    phases: Phases | None = Field(
        None, examples=[[{"tokens": "1B"}, {"tokens": "1B", "losses": {"cross_entropy": {}}}]]
    )
    """Parts of the training, one after the other, under one schedule and with one state of the optimiser; each is a
    task of its own, whose student is measured. Default: the whole is one."""
    blockwise: BlockwiseSpec | None = Field(None, examples=[{}, {"stored": False}, {"polish": {"tokens": "20M"}}])
    """Train every layer of the student alone, on any number of workers side by side. Default: the student as a
    whole."""

    faithful: FaithfulSpec | None = Field(None, examples=[{"padding": True, "kl_on_padding": True}])
    """Quirks of the published code, to reproduce its numbers. Default: none of them."""
    losses: Annotated[Losses, AfterValidator(some_loss)] = about(
        "Terms of the loss; the key is the kind.", default=usual_losses()
    )
    generated: GeneratedSpec | None = Field(None, examples=[{"tokens": "10M", "prompt_tokens": 32}])
    """Train on text that the teacher writes: behind prompts of the data, or without any. Default: on the data."""
    on_policy: OnPolicySpec | None = Field(None, examples=[{"share": 0.5, "prompt_tokens": 32}])
    """Train in a share of the steps on what the student writes itself. Default: in none."""
    assistants: Assistants | None = Field(None, examples=[[{"keep": 24}], [{"size": "24 layers", "tokens": "1B"}]])
    """Teachers between teacher and student, from the first to the last: each is distilled from the one before, and the
    student from the last (arXiv 1902.03393). Every one of them begins as layers of the teacher."""
    generations: int | None = Field(None, examples=[3], ge=1)
    """So many students are trained one after the other. Each begins as the first did and is distilled from the one
    before (arXiv 1805.04770); the last is the student. Default: 1."""
    balance: Balance | None = Field(None, examples=["start"])
    """Divide each term by its own size, at step 0 or a running mean; weights, 1 by default, are then shares."""
    teachers: TeachersSpec | None = Field(None, examples=[{"others": [{"model": "gpt2-large", "weight": 0.3}]}])
    """Teachers beside the family's own, for losses that read the teacher's logits; hidden states are the own one's.
    Default: none."""
    patch_aware: PatchAwareSpec | None = Field(None, examples=[{"share": 0.5}])
    """Train the student for the sizes that it will be part of, too. Default: for itself alone."""
    teacher_outputs: TeacherOutputsSpec | None = Field(None, examples=[{"top_k": 64}, {"samples": 12}])
    """What is stored of the teacher's outputs, for students that never run it. Default: the teacher is run beside
    its student."""

    @property
    def all_tokens(self) -> int:
        if self.phases is not None:
            return sum(phase.tokens for phase in self.phases)
        return super().all_tokens

    @property
    def losses_of_phases(self) -> tuple[Losses, ...]:
        """Of each phase; of the whole where there are none."""
        return tuple(phase.losses or self.losses for phase in self.phases or ()) or (self.losses,)

    def model_post_init(self, _: object) -> None:
        if self.phases is None:
            if self.tokens is None:
                hint = "training tokens in all; or phases: [{tokens: ...}, {tokens: ...}]"
                raise FieldError("missing 'tokens'", hint=hint)
            self._check()
            return
        self._check_phases(self.phases)
        for i, phase in enumerate(self.phases):
            if phase.losses is None:
                self._check()
                continue
            try:  # what goes for the losses of a training goes for those of each phase
                self.model_copy(update={"losses": phase.losses})._check()
            except FieldError as error:
                at = error.at if error.at[:1] == ("losses",) else ("losses",)
                raise FieldError(str(error), hint=error.hint, at=("phases", i, *at)) from error

    def _check_phases(self, phases: Phases) -> None:
        if self.tokens is not None:
            message = "the phases say how many tokens there are"
            raise FieldError(message, hint="remove this, or phases", at=("tokens",))
        if "losses" in self.model_fields_set and all(phase.losses is not None for phase in phases):
            raise FieldError("every phase has losses of its own", hint="remove these", at=("losses",))
        if self.generated is not None:
            message = "not with generated: what the teacher writes is one text, for the whole training"
            raise FieldError(message, at=("phases",))
        if self.blockwise is not None:
            message = "not with blockwise: every block is trained alone, and phases are of one training"
            raise FieldError(message, at=("phases",))
        for i, assistant in enumerate(self.assistants or ()):
            if assistant.tokens is not None:
                message = "an assistant goes through the phases of the student, which say how long that takes"
                raise FieldError(message, hint="remove this, or phases", at=("assistants", i, "tokens"))
        try:
            check_terms(self.losses_of_phases, balanced=self.balance is not None)
        except FieldError as error:
            raise FieldError(str(error), hint=error.hint, at=("phases", *error.at)) from error

    def _check(self) -> None:
        if self.on_policy is not None and self.teacher_outputs is not None:
            message = "what the student writes was not there when the teacher's outputs were stored"
            raise FieldError(message, hint="remove on_policy or teacher_outputs", at=("on_policy",))
        if self.on_policy is not None and not self.losses.reads_teacher:
            message = "no loss reads the teacher: of what the student writes itself it would learn nothing"
            raise FieldError(message, hint="add a loss such as reverse_kl or jsd", at=("on_policy",))
        if self.on_policy is not None and self.on_policy.long_range:
            single = self.losses.terms().get("reverse_kl")
            if single is None or getattr(single, "temperature", 1.0) != 1:
                message = "the long-range term is a part of the reverse KL at temperature 1, which is no loss here"
                raise FieldError(message, hint="add the loss reverse_kl", at=("on_policy", "long_range"))
        if self.on_policy is not None and self.on_policy.long_range and self.teachers is not None:
            message = "the long-range term is of one teacher, and reverse_kl here of several"
            raise FieldError(message, hint="remove long_range or teachers", at=("on_policy", "long_range"))
        if self.on_policy is not None and self.balance is not None:
            message = "not with on_policy: on what the student writes the terms have other sizes than on the text"
            raise FieldError(message, hint="give the losses weights", at=("balance",))
        if self.on_policy is not None and self.faithful is not None and self.faithful.padding:
            raise FieldError(
                "the student writes whole sequences: there is no document to pad", at=("faithful", "padding")
            )
        if self.generated is not None and self.faithful is not None and self.faithful.padding:
            raise FieldError(
                "the teacher writes whole sequences: there is no document to pad", at=("faithful", "padding")
            )
        if self.teachers is not None and not self.losses.reading("teacher_logits"):
            hint = "give a loss such as kl, or remove teachers"
            raise FieldError("no loss reads the logits of teachers", at=("teachers",), hint=hint)
        if self.teachers is not None and self.teacher_outputs is not None:
            hint = "run the teachers beside the student, or store the outputs of one"
            raise FieldError("outputs are stored of one teacher", at=("teachers",), hint=hint)
        if self.balance == "running" and (
            signed := [kind for kind, term in self.losses.terms().items() if term.signed]
        ):
            message = f"not with {signed[0]}: it may pass through 0, where no weight makes it as large as the others"
            raise FieldError(message, hint="balance: start", at=("balance",))
        if self.patch_aware is not None:
            self._check_patched()
        if self.teacher_outputs is not None:
            self._check_stored(self.teacher_outputs)
        if self.blockwise is not None:
            self._check_blocks()

    def _check_patched(self) -> None:
        for name in ("assistants", "generations", "on_policy", "teacher_outputs"):
            if getattr(self, name) is not None:
                message = f"not with {name}: the teacher itself must be run beside the student"
                raise FieldError(message, at=("patch_aware",))
        if self.blockwise is not None:
            raise FieldError("not with blockwise: no model is run as a whole", at=("patch_aware",))
        if self.balance == "running":
            message = "not with balance: running, for the models that it trains have terms of other sizes"
            raise FieldError(message, hint="balance: start", at=("patch_aware",))
        for kind, term in self.losses.terms().items():
            if set(term.reads) - _IN_SIZES or (isinstance(term, PairLoss) and term.trained(1)):
                message = "not with patch_aware: it reads attention, or trains parameters of its own"
                raise FieldError(message, at=("losses", kind))
        terms = self.losses.terms().values()
        if not any("logits" in term.reads or (isinstance(term, PairLoss) and term.in_every_size) for term in terms):
            message = "some of its models would learn nothing: no layer that the losses compare is in all of them"
            raise FieldError(message, hint="add a loss such as kl, or compare all pairs", at=("patch_aware",))

    def _check_stored(self, outputs: TeacherOutputsSpec) -> None:
        how: Literal["top_k", "samples"] = "top_k" if outputs.samples is None else "samples"
        for kind, term in self.losses.terms().items():
            if (reason := term.not_from_stored(how)) is not None:
                message = f"it cannot be computed from the teacher's stored outputs: {reason}"
                hint = f"set {kind}: null, or remove teacher_outputs"
                raise FieldError(message, at=("losses", kind), hint=hint)
        if not self.losses.reading("teacher_logits"):
            hint = "give a loss such as kl, or remove teacher_outputs"
            raise FieldError("no loss reads the teacher's outputs", at=("teacher_outputs",), hint=hint)
        if self.faithful is not None and self.faithful.padding:
            message = "padded sequences are not with teacher_outputs: what is stored are windows of the text"
            raise FieldError(message, at=("faithful", "padding"))

    def _check_blocks(self) -> None:
        if self.faithful is not None and self.faithful != FaithfulSpec():
            message = "the published code trains the whole student: it has no blocks"
            raise FieldError(message, at=("faithful",), hint="remove this, or blockwise")
        for name in (
            DistillSpec.model_fields.keys() - Training.model_fields.keys() - {"blockwise", "faithful", "losses"}
        ):
            if getattr(self, name) is not None:
                message = f"a block learns from the teacher's states on the data alone: {name} is for a whole student"
                raise FieldError(message, at=(name,))
        for kind, term in self.losses.terms().items() if "losses" in self.model_fields_set else ():
            if not isinstance(term, StateLoss) or term.reads != ("states", "teacher_states"):
                raise FieldError(
                    f"{kind} reads {' and '.join(term.reads)}: a block has its own output, and the teacher's, alone",
                    at=("losses", kind),
                    hint="losses of hidden states, such as hidden_nmse; others go with blockwise.polish",
                )
            if term.trained(1):
                message = f"{kind} would train parameters of its own: a block has those of its layer alone"
                raise FieldError(message, at=("losses", kind))
            if term.pairs is not None:
                raise FieldError("every block has one pair, its output", at=("losses", kind, "pairs"))
            for name in ("embedding", "final_norm"):
                if name in term.model_fields_set and getattr(term, name):
                    raise FieldError("a block has neither embedding nor final norm", at=("losses", kind, name))

    @property
    def polish_training(self) -> "DistillSpec":
        """The section of the polish, where there is one."""
        assert self.blockwise is not None
        assert self.blockwise.polish is not None
        polish = self.blockwise.polish
        changes = {name: value for name in PolishSpec.model_fields if (value := getattr(polish, name)) is not None}
        return self.model_copy(update={**changes, "blockwise": None})
