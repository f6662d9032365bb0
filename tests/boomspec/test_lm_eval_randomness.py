"""Which lm-eval tasks a seed can change: those that draw something at random, and no others."""

import random
from collections import Counter

import pytest
import yaml

from boomspec.compile.compiler import compile_experiments
from boomspec.compile.lm_eval.randomness import _FORMULA, _FORMULA_METRICS, bootstraps, draws
from boomspec.compile.lm_eval.tasks import functions, read_task, stock_folder, task_index
from boomspec.spec.experiments import load_experiments
from tests.boomspec.conftest import Writer
from tests.runners import tiny

PLAIN = (
    "task: own\noutput_type: multiple_choice\ntest_split: test\ntraining_split: train\nmetric_list: [{metric: acc}]\n"
)
SAMPLED = (
    "output_type: generate_until\ngeneration_kwargs: {max_gen_toks: 8, until: ['.'], do_sample: true, temperature: 1}\n"
)
GREEDY = "output_type: generate_until\ngeneration_kwargs: {max_gen_toks: 8, until: ['.']}\n"
SHUFFLES = "import random\n\ndef docs(dataset):\n    random.shuffle(dataset)\n    return dataset\n"
OWN_GENERATOR = "import random\n\ndef docs(dataset):\n    return random.Random(0).sample(list(dataset), 3)\n"


def seed_of(specs: Writer, yaml_text: str, code: str = "", *, task: object = "own", **evaluate: object) -> int | None:
    """The seed in the record of a task that a spec with seed 7 asks."""
    return record(specs, yaml_text, code, task=task, **evaluate).seed


def record(specs: Writer, yaml_text: str, code: str = "", *, task: object = "own", **evaluate: object):
    tasks = specs.folder / "tasks"
    tasks.mkdir(exist_ok=True)
    (tasks / "own.yaml").write_text(yaml_text)
    (tasks / "code.py").write_text(f"{code}\ndocs = results = mine = Task = None\n")  # what tasks take from it
    found = specs.edited(("seed", 7), ("evaluate", {"tasks_folder": "tasks", "tasks": [task], **evaluate}))
    return next(n.task.record.measure for n in found.graph.nodes.values() if n.task.kind == "evaluate")


@pytest.mark.parametrize(
    ("text", "code", "task", "drawn"),
    [
        (PLAIN, "", "own", False),
        (PLAIN, "", {"task": "own", "num_fewshot": 2}, True),
        (PLAIN + "num_fewshot: 2\n", "", "own", True),
        (PLAIN + "num_fewshot: 2\n", "", {"task": "own", "num_fewshot": 0}, False),
        (PLAIN + "fewshot_config: {sampler: first_n}\n", "", {"task": "own", "num_fewshot": 2}, False),
        (PLAIN + "fewshot_config: {sampler: default}\n", "", {"task": "own", "num_fewshot": 2}, True),
        (PLAIN + SAMPLED, "", "own", True),
        (PLAIN + GREEDY, "", "own", False),
        (PLAIN + GREEDY.replace("8,", "8, temperature: 0.7,"), "", "own", True),
        (PLAIN + GREEDY.replace("8,", "8, temperature: 0.7, do_sample: false,"), "", "own", False),
        (PLAIN + "doc_to_text: '{{ choices | random }}'\n", "", "own", True),
        (PLAIN + "process_docs: !function code.docs\n", SHUFFLES, "own", True),
        (PLAIN + "process_docs: !function code.docs\n", OWN_GENERATOR, "own", False),
        (PLAIN + "process_docs: !function code.docs\n", "import numpy as np\nx = np.random.rand()\n", "own", True),
        (PLAIN + "process_docs: !function code.docs\n", "def docs(d):\n    return d.shuffle()\n", "own", True),
        (PLAIN + "process_docs: !function code.docs\n", "def docs(d):\n    return d.shuffle(seed=3)\n", "own", False),
        (PLAIN + "process_docs: !function code.docs\n", "import click\n", "own", True),
        (PLAIN + "process_docs: !function pluggy.docs\n", "", "own", True),
        (PLAIN + "process_docs: !function code.docs\n", "from .other import docs\n", "own", False),
        ("task: own\nclass: !function code.Task\n", "", "own", True),
    ],
)
def test_a_seed_is_in_a_record_only_where_something_is_drawn(specs: Writer, text, code, task, drawn) -> None:
    assert seed_of(specs, text, code, task=task) == (7 if drawn else None)


def test_modules_that_a_module_imports_are_looked_at_too(specs: Writer) -> None:
    (specs.folder / "tasks").mkdir()
    (specs.folder / "tasks" / "other.py").write_text(SHUFFLES)
    assert seed_of(specs, PLAIN + "process_docs: !function code.docs\n", "from .other import docs\n") == 7


def test_a_group_draws_where_one_of_its_members_does_by_what_the_group_says(specs: Writer) -> None:
    tasks = specs.folder / "tasks"
    tasks.mkdir()
    (tasks / "few.yaml").write_text("group: few\ntask: [own]\nnum_fewshot: 3\n")
    (tasks / "none.yaml").write_text("group: none\ntask: [{task: own, num_fewshot: 0}]\n")
    (tasks / "nested.yaml").write_text("group: nested\ntask:\n  - group: inner\n    task: [none, few]\n")
    assert [seed_of(specs, PLAIN, task=name) for name in ("few", "none", "nested")] == [7, None, 7]


def test_a_sweep_over_seeds_measures_one_teacher_once(specs: Writer) -> None:
    tiny.model(layers=6).save_pretrained(specs.folder / "teacher")
    tiny.model(layers=3, seed=1).save_pretrained(specs.folder / "student")
    (specs.folder / "tasks").mkdir()
    (specs.folder / "tasks" / "own.yaml").write_text(PLAIN)
    spec = {
        "boomspec": 1,
        "name": "seeds",
        "teacher": {"model": "./teacher"},
        "student": {"model": "./student", "keep": [0, 2, 4]},
        "evaluate": {"tasks_folder": "tasks", "tasks": ["own", {"task": "own", "num_fewshot": 2}]},
        "sweep": {"seed": [0, 1, 2]},
    }
    graph = compile_experiments(load_experiments(specs.text(yaml.safe_dump(spec)))).graph
    teacher = {
        (node.task.record.measure.num_fewshot, node.id)
        for node in graph.nodes.values()
        if "evaluate teacher" in node.name
    }
    assert sorted(str(shots) for shots, _ in teacher) == ["2", "2", "2", "None"]


@pytest.mark.parametrize(
    ("metric", "resampled"),
    [
        ("{metric: acc}", False),
        ("{metric: acc, aggregation: mean}", False),
        ("{metric: word_perplexity}", False),
        ("{metric: f1}", True),
        ("{metric: acc, aggregation: f1}", True),
        ("{metric: perplexity, aggregation: perplexity}", True),
        ("{metric: mine, aggregation: !function code.mine}", True),
    ],
)
def test_resamples_are_in_a_record_only_where_documents_are_resampled(specs: Writer, metric, resampled) -> None:
    text = PLAIN.replace("{metric: acc}", metric) + "process_results: !function code.results\n"
    assert record(specs, text, bootstrap_iters=200).bootstrap_iters == (200 if resampled else None)
    assert record(specs, text, bootstrap_iters=0).bootstrap_iters == 0


# --- the installed tasks ---------------------------------------------------------------------------


def sample() -> list[str]:
    known = ["arc_easy", "hellaswag", "wikitext", "gsm8k", "truthfulqa_gen", "humaneval_64", "mmlu_anatomy", "ifeval"]
    return [*known, *random.Random(0).sample(sorted(task_index(stock_folder()).defined), 250)]


def test_of_installed_tasks_the_compiler_knows_what_lm_eval_makes_of_them() -> None:
    """Against lm-eval's own configurations, of a sample: output type, examples, sampler, and what generation draws."""
    from lm_eval.config.task import TaskConfig
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.tasks._yaml_loader import load_yaml

    root = stock_folder()
    compared: Counter[bool] = Counter()
    for name in sample():
        raw = load_yaml(root / task_index(root).defined[name], resolve_func=False)
        if raw.keys() & {"group", "class"}:
            continue
        config = TaskConfig(**{key: value for key, value in raw.items() if key not in ("tag", "task_list")})
        [found] = read_task(name, root).tasks
        assert (found.name, found.output_type) == (config.task, config.output_type)
        shots = 0 if config.output_type == "loglikelihood_rolling" else config.num_fewshot or 0
        assert found.shots(None) == shots
        assert found.few_shot.get("sampler", "default") == config.fewshot_config.sampler
        drawn = shots > 0 and config.fewshot_config.sampler != "first_n"
        if config.output_type == "generate_until":
            drawn |= bool(normalize_gen_kwargs(config.generation_kwargs)["do_sample"])
        if drawn or not list(functions(found.fields)):
            assert draws(found, root, num_fewshot=None) == drawn, name
            compared[drawn] += 1
    assert compared[False] > 50
    assert compared[True] > 3


def test_common_tasks_are_the_same_with_every_seed() -> None:
    for name in ("arc_easy", "arc_challenge", "hellaswag", "piqa", "winogrande", "boolq", "lambada_openai", "sciq"):
        for task in read_task(name, stock_folder()).tasks:
            assert not draws(task, stock_folder(), num_fewshot=None)
            assert draws(task, stock_folder(), num_fewshot=5)
    assert all(not draws(task, stock_folder(), num_fewshot=5) for task in read_task("mmlu", stock_folder()).tasks)


def test_what_lm_eval_resamples_is_known() -> None:
    """Its own list of aggregations against ours."""
    from lm_eval.api.metrics import stderr_for_metric
    from lm_eval.api.registry import AGGREGATION_REGISTRY, get_metric_aggregation

    closed = {name for name, f in AGGREGATION_REGISTRY.items() if "<lambda>" not in repr(stderr_for_metric(f, 10))}
    assert closed >= _FORMULA & AGGREGATION_REGISTRY.keys()
    for metric in _FORMULA_METRICS - {"acc_all"}:
        assert "<lambda>" not in repr(stderr_for_metric(get_metric_aggregation(metric), 10)), metric
    assert bootstraps(read_task("lambada_openai", stock_folder()).tasks[0])
