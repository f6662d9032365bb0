"""lm-eval tasks as chats, drawn text, thoughts, several texts a document: against lm-eval's own Hugging Face model."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from boomspec.core.errors import BoomspecError
from boomspec.core.graph import Source
from boomspec.core.layers import TEACHER, teacher_layers
from boomspec.core.tasks import Chat, Generation, LmEval, Thinking
from runners.evaluation.lm_eval_family import Harness
from runners.evaluation.lm_eval_runner import run_task
from runners.evaluation.members import LayerPlans
from runners.modeling.models import load_frozen
from runners.runtime.context import Progress
from tests.messages import wording
from tests.runners.lm_eval_tasks import (
    ANSWER,
    BOS,
    CHOICE,
    TEMPLATE,
    THINK,
    WORDS,
    WRITTEN,
    chat_model,
    lines,
    measured,
    numbers,
    row,
    source,
    strict,
    table,
    task,
)

REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + TEMPLATE
IGNORES = TEMPLATE.replace("{{ m['content'] }}", "{% if m['role'] != 'system' %}{{ m['content'] }}{% endif %}")
SHOTS = {"training_split": "train", "fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}}
SYSTEM = "41 42"
SAMPLED = Generation(temperature=0.9, top_p=0.95, presence_penalty=0.5, max_tokens=6)


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    return chat_model(tmp_path_factory.mktemp("student"))


ROWS = [
    row(3 + i % 3, answer=str(i % 5 + 1), label=i % 2) | {"context": numbers(3 + i % 3, 2 * i + 1)} for i in range(8)
]


def made(folder: Path, config: dict[str, Any]) -> Source:
    """The task, with examples in a split of their own."""
    folder.mkdir(parents=True)
    examples = [row(2, answer="9") | {"context": "30 31"}, row(2, answer="8", label=1) | {"context": "32 33"}]
    (folder / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in examples))
    files = {"dataset_kwargs": {"data_files": {"test": "rows.jsonl", "train": "train.jsonl"}}}
    return task(folder, ROWS, {**config, **SHOTS, **files})


def by_lm_eval(folder: Path, student: Path, **options: Any) -> dict[str, Any]:
    """What lm-eval measures of the model's folder, with its own model and its own options."""
    config = (folder / "own.yaml").read_text()
    for name in ("rows.jsonl", "train.jsonl"):  # lm-eval's paths start where the process runs
        config = config.replace(f": {name}", f": {folder / name}")
    (folder.parent / "plain").mkdir(exist_ok=True)
    (folder.parent / "plain/own.yaml").write_text(config)
    model_args = {"pretrained": str(student / "model"), "dtype": "float32", **options.pop("model_args", {})}
    manager = TaskManager(include_path=str(folder.parent / "plain"), include_defaults=False)
    options = {"batch_size": 1, "device": "cpu", "bootstrap_iters": 1000, "log_samples": True, **options}
    found = simple_evaluate("hf", model_args=model_args, tasks=["own"], task_manager=manager, **options)
    assert found is not None
    return found


def compared(found: dict[str, Any], folder: Path, expected: dict[str, Any]) -> None:
    """The same numbers, and the same prompts and texts, or likelihoods up to rounding."""
    numbers = {key: value for key, value in expected["results"]["own"].items() if "," in key}
    assert {key: value for key, value in found["results"]["own"].items() if "," in key} == pytest.approx(numbers)
    samples = [strict(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    for own, other in zip(samples, expected["samples"]["own"], strict=True):
        assert [arguments[0] for arguments in own["arguments"]] == [arguments[0] for arguments in other["arguments"]]
        for answer, known in zip(own["resps"], other["resps"], strict=True):
            if isinstance(known[0], str):
                assert answer == known
            else:
                assert float(answer[0][0]) == pytest.approx(float(known[0][0]), rel=1e-4)


@pytest.mark.parametrize("config", [CHOICE, WRITTEN], ids=["likelihood", "text"])
@pytest.mark.parametrize("multiturn", [True, False])
def test_a_chat_measures_what_lm_eval_s_own_model_does(student, tmp_path, config, multiturn: bool) -> None:
    made(tmp_path / "tasks", config)
    chat = Chat(system=SYSTEM, multiturn=multiturn, template={"think": False})
    found = measured(tmp_path / "out", student, source(tmp_path / "tasks"), chat=chat, num_fewshot=2)
    expected = by_lm_eval(
        tmp_path / "tasks",
        student,
        num_fewshot=2,
        apply_chat_template=True,
        fewshot_as_multiturn=multiturn,
        system_instruction=SYSTEM,
        model_args={"chat_template_args": {"think": False}},
    )
    compared(found, tmp_path / "out", expected)
    prompt = strict((tmp_path / "out/samples.jsonl").read_text().splitlines()[0])["arguments"][0][0]
    turns = [f"51 {SYSTEM} <end>", "52 30 31 <end>", "53 9 <end>" if config is WRITTEN else "53 7 <end>"]
    assert prompt.startswith(f"{BOS} {' '.join(turns[: 3 if multiturn else 1])}")
    assert prompt.count(BOS) == 1
    plain = measured(tmp_path / "plain-out", student, source(tmp_path / "tasks"), num_fewshot=2)
    assert plain["config"].get("chat") is None
    assert found["config"]["chat"] == {"system": SYSTEM, "multiturn": multiturn, "template": {"think": False}}


def test_sizes_that_are_measured_together_are_asked_alike(student, tmp_path) -> None:
    """The requests are made once, and the whole teacher's numbers are those of its folder."""
    made(tmp_path / "tasks", CHOICE)
    tasks = source(tmp_path / "tasks")
    measure = LmEval(task="own", chat=Chat(system=SYSTEM, multiturn=True), num_fewshot=2)
    teacher = load_frozen(student / "model", dtype=torch.float32)
    plans = [teacher_layers(range(1)), teacher_layers(range(2))]
    members = LayerPlans({TEACHER: teacher}, plans)
    lm = Harness(members, tokenizer=student / "model", batch_size=1, progress=Progress(None), measure=measure)
    small, whole = (found for _, found, _ in run_task(lm, measure=measure, source=tasks))
    alone = measured(tmp_path / "out", student, tasks, **measure.model_dump(exclude={"type", "task"}))
    assert isinstance(whole, dict)
    assert isinstance(small, dict)
    assert whole["results"]["own"]["acc,none"] == alone["results"]["own"]["acc,none"]
    own, other = ([document["resps"] for document in one["samples"]["own"]] for one in (whole, small))
    samples = [strict(line)["resps"] for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    assert [[float(a[0][0]) for a in one] for one in own] == [[float(a[0][0]) for a in one] for one in samples]
    assert own != other


def test_the_tokens_of_a_chat_begin_once(student) -> None:
    """lm-eval takes care of it by the text; the tokenizer alone would begin the chat's text once more."""
    tokenizer = AutoTokenizer.from_pretrained(student / "model")
    text = tokenizer.apply_chat_template([{"role": "user", "content": "1"}], tokenize=False)
    assert tokenizer.encode(text)[:2] == [WORDS[BOS]] * 2


def test_settings_over_those_of_the_task_are_lm_eval_s_gen_kwargs(student, tmp_path) -> None:
    made(tmp_path / "tasks", WRITTEN)
    settings = Generation(max_tokens=7, stop=("5",), repetition_penalty=1.4)
    found = measured(tmp_path / "out", student, source(tmp_path / "tasks"), generation=settings, num_fewshot=0)
    options = {"until": ["5"], "max_gen_toks": 7, "repetition_penalty": 1.4, "do_sample": False}
    expected = by_lm_eval(tmp_path / "tasks", student, num_fewshot=0, gen_kwargs=options)
    compared(found, tmp_path / "out", expected)
    assert found["configs"]["own"]["generation_kwargs"] == {
        "max_gen_toks": 7, "until": ["5"], "repetition_penalty": 1.4
    }  # fmt: skip


def texts(folder: Path) -> list[list[str]]:
    """Of every document."""
    return [strict(line)["resps"][0] for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_drawn_texts_do_not_depend_on_what_is_drawn_beside_them(student, tmp_path) -> None:
    """Neither on the batch, nor on how many documents or texts there are; on the seed."""
    made(tmp_path / "tasks", WRITTEN)
    found, tasks = {}, source(tmp_path / "tasks")
    for name, more in {
        "whole": {},
        "again": {},
        "few": {"limit": 3},
        "four": {"samples": 4},
        "seed": {"seed": 1},
    }.items():
        fields = {"generation": SAMPLED, "seed": 0, "num_fewshot": 0, **more}
        measured(tmp_path / name, student, tasks, **fields)
        found[name] = texts(tmp_path / name)
    assert found["whole"] == found["again"] != found["seed"]
    assert found["few"] == found["whole"][:3]
    assert [drawn[:1] for drawn in found["four"]] == found["whole"]
    assert all(len(drawn) == 4 and len(set(drawn)) > 1 for drawn in found["four"])


def test_means_of_several_texts_have_the_standard_error_of_documents(student, tmp_path) -> None:
    """Against the plain formulas on lm-eval's own score of each text."""
    config = {**WRITTEN, "metric_list": [{"metric": "exact_match"}, {"metric": "bleu"}]}
    config["generation_kwargs"] = {"until": [], "max_gen_toks": 1}
    fields = {"generation": Generation(temperature=2.0, top_k=4, max_tokens=1), "samples": 4, "seed": 0}
    measured(tmp_path / "first", student, task(tmp_path / "any", [row(3)] * 9, config), **fields)
    drawn = [text for one in texts(tmp_path / "first") for text in one]
    rows = [row(3, answer=max(drawn, key=drawn.count))] * 9
    found = measured(tmp_path / "out", student, task(tmp_path / "tasks", rows, config), **fields)
    own, counts = found["results"]["own"], found["counts"]["own"]
    answers = texts(tmp_path / "out")
    right_DK = np.array([[text == one["answer"] for text in drawn] for one, drawn in zip(rows, answers, strict=True)])
    means_D = right_DK.mean(1)
    assert 0 < means_D.mean() < 1
    assert own["exact_match mean@4,none"] == pytest.approx(means_D.mean())
    assert own["exact_match mean@4_stderr,none"] == pytest.approx(means_D.std(ddof=1) / math.sqrt(9))
    assert own["exact_match pass@4,none"] == pytest.approx(right_DK.any(1).mean())
    assert own["bleu mean@4_stderr,none"] == "N/A"
    assert (counts["documents"], counts["generations"]) == (9, 36)
    rows_of_table = {line["metric"]: line for line in table(tmp_path / "out")}
    assert rows_of_table["exact_match mean@4"]["higher_is_better"] == "True"
    items = [line.split(",") for line in (tmp_path / "out/items.csv").read_text().splitlines()[1:]]
    assert [float(line[-1]) for line in items if line[1] == "exact_match mean@4"] == pytest.approx(means_D)
    assert [line["done"] for line in lines(tmp_path / "out") if line.get("unit") == "documents scored"][-1] == 36


def test_a_group_has_means_of_its_tasks(student, tmp_path) -> None:
    task(tmp_path / "tasks", ROWS, WRITTEN)
    other = (tmp_path / "tasks/own.yaml").read_text().replace("task: own", "task: other")
    (tmp_path / "tasks/other.yaml").write_text(other)
    metrics = "[{metric: exact_match, weight_by_size: true}]"
    (tmp_path / "tasks/both.yaml").write_text(f"group: both\ntask: [own, other]\naggregate_metric_list: {metrics}\n")
    settings = Generation(temperature=1.5, top_k=5, max_tokens=1)
    fields = {"generation": settings, "samples": 3, "seed": 0, "num_fewshot": 0}
    results = measured(tmp_path / "out", student, source(tmp_path / "tasks", "both"), task="both", **fields)["results"]
    key = "exact_match mean@3,none"
    assert results["both"][key] == pytest.approx((results["own"][key] + results["other"][key]) / 2)
    assert texts(tmp_path / "out")[: len(ROWS)] != texts(tmp_path / "out")[len(ROWS) :]  # of other tasks, other seeds


THINKS = {**WRITTEN, "generation_kwargs": {"until": ["7"], "max_gen_toks": 12}}


def test_a_thought_is_no_answer_and_one_without_an_end_leaves_none(student, tmp_path) -> None:
    """Of what the model writes whole: its text behind the last marker, up to a stop there; none without a marker."""
    made(tmp_path / "tasks", THINKS)
    tasks, settings = source(tmp_path / "tasks"), Generation(temperature=3.0, max_tokens=12)
    fields = {"generation": settings, "samples": 6, "seed": 0, "num_fewshot": 0, "limit": 6}
    fields["chat"] = Chat(template={"think": True})
    unstopped = {**fields, "generation": settings.model_copy(update={"stop": ("no such",)})}
    measured(tmp_path / "whole", student, tasks, **unstopped)
    found = measured(tmp_path / "out", student, tasks, thinking=Thinking(start=THINK, end=ANSWER), **fields)
    unfinished = 0
    for drawn, answers in zip(texts(tmp_path / "whole"), texts(tmp_path / "out"), strict=True):
        for text, answer in zip(drawn, answers, strict=True):
            unfinished += ANSWER not in text
            expected = text.rpartition(ANSWER)[2].lstrip().split("7")[0] if ANSWER in text else ""
            assert answer == expected
    assert 0 < unfinished < 36
    own = found["results"]["own"]
    assert found["counts"]["own"]["unfinished_thoughts"] == unfinished
    assert own["unfinished_thoughts,none"] == pytest.approx(unfinished / 36)
    assert own["unfinished_thoughts_stderr,none"] > 0
    told = {line["metric"]: line for line in table(tmp_path / "out")}
    assert wording("chat.unfinished", count=unfinished) in told["exact_match mean@6"]["note"]
    assert told["unfinished_thoughts"]["higher_is_better"] == "False"


def test_a_text_that_begins_no_thought_is_all_answer(student, tmp_path) -> None:
    """Most greedy texts of this model begin none."""
    made(tmp_path / "tasks", {**THINKS, "generation_kwargs": {"until": [], "max_gen_toks": 12}})
    tasks, chat = source(tmp_path / "tasks"), Chat(template={"think": False})
    measured(tmp_path / "whole", student, tasks, chat=chat, num_fewshot=0)
    rule = Thinking(start=THINK, end=ANSWER)
    found = measured(tmp_path / "out", student, tasks, chat=chat, thinking=rule, num_fewshot=0)
    whole = texts(tmp_path / "whole")
    assert texts(tmp_path / "out") == [["" if THINK in text else text] for (text,) in whole]
    assert 0 < found["counts"]["own"]["unfinished_thoughts"] == sum(THINK in text for (text,) in whole) < len(whole)


REFUSED = {
    "no template": (None, {}, wording("chat.no_template")),
    "a refused system prompt": (REFUSES, {"system": SYSTEM}, wording("chat.refused")),
    "an ignored system prompt": (IGNORES, {"system": SYSTEM}, wording("chat.ignored")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_chat_that_a_template_cannot_render_is_an_error(tmp_path, name: str) -> None:
    template, chat, message = REFUSED[name]
    model = chat_model(tmp_path / "model", template)
    made(tmp_path / "tasks", WRITTEN)
    with pytest.raises(BoomspecError, match=message):
        measured(tmp_path / "out", model, source(tmp_path / "tasks"), chat=Chat(**chat), num_fewshot=0)


def test_a_description_that_a_template_refuses_is_left_out_as_lm_eval_does_and_noted(tmp_path) -> None:
    model = chat_model(tmp_path / "model", REFUSES)
    made(tmp_path / "tasks", {**WRITTEN, "description": "44"})
    found = measured(tmp_path / "out", model, source(tmp_path / "tasks"), chat=Chat(), num_fewshot=0)
    expected = by_lm_eval(tmp_path / "tasks", model, num_fewshot=0, apply_chat_template=True)
    compared(found, tmp_path / "out", expected)
    assert any(wording("chat.description_left_out") in line.get("note", "") for line in lines(tmp_path / "out"))


def test_the_same_request_twice_keeps_its_texts_apart(student, tmp_path) -> None:
    rows = [copy.deepcopy(ROWS[0]) for _ in range(3)]
    tasks = task(tmp_path / "tasks", rows, WRITTEN)
    measured(tmp_path / "out", student, tasks, generation=SAMPLED, samples=2, seed=0)
    drawn = texts(tmp_path / "out")
    assert len({text for document in drawn for text in document}) > 3
