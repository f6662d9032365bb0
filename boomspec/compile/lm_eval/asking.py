"""How each lm-eval task of a spec is asked: as a chat, with which generation settings, what is answer, how often.

What `evaluate` says is for all tasks that it fits; what a task says itself has to fit it. Records hold what can change
a task's numbers and nothing else: no few-shot layout without examples, no settings that are the task's own.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from boomspec.compile.lm_eval.sources import definition_of, is_known
from boomspec.compile.lm_eval.tasks import SingleTask
from boomspec.compile.lm_eval.template import MARKERS, ChatTemplate, RefusedError, template_of
from boomspec.core import tasks
from boomspec.core.errors import Problem
from boomspec.core.tasks.asking import TRUNCATING, sampled
from boomspec.spec.sections.asking import AskingSpec, ChatSpec
from boomspec.spec.sections.evaluation import EvaluateSpec, TaskSpec
from boomspec.spec.spec_file import SpecFile, memoized_for
from boomspec.spec.yaml_reader import Location

_PROBE = "Say what is asked."
_WARM = "give it one: generation: {temperature: 0.7}"
_OF_TEXT = ("generation", "thinking", "samples")


class Asked(NamedTuple):
    """The fields of a record of `LmEval`; None: as the task says, or not at all."""

    chat: tasks.Chat | None = None
    generation: tasks.Generation | None = None
    thinking: tasks.Thinking | None = None
    samples: int | None = None


def asked(file: SpecFile, task: TaskSpec) -> Asked:
    evaluate, single = file.spec.evaluate, definition_of(file, task.task).tasks
    assert evaluate is not None
    chat = _chat(evaluate.chat_of(task), task, single) if _has_prompts(single) else None
    if not _writes(single):
        return Asked(chat)
    thinking, samples = evaluate.thinking_of(task), evaluate.samples_of(task)
    if thinking == "strip":
        template = template_of(file)
        end = (template.marker if template is not None else None) or next(iter(MARKERS))
        rule: tasks.Thinking | None = tasks.Thinking(start=MARKERS[end], end=end)
    else:
        rule = None if thinking is None else tasks.Thinking(start=thinking.start, end=thinking.end)
    generation = settings_of(evaluate, task)
    return Asked(chat, _without_own(generation, single), rule, samples if samples > 1 else None)


def settings_of(evaluate: EvaluateSpec, task: TaskSpec) -> tasks.Generation | None:
    """What a spec says about how text is generated, whatever the task says."""
    written = evaluate.generation_of(task)
    return None if written is None else tasks.Generation.model_validate(written.model_dump(exclude_none=True))


def _chat(chat: ChatSpec | None, task: TaskSpec, single: Sequence[SingleTask]) -> tasks.Chat | None:
    if chat is None:
        return None
    examples = any(one.in_python or one.shots(task.num_fewshot) for one in single) and task.num_fewshot != 0
    turned = chat.fewshot_as_multiturn if examples else None
    return tasks.Chat(system=chat.system, multiturn=turned, template=dict(sorted(chat.template.items())) or None)


def _without_own(generation: tasks.Generation | None, single: Sequence[SingleTask]) -> tasks.Generation | None:
    """The settings without those that greedy tasks have themselves. Drawn text keeps all: it is drawn here."""
    if generation is None:
        return None
    merged = [generation.over(one.generation) for one in single]
    if any(map(sampled, merged)):
        return generation
    own = [tasks.Generation.of(one.generation).model_dump() for one in single]
    own = [{**known, "stop": known["stop"] or _default_stop(one)} for known, one in zip(own, single, strict=True)]
    said = generation.model_dump(exclude_none=True)
    kept = {name: value for name, value in said.items() if any(known[name] != value for known in own)}
    return tasks.Generation.model_validate(kept) if kept else None


def _default_stop(task: SingleTask) -> tuple[str, ...] | None:
    """lm-eval's, where a task names none."""
    return None if "until" in task.generation else (str(task.get("fewshot_delimiter", "\n\n")),)


def _has_prompts(single: Sequence[SingleTask]) -> bool:
    return not single or any(one.output_type != "loglikelihood_rolling" for one in single)


def _writes(single: Sequence[SingleTask]) -> bool:
    return bool(single) and all(not one.in_python and one.output_type == "generate_until" for one in single)


@memoized_for("evaluate", "teacher", "data")
def asking_problems(file: SpecFile) -> tuple[Problem, ...]:
    """What does not fit: settings and tasks, chats and the teacher's template."""
    evaluate = file.spec.evaluate
    if evaluate is None:
        return ()
    definitions = [definition_of(file, task.task).tasks for task in evaluate.tasks]
    known = [is_known(file, task.task) for task in evaluate.tasks]
    problems = list(_unused(file, evaluate, definitions)) if all(known) else []
    for index, (task, single) in enumerate(zip(evaluate.tasks, definitions, strict=True)):
        problems += _of_task(file, index, task, single) if known[index] else ()
    chats: dict[Location, ChatSpec] = {}
    for index, (task, single) in enumerate(zip(evaluate.tasks, definitions, strict=True)):
        if (chat := evaluate.chat_of(task)) is not None and _has_prompts(single):
            chats.setdefault(_place(task, index, "chat"), chat)
    for place, chat in chats.items():
        problems += _of_chat(file, place, chat, template_of(file))
    return tuple(problems)


def _place(task: TaskSpec, index: int, field: str) -> Location:
    """Where a field of a task is said."""
    return ("evaluate", field) if getattr(task, field) is None else ("evaluate", "tasks", index, field)


def _unused(file: SpecFile, evaluate: EvaluateSpec, definitions: list[Any]) -> Iterator[Problem]:
    """What is said for all tasks, and fits none."""
    for field in AskingSpec.model_fields:
        if getattr(evaluate, field) in (None, False, "keep") or not definitions:
            continue
        if field in _OF_TEXT and not any(map(_writes, definitions)):
            message, hint = "no task here only has models generate text", "leave it out"
            yield file.problem(("evaluate", field), message, hint)
        elif field == "chat" and not any(map(_has_prompts, definitions)):
            yield file.problem(("evaluate", field), "no task here has a prompt", "leave it out")


def _of_task(file: SpecFile, index: int, task: TaskSpec, single: Sequence[SingleTask]) -> Iterator[Problem]:
    evaluate = file.spec.evaluate
    assert evaluate is not None
    if task.chat and not _has_prompts(single):
        message = f"'{task.task}' measures texts without a prompt: there are no turns"
        yield file.problem(("evaluate", "tasks", index, "chat"), message, "leave it out for this task")
    if not _writes(single):
        for field in _OF_TEXT:
            if getattr(task, field) not in (None, "keep"):
                in_python = any(one.in_python for one in single)
                what = "is a class in Python, which has settings of its own" if in_python else "generates no text"
                if not in_python and any(one.output_type == "generate_until" for one in single):
                    what = "has parts that generate no text"
                hint = "leave it out for this task"
                yield file.problem(("evaluate", "tasks", index, field), f"lm-eval task '{task.task}' {what}", hint)
        return
    settings, samples = settings_of(evaluate, task), evaluate.samples_of(task)
    merged = [one.generation if settings is None else settings.over(one.generation) for one in single]
    greedy = next((one for one, own in zip(single, merged, strict=True) if not sampled(own)), None)
    cut = next((name for name in TRUNCATING if settings is not None and getattr(settings, name) is not None), None)
    if cut is not None and greedy is not None:
        message = f"lm-eval task '{greedy.name}' takes the most probable token, so {cut} cuts nothing off"
        own = task.generation is not None and getattr(task.generation, cut) is not None
        at = ("evaluate", *(("tasks", index) if own else ()), "generation", cut)
        yield file.problem(at, message, f"{cut} needs a temperature: generation: {{temperature: 0.7}}")
    if samples > 1:
        place = _place(task, index, "samples")
        if greedy is not None:
            message = f"lm-eval task '{greedy.name}' takes the most probable token: {samples} texts would be the same"
            yield file.problem(place, message, _WARM)
        if repeated := next((one for one in single if one.get("repeats") not in (None, 1)), None):
            message = f"lm-eval task '{repeated.name}' asks {repeated.get('repeats')} times by itself (repeats)"
            yield file.problem(place, message, "leave samples out for this task")


def _of_chat(file: SpecFile, place: Location, chat: ChatSpec, template: ChatTemplate | None) -> Iterator[Problem]:
    if template is None:
        return
    if not template.text:
        pretrained = file.spec.teacher.pretrain is not None
        whose = "the tokenizer that the teacher is trained with" if pretrained else "the teacher's tokenizer"
        hint = "leave chat out, or take a teacher that was trained on chats"
        yield file.problem(place, f"{whose} has no chat template", hint)
        return
    for variable in chat.template:
        if not template.knows(variable):
            message = f"the teacher's chat template has no variable '{variable}', so it would change nothing"
            yield file.problem((*place, "template", variable), message, "leave it out")
    if chat.system is None:
        return
    turns = [{"role": "system", "content": chat.system}, {"role": "user", "content": _PROBE}]
    at = (*place, "system")
    try:
        rendered = template.render(turns, chat.template)
        if rendered is not None and chat.system.strip() not in rendered:
            hint = "leave it out; instructions can stand in the task's own prompt"
            yield file.problem(at, "the teacher's chat template leaves the system prompt out", hint)
    except RefusedError as error:
        hint = "leave it out; instructions can stand in the task's own prompt"
        yield file.problem(at, f"the teacher's chat template refuses a system prompt: {error}", hint)


def asking_warnings(file: SpecFile) -> Iterator[str]:
    """What may be meant otherwise, though it can be run."""
    evaluate = file.spec.evaluate
    if evaluate is None or not any(map(evaluate.thinking_of, evaluate.tasks)):
        return
    template = template_of(file)
    if template is None or not template.text:
        return
    ends = {rule.end: name for name, task in zip(evaluate.names, evaluate.tasks, strict=True)
            if (rule := asked(file, task).thinking) is not None}  # fmt: skip
    for end, name in ends.items():
        if end not in template.text and end not in template.added:
            yield (
                f"evaluate: {name}: neither the teacher's chat template nor its tokenizer knows '{end}': "
                "texts that have no thought are scored as they are"
            )
