"""How a spec says that models are asked: what reaches the records, what does not, and what is refused, where."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from boomspec.compile.lm_eval import packages
from boomspec.compile.lm_eval.asking import asking_warnings
from boomspec.compile.lm_eval.packages import missing_packages
from boomspec.compile.lm_eval.tasks import stock_folder, task_index
from boomspec.core.errors import SpecError
from boomspec.core.tasks import Chat, Evaluate, Generation, LmEval, Thinking
from boomspec.plan.changes import compare
from boomspec.plan.origins import side
from boomspec.spec.sections.evaluation import EvaluateSpec
from tests.boomspec import model_folders
from tests.boomspec.conftest import Writer
from tests.messages import wording

CHOICE = (
    "task: choice\noutput_type: multiple_choice\ntest_split: test\ntraining_split: t\nmetric_list: [{metric: acc}]\n"
)
WARM = "task: warm\ntest_split: test\ngeneration_kwargs: {until: ['Q:'], max_gen_toks: 8, temperature: 0.6}\n"
GREEDY = WARM.replace("warm", "greedy").replace("0.6", "0.0, do_sample: false")
OTHERS = {
    "rolling": "task: rolling\noutput_type: loglikelihood_rolling\ntest_split: test\n",
    "python": "task: python\nclass: !function code.Own\n",
    "repeated": WARM.replace("task: warm", "task: repeated\nrepeats: 3"),
    "mixed": "group: mixed\ntask: [choice, greedy]\n",
    "needs": GREEDY.replace("greedy", "needs") + "process_results: !function code.results\n",
}
PLAIN = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if enable_thinking %}<think>{% endif %}"
)
REFUSES = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + PLAIN
)
IGNORES = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}"


class Asking:
    """Compiles specs that ask tasks of a teacher in a folder, which has this chat template."""

    def __init__(self, folder: Path) -> None:
        self.writer, self.folder = Writer(folder), folder
        (folder / "tasks").mkdir()
        for name, text in {"choice": CHOICE, "greedy": GREEDY, "warm": WARM, **OTHERS}.items():
            (folder / "tasks" / f"{name}.yaml").write_text(text)
        (folder / "tasks" / "code.py").write_text("class Own:\n    pass\n\ndef results(doc, results):\n    return {}\n")
        task_index.cache_clear()
        model_folders.llama(folder / "teacher", layers=4)
        self.template(PLAIN)

    def template(self, text: str | None) -> None:
        config = {} if text is None else {"chat_template": text, "eos_token": {"content": "</s>"}}
        (self.folder / "teacher" / "tokenizer_config.json").write_text(json.dumps(config))

    def compiled(self, tasks: list[Any], **fields: Any) -> Any:
        evaluate = {"tasks_folder": "tasks", "tasks": tasks, **fields}
        teacher, student = {"model": "./teacher"}, {"keep": [0, 2]}
        sections = {"teacher": teacher, "student": student, "evaluate": evaluate, "baselines": [], "data": None}
        text = {"files": "*.txt", "sequence_length": 16}
        return self.writer.edited(*{**sections, "data": text}.items())

    def measures(self, tasks: list[Any], **fields: Any) -> dict[str, LmEval]:
        found: dict[str, LmEval] = {}
        for node in self.compiled(tasks, **fields).graph.nodes.values():
            record = node.task.record
            if isinstance(record, Evaluate) and isinstance(record.measure, LmEval) and "teacher" in node.name:
                found[node.name.removeprefix("evaluate teacher: ")] = record.measure
        return found


@pytest.fixture
def asking(folder: Path) -> Asking:
    return Asking(folder)


QWEN = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "presence_penalty": 0.5, "max_tokens": "1k", "stop": ["A:"]}


def test_what_is_said_for_all_tasks_reaches_those_that_it_fits(asking: Asking) -> None:
    chat = {"system": "Be brief.", "template": {"enable_thinking": False}}
    settings = {**QWEN, "max_tokens": 10}
    found = asking.measures(
        ["choice", "greedy", "rolling"], chat=chat, generation=settings, thinking="strip", samples=4
    )
    turned = Chat(system="Be brief.", template={"enable_thinking": False})
    own = {"chat": turned, "seed": 0, "bootstrap_iters": 1000}
    assert found["choice"] == LmEval(task="choice", chat=turned)
    assert found["rolling"] == LmEval(task="rolling", bootstrap_iters=1000)
    assert found["greedy"] == LmEval(
        task="greedy",
        generation=Generation(**{**settings, "stop": ("A:",)}),
        thinking=Thinking(start="<think>", end="</think>"),
        samples=4,
        **own,
    )


def test_a_task_says_it_otherwise(asking: Asking) -> None:
    tasks = [
        "warm",
        {"task": "warm", "chat": False, "generation": {"temperature": 0}, "thinking": "keep", "samples": 1},
    ]
    settings = {"temperature": 0.7, "top_p": 0.8}
    found = asking.measures(tasks, chat=True, generation=settings, thinking={"end": "</t>"}, samples=2)
    assert set(found) == {"warm (chat, T 0.7, 2 texts)", "warm (T 0)"}
    assert found["warm (T 0)"] == LmEval(task="warm", generation=Generation(temperature=0), bootstrap_iters=1000)
    assert found["warm (chat, T 0.7, 2 texts)"].thinking == Thinking(end="</t>")


def test_what_cannot_change_a_number_is_in_no_record(asking: Asking) -> None:
    """Where examples stand without any; settings that a greedy task has itself; the seed of greedy text."""
    settings = {"temperature": 0, "max_tokens": 8, "stop": ["Q:"]}
    plain = asking.measures(["greedy", "choice"])
    assert asking.measures(["greedy", "choice"], generation=settings, thinking="keep", samples=1, chat=False) == plain
    for multiturn in (True, False):
        chat = {"fewshot_as_multiturn": multiturn, "template": {}}
        asked = asking.measures(["choice", {"task": "choice", "num_fewshot": 2}], chat=chat)
        assert asked["choice"].chat == Chat()
        assert asked["choice (2-shot)"].chat == Chat(multiturn=multiturn)
    assert asking.measures(["greedy"], generation={"temperature": 0.5})["greedy"].seed == 0
    assert asking.measures(["warm"], generation={"temperature": 0})["warm"].seed is None


def test_records_without_these_fields_are_what_they_were(asking: Asking) -> None:
    assert "chat" not in asking.measures(["greedy"])["greedy"].model_dump(exclude_none=True)
    assert LmEval(task="t").model_dump(mode="json", exclude_none=True) == {"type": "lm_eval", "task": "t"}


def test_the_end_of_a_thought_is_the_one_that_the_template_knows(asking: Asking) -> None:
    asking.template(PLAIN + "[THINK][/THINK]")
    assert asking.measures(["greedy"], thinking="strip")["greedy"].thinking == Thinking(start="[THINK]", end="[/THINK]")


def test_a_marker_that_the_teacher_does_not_know_is_a_warning(asking: Asking) -> None:
    files = asking.compiled(["greedy"], thinking={"end": "<over>"}).files
    assert [wording("asking.unknown_marker") in line for line in asking_warnings(files[0])] == [True]
    asking.template(PLAIN + "<over>")
    assert list(asking_warnings(asking.compiled(["greedy"], thinking={"end": "<over>"}).files[0])) == []


CHANGED = {
    "chat": (True, {"choice", "greedy"}),
    "generation": ({"temperature": 0.7}, {"greedy"}),
    "thinking": ("strip", {"greedy"}),
}


@pytest.mark.parametrize("field", CHANGED)
def test_a_field_is_named_for_the_evaluations_that_it_changes(asking: Asking, field: str) -> None:
    value, changed = CHANGED[field]
    pair = [asking.compiled(["choice", "greedy"], **more) for more in ({}, {field: value})]
    found = compare(*(side(one, one.graph.experiments[0]) for one in pair))
    named = {task.name for task in found.tasks if task.state == "changed" and "teacher" in task.name}
    assert named == {f"evaluate teacher: {name}" for name in changed}
    assert {one.name.split(".")[1] for one in found.fields} == {field}


def test_a_plan_says_how_much_text_there_is_at_most(asking: Asking) -> None:
    settings = {"temperature": 0.7, "max_tokens": 10}
    tasks = [{"task": "greedy", "limit": 20}, "warm"]
    nodes = asking.compiled(tasks, generation=settings, samples=4).graph.nodes.values()
    costs = {node.name: node.cost for node in nodes if "teacher: " in node.name}
    limited, whole = costs["evaluate teacher: greedy"], costs["evaluate teacher: warm"]
    assert wording("asking.tokens_of_all", tokens=800) in limited.unknown
    assert wording("asking.tokens_of_one") in whole.unknown
    assert limited.memory["cache"] > 0


def test_text_is_generated_by_one_model_at_a_time(asking: Asking) -> None:
    """Likelihoods of a family are measured together; a graph says which tasks share nothing."""
    nodes = asking.compiled(["greedy", "choice", "python"], chat=True).graph.nodes.values()
    alone = {node.name.rpartition(": ")[2] for node in nodes if node.generates}
    assert alone == {"greedy", "python"}
    assert all(node.name.startswith("evaluate ") for node in nodes if node.generates)


WARMTH = {"temperature": 0.7}
PROBLEMS: dict[str, tuple[list[Any], dict[str, Any], str, str]] = {
    "a chat without a template": (["greedy"], {"chat": True}, "evaluate.chat", wording("asking.no_template")),
    "its own chat without a template": (
        [{"task": "greedy", "chat": True}],
        {},
        "evaluate.tasks[0].chat",
        wording("asking.no_template"),
    ),
    "text of a task that generates none": (
        ["greedy", {"task": "choice", "generation": WARMTH}],
        {},
        "evaluate.tasks[1].generation",
        wording("asking.generates_none"),
    ),
    "text of no task": (["choice"], {"generation": WARMTH}, "evaluate.generation", wording("asking.no_task_generates")),
    "thoughts of no task": (
        ["choice"],
        {"thinking": "strip"},
        "evaluate.thinking",
        wording("asking.no_task_generates"),
    ),
    "text of half a group": (
        [{"task": "mixed", "samples": 4}],
        {},
        "evaluate.tasks[0].samples",
        wording("asking.has_parts"),
    ),
    "text of a class": (
        [{"task": "python", "generation": WARMTH}],
        {},
        "evaluate.tasks[0].generation",
        wording("asking.in_python"),
    ),
    "turns of a text": ([{"task": "rolling", "chat": True}], {}, "evaluate.tasks[0].chat", wording("asking.no_prompt")),
    "turns of texts alone": (["rolling"], {"chat": True}, "evaluate.chat", wording("asking.no_task_has_a_prompt")),
    "temperature 0 and top_p": (
        ["greedy"],
        {"generation": {"temperature": 0, "top_p": 0.8}},
        "evaluate.generation.top_p",
        wording("asking.nothing_drawn"),
    ),
    "top_k of a greedy task": (
        ["greedy"],
        {"generation": {"top_k": 20}},
        "evaluate.generation.top_k",
        wording("asking.cuts_nothing"),
    ),
    "several equal texts": (["greedy"], {"samples": 4}, "evaluate.samples", wording("asking.same_texts")),
    "several texts of a greedy task": (
        [{"task": "warm", "samples": 4, "generation": {"temperature": 0}}],
        {},
        "evaluate.tasks[0].samples",
        wording("asking.same_texts"),
    ),
    "several texts of one that asks again": (
        [{"task": "repeated", "samples": 4}],
        {},
        "evaluate.tasks[0].samples",
        wording("asking.repeats"),
    ),
    "too long texts": (
        ["greedy"],
        {"generation": {"max_tokens": "10k"}},
        "evaluate.tasks[0]",
        wording("asking.too_long"),
    ),
    "an unknown variable": (
        ["greedy"],
        {"chat": {"template": {"enable_thinkin": False}}},
        "evaluate.chat.template.enable_thinkin",
        wording("asking.no_variable"),
    ),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_what_does_not_fit_is_an_error_at_its_place(asking: Asking, name: str) -> None:
    tasks, fields, place, message = PROBLEMS[name]
    asking.template(None if message == wording("asking.no_template") else PLAIN)
    config = json.loads((asking.folder / "teacher/config.json").read_text())
    (asking.folder / "teacher/config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}))
    with pytest.raises(SpecError, match=message) as raised:
        asking.compiled(tasks, **fields)
    assert place in {problem.where for problem in raised.value.problems}


@pytest.mark.parametrize(
    ("template", "message"), [(REFUSES, wording("asking.refused")), (IGNORES, wording("asking.ignored"))]
)
def test_a_system_prompt_that_the_template_does_not_take_is_an_error(
    asking: Asking, template: str, message: str
) -> None:
    asking.template(template)
    asking.measures(["greedy"], chat=True)
    with pytest.raises(SpecError, match=message) as raised:
        asking.compiled(["greedy"], chat={"system": "Be brief."})
    assert [problem.where for problem in raised.value.problems] == ["evaluate.chat.system"]


def test_the_settings_of_the_docs_are_those_of_the_language() -> None:
    """Their variables are those of Qwen3's template, their tasks those of the installed lm-eval."""
    page = (Path(__file__).parents[2] / "docs/evaluation.md").read_text()
    written = [yaml.safe_load(block)["evaluate"] for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    index = task_index(stock_folder())
    for fields in written:
        sections = EvaluateSpec.model_validate({**fields, "tasks": [{"task": name} for name in fields["tasks"]]})
        assert all(sections.generation_of(task) and sections.samples_of(task) == 4 for task in sections.tasks)
        assert set(fields["tasks"]) <= index.names
    assert len(written) == 2


def test_a_package_that_a_task_needs_is_named_with_what_installs_it(asking: Asking) -> None:
    code = asking.folder / "tasks/code.py"
    code.write_text(f"import no_such_package\nfrom lm_eval import utils\n{code.read_text()}")
    with pytest.raises(SpecError, match=wording("asking.not_installed")) as raised:
        asking.compiled(["needs"])
    assert raised.value.problems[0].hint == "pip install no_such_package"


def test_packages_of_lm_eval_s_extras_are_installed_by_their_extra(tmp_path: Path, monkeypatch: Any) -> None:
    """What is caught and raised again is needed, what is caught alone is not."""
    caught = "try:\n    import {name}\nexcept ImportError as error:\n    {then}\n"
    needed, optional = caught.format(name="langdetect", then="raise error"), caught.format(name="gone", then="pass")
    text = f"import os\n{needed}{optional}"
    (tmp_path / "code.py").write_text(text)
    monkeypatch.setattr(packages, "_is_installed", lambda name: name == "os")
    assert missing_packages([tmp_path / "code.py"]) == ("langdetect", "pip install 'lm-eval[ifeval]'")
