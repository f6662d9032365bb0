"""Decide whether a seed can change the numbers of an lm-eval task, and whether its standard errors are bootstrapped.

A task that draws nothing at random gives the same numbers with every seed. The seed is then no part of the result's
identity, and a sweep over seeds measures a model once. Three things draw: few-shot examples, sampled text, and the
task's own templates and Python. What cannot be read (a class, a package that is not known) counts as drawing.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from boomspec.compile.lm_eval.tasks import SingleTask, add_with_imports, functions, texts

# Packages whose functions draw nothing unless they are asked to by a name that `_Draws` looks for.
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


@dataclass(frozen=True)
class Chance:
    """What depends on chance: a task's numbers, and how exact their standard errors are."""

    draws: bool
    bootstraps: bool


def chance_of(tasks: Sequence[SingleTask], root: Path, *, num_fewshot: int | None) -> Chance:
    """Of the tasks of one name together; where there are none, what lm-eval will run is not known."""
    if not tasks:
        return Chance(draws=True, bootstraps=True)
    return Chance(any(draws(task, root, num_fewshot=num_fewshot) for task in tasks), any(map(bootstraps, tasks)))


def draws(task: SingleTask, root: Path, *, num_fewshot: int | None) -> bool:
    """Whether a seed can change a task's numbers when it is run with so many examples (None: as it says)."""
    return (
        task.in_python
        or "use_prompt" in task.fields
        or (task.shots(num_fewshot) > 0 and task.few_shot.get("sampler", "default") != "first_n")
        or _samples(task.generation)
        or any(_IN_TEMPLATE.search(text) for text in texts(task.values))
        or _code_draws(task, root)
    )


def bootstraps(task: SingleTask) -> bool:
    """Whether lm-eval resamples the documents for the standard error of one of a task's metrics."""
    metrics = task.get("metric_list")
    return task.in_python or not isinstance(metrics, list) or not all(map(_has_formula, metrics))


def _has_formula(metric: Any) -> bool:
    if not isinstance(metric, dict):
        return False
    aggregation = metric.get("aggregation")
    if aggregation is None:
        return metric.get("metric") in _FORMULA_METRICS
    return type(aggregation) is str and aggregation in _FORMULA


def _samples(generation: dict[str, Any]) -> bool:
    try:
        warm = float(generation.get("temperature") or 0.0) > 0
    except (TypeError, ValueError):
        return True
    return generation.get("do_sample", warm) is not False


def _code_draws(task: SingleTask, root: Path) -> bool:
    """Whether a module that the task takes functions from, or one of lm-eval's tasks that it imports, draws."""
    found: set[Path] = set()
    for function in functions(task.values):
        if (module := function.module) is None:
            return True  # of an installed package
        add_with_imports(module, root, found)
    return any(_module_draws(path, path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(found))


@cache
def _module_draws(path: Path, changed: int, size: int) -> bool:
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return True
    look = _Draws()
    look.visit(tree)
    return look.found


class _Draws(ast.NodeVisitor):
    """Looks for uses of a random generator that a seed of the process sets."""

    def __init__(self) -> None:
        self.found = False
        self.allowed: set[int] = set()  # names and attributes that are known to be harmless

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            package = alias.name.split(".")[0]
            # `import random` alone draws nothing: its uses are looked at, under its own name.
            plain = alias.name == "random" and alias.asname is None
            renamed = package == "torch" and alias.asname is not None
            self.found |= not plain and (package not in _QUIET or alias.name.startswith("numpy.random") or renamed)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module, names = node.module or "", {alias.name for alias in node.names}
        if module in ("random", "numpy.random"):
            self.found |= not names <= _OWN_GENERATORS
        elif not node.level:
            self.found |= module.split(".")[0] not in _QUIET or (module == "numpy" and "random" in names)
            self.found |= module == "torch" and any(_TORCH.match(name) for name in names)

    def visit_Call(self, node: ast.Call) -> None:
        function, given = node.func, [*node.args, *(keyword.value for keyword in node.keywords)]
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        seeded = any(keyword.arg in ("seed", "random_state", "generator", "rng") for keyword in node.keywords)
        if name in _OWN_GENERATORS:
            nothing = [value for value in given if isinstance(value, ast.Constant) and value.value is None]
            self.found |= not given or bool(nothing)  # seeded by the clock
            self.allowed |= {id(inner) for inner in ast.walk(function)}
        elif name == "shuffle" and isinstance(function, ast.Attribute):
            self.found |= not given  # of a data set; a generator's own takes what it shuffles
        elif name in ("train_test_split", "resample"):
            self.found |= not seeded
        elif name == "sample" and isinstance(function, ast.Attribute):
            self.found |= len(node.args) < 2 and not seeded  # of a table; a generator's own takes two
        elif name in ("__import__", "eval", "exec", "BootstrapAggregator"):
            self.found = True
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if id(node) not in self.allowed:
            of_torch = isinstance(node.value, ast.Name) and node.value.id == "torch"
            self.found |= node.attr == "random" or (of_torch and _TORCH.match(node.attr) is not None)
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        self.found |= node.id == "random" and id(node) not in self.allowed
