"""The top level of a spec file, version 1, and a validated spec with its document.

The sections are in `boomspec.spec.sections`. `boomspec.compile` resolves a spec into layers, sizes and tasks.
"""

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, cast

from pydantic import AfterValidator, Field

from boomspec.core.errors import Problem, SpecError, did_you_mean
from boomspec.core.graph import NAME
from boomspec.core.tasks.record import Algorithms
from boomspec.core.types import Number, Strict, about
from boomspec.spec.document import Document
from boomspec.spec.sections.baselines import IN_PHASES, Baselines
from boomspec.spec.sections.data import DataSpec, check_blend
from boomspec.spec.sections.evaluation import EvaluateSpec
from boomspec.spec.sections.execution import DistillResources, ExecutionSpec
from boomspec.spec.sections.interpolate import InterpolateSpec, OrderSearch
from boomspec.spec.sections.student import StudentSpec
from boomspec.spec.sections.teacher import TeacherSpec
from boomspec.spec.sections.training import DistillSpec
from boomspec.spec.validate import FieldError, Sections, validate
from boomspec.spec.yaml_reader import Location

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def _plain_name(name: str) -> str:
    if not re.fullmatch(NAME, name):
        raise FieldError(f"'{name}' is not a plain name", hint="use letters, digits, dots, dashes, underscores")
    return name


class DeterminismSpec(Strict):
    """Which kernels the models compute with, and how exactly a repetition has to agree.

    `algorithms` and `tf32` change the bits of results and are part of their identity; `tolerance` is not.
    """

    algorithms: Algorithms = "deterministic"
    """deterministic: the same bits on every run wherever torch can, a warning elsewhere; strict: a task fails where
    torch cannot; any: the fastest."""
    tf32: bool = about("GPUs may round the factors of fp32 products to 10 bits, which is faster.", default=False)
    tolerance: Number = Field(0.0, ge=0)
    """How far apart `boomspec verify` lets numbers be, absolutely or relatively; 0: not one bit."""


class Spec(Strict):
    """A boomerang distillation experiment."""

    # `extends`, `variants` and `sweep` are removed before a spec is validated: they say how experiments are composed
    # (`boomspec.spec.experiments`), and no experiment has them.
    boomspec: Literal[1] = about("Version of the spec language.")
    name: Annotated[str, AfterValidator(_plain_name)] = about(
        "Name of the experiment: letters, digits, dots, dashes.", ["qwen3-4b"]
    )
    extends: str | None = Field(None, examples=["base.yaml"])
    """Another spec file, relative to this one, that this one changes: mappings merge, everything else is replaced,
    null removes. Its variants and its sweep are not taken over."""
    seed: int = about("Of weights, data order and evaluation.", default=0, ge=0, le=2**32 - 1)
    teacher: TeacherSpec = about("The large model.", [{"model": "Qwen/Qwen3-4B-Base"}])
    student: StudentSpec = about(
        "The small model: layers of the teacher, or a model that exists.",
        [{"keep": {"every": 2, "first": 1, "last": 2}}, {"model": "Harvard-DCML/boomerang-qwen3-2.3B"}],
    )
    data: DataSpec | None = Field(
        None, examples=[{"files": ["texts/*.jsonl"], "sequence_length": 2048, "held_out": {"every": 100}}]
    )
    """The text for training and measuring; needed by whatever trains, searches or measures it."""
    distill: DistillSpec | None = Field(None, examples=[{"tokens": "2.1B", "batch_tokens": "4.2M"}])
    """How the student is trained; left out for a student that exists."""
    interpolate: InterpolateSpec = about("Which sizes are built, in which order of blocks.", default=InterpolateSpec())
    evaluate: EvaluateSpec | None = Field(None, examples=[{"tasks": ["arc_easy"], "held_out": {"max_tokens": "1M"}}])
    """What is measured of every model; left out: nothing."""
    baselines: Baselines = Field((), examples=[["naive_pruning", "random_init"]])
    """Controls, as names or {kind: settings}."""
    determinism: DeterminismSpec = about("How far results have to be repeatable.", default=DeterminismSpec())
    execution: ExecutionSpec = about("Where and how fast; never part of a result's identity.", default=ExecutionSpec())
    variants: dict[str, Any] | None = Field(None, examples=[{"no-kl": {"distill": {"losses": {"kl": None}}}}])
    """Experiments that differ from this one in what is written here (null removes), by their names. Tasks that they
    share run once."""
    sweep: dict[str, tuple[Any, ...]] | None = Field(
        None, examples=[{"seed": [0, 1, 2], "distill.optimizer.lr": [1e-4, 3e-4]}]
    )
    """A grid: fields by their dotted paths, each with the values that take its place. Every variant is run at every
    point."""

    def model_post_init(self, _: object) -> None:
        if not self.student.is_made and self.distill is None:
            raise FieldError("missing 'distill'", hint="or name a student that exists: student: {model: ...}")
        if self.student.model is not None and self.distill is not None:
            raise FieldError("a student that exists is not distilled: remove this, or student.model", at=("distill",))
        if self.student.transfer is not None:
            if self.distill is not None:
                hint = "its family is built and measured as it is; to go on training, distill in a spec of its own"
                raise FieldError("a transferred student is not trained: remove this", at=("distill",), hint=hint)
            if self.teacher.model is None:
                message = "a teacher that is trained here is no variant of another model"
                raise FieldError(message, hint="name the variant: teacher: {model: ...}", at=("student", "transfer"))
            if self.teacher.trust_remote_code:
                message = "what code of its own makes of its weights is not known: none is transferred"
                raise FieldError(message, at=("student", "transfer"))
        for i, other in enumerate(self.distill.teachers.others if self.distill and self.distill.teachers else ()):
            place = ("distill", "teachers", "others", i)
            if other.seed is not None and self.teacher.pretrain is None:
                raise FieldError("goes with teacher.pretrain, which is trained once more", at=(*place, "seed"))
            if other.seed is not None and other.seed == self.seed:
                raise FieldError("it is the seed of the spec: this is the teacher itself", at=(*place, "seed"))
            if other.model is not None and self.teacher.pretrain is not None:
                message, hint = "the tokenizer is learned from the text here: no other model has it", "give a seed"
                raise FieldError(message, at=(*place, "model"), hint=hint)
        if self.distill is not None and self.distill.teacher_outputs is not None:
            if self.execution.distill.teacher == "sharded":
                message = "no teacher is run: distill.teacher_outputs are read"
                raise FieldError(message, at=("execution", "distill", "teacher"), hint="remove it")
        elif "teacher_outputs" in self.execution.model_fields_set:
            raise FieldError("no outputs of the teacher are stored here", at=("execution", "teacher_outputs"))
        for option, kinds, message in (
            ("generated", ("generate",), "no text is generated here"),
            ("blockwise", ("distill_block", "block_states"), "nothing is distilled block by block here"),
        ):
            unused = [kind for kind in kinds if kind in self.execution.model_fields_set]
            if unused and (self.distill is None or getattr(self.distill, option) is None):
                raise FieldError(message, at=("execution", unused[0]))
        for kind in ("texts", "speed"):
            if kind in self.execution.model_fields_set and not (self.evaluate and getattr(self.evaluate, kind)):
                raise FieldError(f"evaluate.{kind} is not asked for", at=("execution", kind))
        if self.evaluate is not None and self.evaluate.every is not None:
            self._check_during(self.evaluate, self.distill)
        blockwise = self.distill and self.distill.blockwise
        own = self.student
        if blockwise and blockwise.polish is None and own.train_embedding and "train_embedding" in own.model_fields_set:
            hint = "leave it out, or let a polish train the whole: distill.blockwise.polish"
            raise FieldError("no block has the embedding", hint=hint, at=("student", "train_embedding"))
        for i, item in enumerate(self.baselines):
            cross, run = item.cross_patching, item.contiguous_drop
            if cross is not None and cross.seed == self.seed and cross.initial == "teacher":
                message = f"{self.seed} is the seed of the student itself: the other one would be the same"
                raise FieldError(message, at=("baselines", i, "cross_patching", "seed"))
            if cross is not None and self.distill is not None and self.distill.generated is not None:
                raise FieldError("the text that the teacher writes is of one seed", at=("baselines", i))
            if run is not None and run.distilled and self.distill is None:
                hint = "write {contiguous_drop: {distilled: false}}"
                raise FieldError("needs a `distill` section: it is trained", hint=hint, at=("baselines", i))
            for kind in IN_PHASES if self.distill is not None and self.distill.phases is not None else ():
                if getattr(item, kind) is not None and getattr(item, kind).tokens is not None:
                    message = "it is trained in the phases of the student, which say how long that takes"
                    raise FieldError(message, hint="remove this", at=("baselines", i, kind, "tokens"))
            if self.distill is None and (item.random_init or item.standard_distillation or cross):
                raise FieldError("needs a `distill` section: it is trained", at=("baselines", i))
        if self.teacher.pretrain is None and "pretrain" in self.execution.model_fields_set:
            raise FieldError("nothing is pretrained here", at=("execution", "pretrain"))
        if self.distill is not None and self.distill.patch_aware is not None:
            options = self.execution.distill
            refused = {"parallel": options.parallel == "fsdp", "teacher": options.teacher == "sharded"}
            refused["compile"] = options.compile
            if wrong := next((name for name, found in refused.items() if found), None):
                message = "not with distill.patch_aware: its models share the layers of student and teacher, whole"
                raise FieldError(message, at=("execution", "distill", wrong))
        if self.data is not None and self.data.bos is True and self.teacher.pretrain is not None:
            message = "a tokenizer that is trained here has no token for the beginning of a sequence"
            raise FieldError(message, hint="its documents begin after its end-of-text", at=("data", "bos"))
        self._check_texts_of_phases()
        if self.interpolate.seam is not None and self.teacher.keeps_rest:
            message = "cannot be fitted for sizes that keep other parts of the teacher"
            raise FieldError(message, hint="teacher.rest: drop", at=("interpolate", "seam"))
        if self.data is not None and self.data.isolate_documents and self.distill is not None:
            self._check_isolated(self.distill)
        if self.distill is not None and self.distill.on_policy is not None:
            self._check_writing(
                self.execution.distill,
                reads=max(self.distill.on_policy.teacher_share, self.distill.on_policy.long_range) > 0,
            )
        readers = {
            "distill": self.distill,
            "teacher.pretrain": self.teacher.pretrain,
            "evaluate.held_out": self.evaluate and self.evaluate.held_out,
            "evaluate.every": self.evaluate and self.evaluate.every,
            "interpolate.order": isinstance(self.interpolate.order, OrderSearch),
            "interpolate.seam": self.interpolate.seam,
            "baselines": any(item.naive_pruning is None for item in self.baselines),
        }
        if self.data is None and (reason := next((name for name, read in readers.items() if read), None)):
            raise FieldError("missing 'data'", hint=f"{reason} needs text")

    def _check_during(self, evaluate: EvaluateSpec, distill: DistillSpec | None) -> None:
        """Raise FieldError where the held-out loss cannot be measured while a student is trained."""
        place = ("evaluate", "every")
        if distill is None:
            raise FieldError("no student is distilled here", at=place)
        if distill.blockwise is not None:
            raise FieldError("the student is trained block by block: there is none before the end", at=place)
        options = self.execution.distill
        for name, cut in (("parallel", options.parallel == "fsdp"), ("teacher", options.teacher == "sharded")):
            if cut:
                message = "not with evaluate.every: what is measured shares the weights of student and teacher, whole"
                raise FieldError(message, at=("execution", "distill", name))
        if evaluate.during is not None and evaluate.during.sizes == ():
            return
        reasons = {
            "teacher_outputs": "its teacher is not there while it is trained",
            "assistants": "it is trained beside an assistant, and not beside the teacher",
            "generations": "it is trained beside the generation before it, and not beside the teacher",
        }
        if reason := next((why for name, why in reasons.items() if getattr(distill, name) is not None), None):
            hint = "measure the student alone: during: {sizes: []}"
            raise FieldError(f"sizes cannot be made of this student: {reason}", at=place, hint=hint)

    def _check_texts_of_phases(self) -> None:
        """Raise FieldError at a phase whose text is none of the data's."""
        sources = (self.data and self.data.sources) or {}
        for i, phase in enumerate((self.distill and self.distill.phases) or ()):
            place = ("distill", "phases", i, "data")
            if phase.data is not None and not sources:
                hint = "name texts: data: {sources: {web: {...}, code: {...}}}"
                raise FieldError("the data has no sources with names", hint=hint, at=place)
            if isinstance(phase.data, str) and phase.data not in sources:
                hint = did_you_mean(phase.data, list(sources)) or f"data.sources has {', '.join(sources)}"
                raise FieldError(f"there is no source '{phase.data}'", hint=hint, at=place)
            if isinstance(phase.data, Mapping):
                check_blend(phase.data, sources, at=place)
            texts = {} if self.data is None else self.data.texts
            read = [phase.data] if isinstance(phase.data, str) else list(phase.data or texts)
            if phase.loss_on is not None and not any(texts[name].is_chat for name in read if name in texts):
                hint = "give a source its messages, or prompt and response; of other text every token is learned"
                message = "there are no conversations in the text of this phase"
                raise FieldError(message, hint=hint, at=("distill", "phases", i, "loss_on"))

    @staticmethod
    def _check_isolated(distill: DistillSpec) -> None:
        """Raise FieldError for texts that have no documents beside each other."""
        refused = {
            "generated": "a model writes its sequences as one text each",
            "on_policy": "a student writes its sequences as one text each",
            "faithful": "with faithful.padding a sequence is one document",
        }
        given = {"faithful": distill.faithful is not None and distill.faithful.padding}
        for name, reason in refused.items():
            if given.get(name, getattr(distill, name) is not None):
                message = f"data.isolate_documents does not go with it: {reason}"
                raise FieldError(message, hint="remove one of both", at=("distill", name))

    @staticmethod
    def _check_writing(options: DistillResources, *, reads: bool) -> None:
        """Raise FieldError where a student could not write text while it is trained so."""
        refused = {
            "parallel": options.workers > 1 and options.parallel == "fsdp",
            "teacher": options.workers > 1 and options.teacher == "sharded" and reads,
            "compile": options.compile,
        }
        reasons = {
            "parallel": ("a student that is cut over workers cannot write text", "use parallel: ddp"),
            "teacher": (
                "a teacher that is cut over workers cannot write along",
                "leave out teacher_share and long_range",
            ),
            "compile": ("compiled layers cannot write text: every token has another length", "set compile: false"),
        }
        if name := next((name for name, is_refused in refused.items() if is_refused), None):
            message, hint = reasons[name]
            raise FieldError(f"{message}, as distill.on_policy has it", hint=hint, at=("execution", "distill", name))

    def baseline(self, kind: str) -> Any:
        """The settings of one baseline, or None where the spec does not list it."""
        return next((getattr(item, kind) for item in self.baselines if getattr(item, kind) is not None), None)


def request(name: str, revision: str | None) -> str:
    """A name of the hub as a spec asks for it: "owner/name", or "owner/name@revision"."""
    return name if revision is None else f"{name}@{revision}"


@dataclass(frozen=True)
class Pins:
    """Commits by request, as a lock has them; the hub is asked for all others."""

    models: Mapping[str, str] = field(default_factory=dict)
    datasets: Mapping[str, str] = field(default_factory=dict)
    only_offline: bool = False  # the hub is asked for these, too, and they are for where it does not answer


NO_PINS = Pins()


class Memo(dict[Hashable, Any]):
    """What is read or worked out once for many experiments, by key, while no file changes."""

    def __call__(self, key: Hashable, make: Callable[[], T], *same: object) -> T:
        """`same`: what else belongs to the key, but cannot be hashed: those very objects, which are kept."""
        key = key, *map(id, same)
        found = self.get(key)
        if found is None:
            found = self[key] = make(), same
        known: T = found[0]
        return known


@dataclass(frozen=True)
class Entry:
    """One experiment of a spec file, not validated yet."""

    document: Document
    label: str = ""  # "" where the file has one experiment only
    axes: dict[str, str] = field(default_factory=dict)  # its coordinates: {"variant": "no-kl", "seed": "1"}

    def with_document(self, document: Document) -> Self:
        """The same experiment with another document. Raises SpecError where that is not valid."""
        return replace(self, document=document)

    def validated(self, known: Sections | None = None) -> "SpecFile":
        """known: sections of other experiments (see `validate`)."""
        return SpecFile(self.document, self.label, self.axes, spec=validate(Spec, self.document, known))


@dataclass(frozen=True, kw_only=True)
class SpecFile(Entry):
    """A validated spec with its document, so that later checks can point at a line of the file."""

    spec: Spec
    pins: Pins = NO_PINS  # the revisions of a lock
    once: Memo = field(default_factory=Memo, compare=False, repr=False)  # shared by those that are compiled together

    def with_document(self, document: Document) -> Self:
        return replace(self, document=document, spec=validate(Spec, document))

    def folder(self, path: Location = ()) -> Path:
        """The folder that the relative path at `path` starts from: that of the file in which it is written."""
        named = self.document.nearest(path).file
        return self.once(("folder", named), lambda: named.absolute().parent)

    def known(self, what: Hashable, sections: Sequence[str], make: Callable[[], T], *same: object) -> T:
        """What `make` returns, computed once for all experiments that have these sections from the same lines."""
        return self.once((what, *(self.document.root.get(name) for name in sections)), make, *same)

    def problem(self, path: Location, message: str, hint: str | None = None, *, key: bool = False) -> Problem:
        return self.document.problem(path, message, hint, key=key)

    def error(self, *problems: Problem) -> SpecError:
        return self.document.error(problems)

    def error_at(self, path: Location, message: str, hint: str | None = None) -> SpecError:
        return self.error(self.problem(path, message, hint))


def memoized_for(*sections: str) -> Callable[[F], F]:
    """A decorator: compute a function of a spec file once for all experiments with these sections and arguments."""

    def decorate(function: F) -> F:
        @wraps(function)
        def known(file: SpecFile, /, *args: Any, **named: Any) -> Any:
            given = [*args, *named.values()]
            plain = [value for value in given if isinstance(value, str | int | tuple | None)]
            same = [value for value in given if not isinstance(value, str | int | tuple | None)]
            return file.known((function, *plain), sections, lambda: function(file, *args, **named), *same)

        return cast(F, known)

    return decorate
