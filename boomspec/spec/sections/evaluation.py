"""The section `evaluate`: what is measured of every model."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from boomspec.core.tasks import Precision
from boomspec.core.types import AlsoText, ShareField, SizesField, Strict, about
from boomspec.spec.sections.asking import AskingSpec, ChatSpec, GenerationSpec, ThinkingSpec
from boomspec.spec.sections.deployment import SpeedSpec, TextsSpec
from boomspec.spec.sections.training import Positive
from boomspec.spec.validate import FieldError, goes_with

_TASK_NAME = r"(?!held_out$)[^\s/:]([^/:\n\r\t]{0,78}[^\s/:])?"  # of a column, a file and a part of a task's name


def _plain_name(name: str) -> str:
    if not re.fullmatch(_TASK_NAME, name):
        hint = "up to 80 characters on one line, without / and :, and not held_out"
        raise FieldError(f"'{name}' is no name for a measure", hint=hint)
    return name


class TaskSpec(AskingSpec):
    """One way of asking one lm-eval task."""

    task: str = about("Name of the task.", ["arc_easy"], min_length=1)
    num_fewshot: int | None = about("Examples in the prompt. Default: what the task says.", [0, 5], default=None, ge=0)
    limit: int | None = about("Only the first so many documents. Default: all.", [100], default=None, ge=1)
    name: Annotated[str, AfterValidator(_plain_name)] | None = Field(None, examples=["arc_easy without examples"])
    """What it is called in tables and figures. Default: the task's name; where a task is asked in several ways,
    with what tells them apart behind it: arc_easy (5-shot)."""


class HeldOutSpec(Strict):
    """Perplexity and bits per byte of the held-out text."""

    max_tokens: Positive | None = about("Measure only so many tokens. Default: all.", ["1M"], default=None)


class DuringSpec(Strict):
    """What is measured while the student is trained: its held-out loss, and that of sizes made with it."""

    sizes: tuple[SizesField, ...] | None = Field(None, examples=[["24 layers", "80%"], []])
    """Sizes between student and teacher, made of the student as it is; []: the student alone. Default: two, at about a
    third and two thirds of the way."""
    max_tokens: Positive = Field(100_000, examples=["1M"])
    """So much of the held-out text."""


class EvaluateSpec(AskingSpec):
    """How every model of the family is measured."""

    tasks: tuple[Annotated[TaskSpec, AlsoText(lambda name: {"task": name})], ...] = Field(
        (), examples=[["arc_easy", {"task": "hellaswag", "limit": 1000}]]
    )
    """lm-eval tasks, by name or as {task: name, num_fewshot: 5, limit: 100}."""
    tasks_folder: str | None = Field(None, examples=["tasks"], min_length=1)
    """Folder of lm-eval task YAMLs, relative to the spec."""
    held_out: HeldOutSpec | None = Field(None, examples=[{}, {"max_tokens": "1M"}])
    """Measure the held-out text; {} takes all of it."""
    texts: TextsSpec | None = Field(None, examples=[{"prompts": ["What is the capital of France?"]}])
    """Texts that every model writes behind the same prompts, for the report."""
    speed: SpeedSpec | None = Field(None, examples=[{}, {"prompt_tokens": 2048, "batch": 8}])
    """Tokens a second and memory of every model on the machine at hand; {} takes the defaults."""
    every: ShareField | None = Field(None, examples=["10%", 500])
    """Measure the held-out loss during the distillation, too: so many steps apart, or a share of them, in front of the
    first step, and after the last. It belongs to the training: one that has been made is made again. Default: not."""
    during: DuringSpec | None = Field(None, examples=[{"sizes": ["80%"]}])
    """What is measured then. Default: the student and two sizes."""
    precision: Precision = about("In which the models compute.", default="bf16")
    backend: Literal["transformers", "vllm"] = Field("transformers", examples=["vllm"])
    """What writes the text of tasks that have a model generate. vllm: faster, on GPUs whose machines have it installed;
    its kernels are others, so results differ a little. Everything else is measured with transformers."""
    bootstrap_iters: int = Field(1000, ge=0)
    """Resamples behind a standard error of lm-eval that has no formula (F1, perplexity, BLEU). 1000 know it to
    about 2 %. 0: no standard errors."""

    def model_post_init(self, _: object) -> None:
        if not (self.tasks or self.held_out or self.texts or self.speed or self.every):
            raise FieldError("nothing is measured: give tasks, held_out, texts, speed or every")
        goes_with(self, "every", "during")
        if self.every is not None and not self.every.value:
            raise FieldError("must be above 0", at=("every",), hint="10% measures 11 times")
        goes_with(self, "tasks", "tasks_folder", "bootstrap_iters", "backend", *AskingSpec.model_fields)
        settings = [task.model_copy(update={"name": None, **self._asked(task)}) for task in self.tasks]
        if twice := sorted({one.task for one in settings if settings.count(one) > 1}):
            raise FieldError(f"task '{twice[0]}' is listed twice", at=("tasks",))
        names = self.names
        if same := next((name for name in names if names.count(name) > 1), None):
            raise FieldError(f"two tasks are called '{same}'", at=("tasks",), hint="give one another `name`")

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each task: its own, else lm-eval's with what differs from other entries of the same task."""
        return tuple(task.name or self._derived(task) for task in self.tasks)

    def chat_of(self, task: TaskSpec) -> ChatSpec | None:
        chat = self.chat if task.chat is None else task.chat
        return ChatSpec() if chat is True else chat or None

    def generation_of(self, task: TaskSpec) -> GenerationSpec | None:
        """A task's own fields over those for all tasks."""
        return self.generation if task.generation is None else task.generation.over(self.generation)

    def thinking_of(self, task: TaskSpec) -> Literal["strip"] | ThinkingSpec | None:
        thinking = self.thinking if task.thinking is None else task.thinking
        return None if thinking == "keep" else thinking

    def samples_of(self, task: TaskSpec) -> int:
        return task.samples or self.samples or 1

    def _asked(self, task: TaskSpec) -> dict[str, object]:
        whole = {"chat": self.chat_of(task), "generation": self.generation_of(task)}
        return {**whole, "thinking": self.thinking_of(task), "samples": self.samples_of(task)}

    def _derived(self, task: TaskSpec) -> str:
        twins = [other for other in self.tasks if other.task == task.task]
        parts = []
        if task.num_fewshot is not None and any(other.num_fewshot != task.num_fewshot for other in twins):
            parts.append(f"{task.num_fewshot}-shot")
        if task.limit is not None and any(other.limit != task.limit for other in twins):
            parts.append(f"first {task.limit}")
        if self.chat_of(task) and not all(map(self.chat_of, twins)):
            parts.append("chat")
        warmth = [(settings := self.generation_of(one)) and settings.temperature for one in (task, *twins)]
        if warmth[0] is not None and any(other != warmth[0] for other in warmth):
            parts.append(f"T {warmth[0]:g}")
        if self.samples_of(task) > 1 and any(self.samples_of(other) != self.samples_of(task) for other in twins):
            parts.append(f"{self.samples_of(task)} texts")
        return f"{task.task} ({', '.join(parts)})" if parts else task.task
