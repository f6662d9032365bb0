"""lm-eval tasks that cannot be run are errors at `plan`, at their line, and not behind a training."""

import pytest

from boomspec.compile.lm_eval import checks
from boomspec.compile.lm_eval.checks import _positions, task_failures
from boomspec.compile.lm_eval.tasks import read_task, stock_folder
from boomspec.core.errors import SpecError
from boomspec.spec.sections.evaluation import TaskSpec
from tests.boomspec.conftest import Writer
from tests.messages import wording

CHOICE = "task: own\noutput_type: multiple_choice\ntest_split: test\nmetric_list: [{metric: acc}]\n"
WRITTEN = (
    "task: own\ntest_split: test\ngeneration_kwargs: {until: ['.'], BUDGET}\nmetric_list: [{metric: exact_match}]\n"
)


def compiled(specs: Writer, text: str, task: object = "own", *, positions: int = 32) -> None:
    (specs.folder / "tasks").mkdir(exist_ok=True)
    (specs.folder / "tasks" / "own.yaml").write_text(text)
    (specs.folder / "tasks" / "own.jsonl").write_text('{"question": "1"}\n')
    (specs.folder / "tasks" / "utils.py").write_text("def process(docs):\n    return docs\n")
    specs.edited(("data.sequence_length", positions), ("evaluate", {"tasks_folder": "tasks", "tasks": [task]}))


FEW = {"task": "own", "num_fewshot": 2}
REFUSED = {
    "a budget of all positions": (WRITTEN.replace("BUDGET", "max_gen_toks: 32"), "own", "generates up to 32 tokens"),
    "the same by another name": (WRITTEN.replace("BUDGET", "max_new_tokens: 40"), "own", "generates up to 40 tokens"),
    "lm-eval's default": (WRITTEN.replace(", BUDGET", ""), "own", "generates up to 256 tokens, and the teacher has 32"),
    "no generation_kwargs": ("task: own\ntest_split: test\n", "own", "generates up to 256 tokens"),
    "an unknown output": (CHOICE.replace("multiple_choice", "guess"), "own", "has an output_type 'guess'"),
    "no documents": (CHOICE.replace("test_split: test\n", ""), "own", "names no documents"),
    "no examples": (CHOICE, FEW, "would take its examples from the documents that it measures"),
    "no examples of its own": (CHOICE + "num_fewshot: 2\n", "own", "would take its examples from the documents"),
    "a fixed number": (CHOICE + "num_fewshot: 0\n", FEW, "fixes num_fewshot at 0, but the spec asks for 2"),
    "examples without a prompt": (CHOICE.replace("multiple_choice", "loglikelihood_rolling"), FEW, "without a prompt"),
    "an unknown sampler": (
        CHOICE + "training_split: t\nfewshot_config: {sampler: best}\n",
        FEW,
        "has a sampler 'best'",
    ),
    "code that a model writes": (CHOICE + "unsafe_code: true\n", "own", "runs code that the model writes"),
    "images": (CHOICE + "doc_to_image: [image]\n", "own", "only text is measured"),
    "an include that is not there": (
        CHOICE + "include: _base.yaml\n",
        "own",
        "includes _base.yaml, which is not there",
    ),
    "a module that is not there": (
        CHOICE + "process_docs: !function helpers.process\n",
        "own",
        "takes process_docs from 'helpers.process', which cannot be imported",
    ),
    "a function that is not there": (
        CHOICE + "process_docs: !function utils.proces\n",
        "own",
        "takes process_docs from 'utils.proces', and",
    ),
    "a split without a file": (
        CHOICE + "dataset_path: json\ndataset_kwargs: {data_files: {validation: own.jsonl}}\n",
        "own",
        "reads the test_split 'test', and its data_files make validation",
    ),
    "examples without a file": (
        CHOICE + "fewshot_split: dev\ndataset_path: json\ndataset_kwargs: {data_files: {test: own.jsonl}}\n",
        FEW,
        "reads the fewshot_split 'dev', and its data_files make test",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_task_that_cannot_be_run_is_an_error_at_its_line(specs: Writer, name: str) -> None:
    text, task, message = REFUSED[name]
    with pytest.raises(SpecError) as caught:
        compiled(specs, text, task)
    assert message in str(caught.value)
    assert "evaluate.tasks[0]" in str(caught.value)
    assert "hint:" in str(caught.value)


ALLOWED = {
    "a function beside it": (CHOICE + "process_docs: !function utils.process\n", "own"),
    "a function of a package": (CHOICE + "doc_to_text: !function textwrap.dedent\n", "own"),
    "files without a name are the split train": (
        CHOICE.replace("test_split: test", "test_split: train[:5]")
        + "dataset_path: json\ndataset_kwargs: {data_files: own.jsonl}\n",
        "own",
    ),
    "a budget below the positions": (WRITTEN.replace("BUDGET", "max_gen_toks: 31"), "own"),
    "examples of a training split": (CHOICE + "training_split: train\n", FEW),
    "examples of a split of their own": (CHOICE + "fewshot_split: dev\n", FEW),
    "examples that are listed": (CHOICE + "fewshot_config: {samples: [{a: 1}], sampler: first_n}\n", FEW),
    "no examples asked": (CHOICE + "num_fewshot: 2\n", {"task": "own", "num_fewshot": 0}),
    "a class": ("task: own\nclass: !function code.Task\n", "own"),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_a_task_that_can_be_run_is_none(specs: Writer, name: str) -> None:
    compiled(specs, *ALLOWED[name])


def test_a_machine_that_only_plans_does_not_know_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    assert checks._may_be_installed("a_package_of_the_cluster")
    monkeypatch.undo()
    assert not checks._may_be_installed("a_package_of_the_cluster")


def test_a_group_is_said_once_with_how_many_of_its_tasks_it_concerns(specs: Writer) -> None:
    (specs.folder / "tasks").mkdir()
    for name in ("one", "two", "three"):
        text = WRITTEN.replace(", BUDGET", "").replace("own", name)
        (specs.folder / "tasks" / f"{name}.yaml").write_text(text)
    (specs.folder / "tasks" / "all.yaml").write_text("group: all\ntask: [one, two, three, own]\n")
    with pytest.raises(SpecError, match=wording("lm_eval_checks.one_generates_up_more")):
        compiled(specs, CHOICE, "all")


def test_the_positions_of_a_nested_config_are_those_of_its_text() -> None:
    assert _positions({"max_position_embeddings": 5, "text_config": {"max_position_embeddings": 9}}) == 9
    assert _positions({"n_positions": 7}) == 7
    assert _positions({"hidden_size": 7}) is None


def test_common_installed_tasks_can_be_run() -> None:
    for name in ("arc_easy", "hellaswag", "wikitext", "gsm8k", "mmlu", "lambada_openai", "truthfulqa_mc2", "bbh"):
        for task in read_task(name, stock_folder()).tasks:
            shots = 0 if task.output_type == "loglikelihood_rolling" or task.get("num_fewshot") == 0 else 5
            asked = TaskSpec(task=name, num_fewshot=shots) if name != "truthfulqa_mc2" else TaskSpec(task=name)
            found = list(task_failures(task, asked, 4096))
            # LAMBADA has nothing but its test documents.
            assert bool(found) == (name == "lambada_openai"), (task.name, found)
