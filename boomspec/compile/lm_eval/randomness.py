"""Decide whether a seed can change the numbers of an lm-eval task, and whether its standard errors are bootstrapped.

A task that draws nothing at random gives the same numbers with every seed. The seed is then no part of the result's
identity, and a sweep over seeds measures a model once. Three things draw: few-shot examples, sampled text, and the
task's own templates and Python. What cannot be read (a class, a package that is not known) counts as drawing.
"""

import ast
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from boomspec.compile.lm_eval.tasks import SingleTask, add_with_imports, functions, texts
from boomspec.core.tasks import Generation
from boomspec.core.tasks.asking import sampled

# Packages whose functions draw nothing unless they are asked to by a name that `_node_draws` looks for.
_QUIET = {
    "boomspec", "bs4", "datasets", "jinja2", "lm_eval", "nltk", "numpy", "packaging", "pandas", "pyarrow", "regex",
    "sacrebleu", "scipy", "sklearn", "sympy", "torch", "tqdm", "transformers", "yaml",
} | set(sys.stdlib_module_names) - {"importlib", "random", "secrets", "uuid"}  # fmt: skip
_OWN_GENERATORS = {"Random", "RandomState", "default_rng"}  # which a seed of their own makes the same every time
_TORCH = re.compile(r"rand|multinomial|bernoulli|normal_?$|poisson|seed|dropout")
_IN_TEMPLATE = re.compile(r"\|\s*(random|shuffle)\b")
# Aggregations with a formula for the standard error, or with none at all; and the metrics that have these by default.
_FORMULA = {"mean", "acc_all", "weighted_perplexity", "bits_per_byte", "brier_score", "bypass"}
_FORMULA_METRICS = {
    "acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "word_perplexity", "byte_perplexity",
    "bits_per_byte", "brier_score", "bypass", "acc_all",
}  # fmt: skip


def draws(task: SingleTask, root: Path, *, num_fewshot: int | None, generation: Generation | None = None) -> bool:
    """Whether a seed can change a task's numbers when it is run with so many examples, and text generated in this way
    (None: as it says).
    """
    settings = task.generation if generation is None else generation.over(task.generation)
    return (
        task.in_python
        or "use_prompt" in task.fields
        or (task.shots(num_fewshot) > 0 and task.few_shot.get("sampler", "default") != "first_n")
        or sampled(settings)
        or any(_IN_TEMPLATE.search(text) for text in texts(task.fields))
        or _code_draws(task, root)
    )


def bootstraps(task: SingleTask) -> bool:
    """Whether lm-eval resamples the documents for the standard error of one of a task's metrics."""

    def has_formula(metric: Any) -> bool:
        if not isinstance(metric, dict) or metric.get("aggregation") is None:
            return isinstance(metric, dict) and metric.get("metric") in _FORMULA_METRICS
        return type(metric["aggregation"]) is str and metric["aggregation"] in _FORMULA

    metrics = task.get("metric_list")
    return task.in_python or not isinstance(metrics, list) or not all(map(has_formula, metrics))


def _code_draws(task: SingleTask, root: Path) -> bool:
    """Whether a module that the task takes functions from, or one of lm-eval's tasks that it imports, draws."""
    found: set[Path] = set()
    for function in functions(task.fields):
        if (module := function.module) is None:
            return True  # of an installed package
        add_with_imports(module, root, found)
    return any(_module_draws(path, path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(found))


@cache
def _module_draws(path: Path, changed: int, size: int) -> bool:
    try:
        nodes = list(ast.walk(ast.parse(path.read_bytes())))
    except (OSError, SyntaxError, ValueError):
        return True
    calls = [node.func for node in nodes if isinstance(node, ast.Call)]
    generators = [inner for function in calls if _name(function) in _OWN_GENERATORS for inner in ast.walk(function)]
    harmless = {id(node) for node in generators if isinstance(node, ast.Attribute | ast.Name)}
    return any(_node_draws(node) for node in nodes if id(node) not in harmless)


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _node_draws(node: ast.AST) -> bool:
    """Whether a node of a module's syntax uses a random generator that a seed of the process sets."""
    match node:
        case ast.Import(names=names):
            # `import random` alone draws nothing: its uses are looked at, under its own name.
            named = [(n.name.split(".")[0], n.name, n.asname) for n in names if (n.name, n.asname) != ("random", None)]
            return any(
                package not in _QUIET or name.startswith("numpy.random") or (package == "torch" and renamed is not None)
                for package, name, renamed in named
            )
        case ast.ImportFrom(module=module, names=aliases, level=level):
            taken = {alias.name for alias in aliases}
            if module in ("random", "numpy.random"):
                return not taken <= _OWN_GENERATORS
            of_torch = module == "torch" and any(map(_TORCH.match, taken))
            unknown = (module or "").split(".")[0] not in _QUIET or (module == "numpy" and "random" in taken)
            return not level and (unknown or of_torch)
        case ast.Call(func=function, args=args, keywords=keywords):
            given = [*args, *(keyword.value for keyword in keywords)]
            seeded = any(keyword.arg in ("seed", "random_state", "generator", "rng") for keyword in keywords)
            match _name(function), isinstance(function, ast.Attribute):
                case name, _ if name in _OWN_GENERATORS:  # without a seed, or with None, by the clock
                    return not given or any(isinstance(value, ast.Constant) and value.value is None for value in given)
                case "shuffle", True:
                    return not given  # of a data set; a generator's own takes what it shuffles
                case "train_test_split" | "resample", _:
                    return not seeded
                case "sample", True:
                    return len(args) < 2 and not seeded  # of a table; a generator's own takes two
                case "__import__" | "eval" | "exec" | "BootstrapAggregator", _:
                    return True
        case ast.Attribute(value=value, attr=attribute):
            of_torch = isinstance(value, ast.Name) and value.id == "torch" and _TORCH.match(attribute) is not None
            return attribute == "random" or of_torch
        case ast.Name(id=name):
            return name == "random"
    return False
