"""Find what would stop lm-eval after a training, and report it before, at the task's line of the spec.

    tasks + the teacher's facts --check_tasks--> SpecError

Everything else that lm-eval may stop at depends on documents: it is an error of the evaluation, which names them.
"""

import ast
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from boomspec.compile.lm_eval.asking import asking_problems, settings_of
from boomspec.compile.lm_eval.packages import missing_packages
from boomspec.compile.lm_eval.sources import definition_of, is_known, only_generates
from boomspec.compile.lm_eval.tasks import LOADERS, MISSING, SingleTask, functions
from boomspec.core import tasks
from boomspec.core.errors import did_you_mean
from boomspec.core.tasks.asking import budget
from boomspec.models.facts import ModelFacts
from boomspec.spec.sections.evaluation import TaskSpec
from boomspec.spec.spec_file import SpecFile, memoized_for

_OUTPUTS = ("multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until")
_SAMPLERS = ("default", "first_n")
_POOLS = ("fewshot_split", "training_split", "validation_split")
_POSITIONS = ("n_positions", "max_position_embeddings", "n_ctx")  # in lm-eval's order
Failure = tuple[str, str]  # message, hint


@memoized_for("evaluate", "teacher", "data", "execution", "determinism")
def check_tasks(file: SpecFile, facts: ModelFacts) -> None:
    """Raise SpecError with every lm-eval task that cannot be run on this teacher and the models made of it."""
    positions, problems, evaluate = _positions(facts.config), list(asking_problems(file)), file.spec.evaluate
    for index, section in enumerate(evaluate.tasks if evaluate is not None else ()):
        assert evaluate is not None
        definition, settings = definition_of(file, section.task), settings_of(evaluate, section)
        single = definition.tasks
        found = [(task, failure) for task in single for failure in task_failures(task, section, positions, settings)]
        if found:
            task, (message, hint) = found[0]
            others = len({other.name for other, _ in found}) - 1
            more = f" (and {others} more of '{section.task}' cannot be run either)" if others else ""
            message = f"lm-eval task '{task.name}' {message}{more}"
            problems.append(file.problem(("evaluate", "tasks", index), message, hint))
        elif missing := missing_packages((*definition.files, *definition.outside)):
            names, install = missing
            message = f"lm-eval task '{section.task}' needs what is not installed here: {names}"
            problems.append(file.problem(("evaluate", "tasks", index), message, install))
    if evaluate is not None and evaluate.backend == "vllm":
        problems += [file.problem(("evaluate", "backend"), *failure) for failure in _vllm_failures(file)]
    if problems:
        raise file.error(*problems)


def _vllm_failures(file: SpecFile) -> Iterator[Failure]:
    """Why vLLM cannot write text for this spec."""
    evaluate, determinism = file.spec.evaluate, file.spec.determinism
    named = [task.task for task in evaluate.tasks] if evaluate is not None else []
    if not any(only_generates(file, name) or not is_known(file, name) for name in named):
        yield "no task has a model generate text, and vllm measures nothing else", "leave it out"
    if not file.spec.execution.of("evaluate").gpus:
        yield "vllm needs a GPU, and evaluations get none", "set execution.evaluate.gpus: 1"
    if determinism is not None and determinism.algorithms == "strict":
        yield "vllm has no deterministic kernels", "leave it out, or set determinism.algorithms: any"


def task_failures(
    task: SingleTask, section: TaskSpec, positions: int | None, settings: tasks.Generation | None = None
) -> Iterator[Failure]:
    """Why a task cannot be run; `positions`: those of the teacher; `settings`: how the spec has text generated."""
    if task.get("unsafe_code"):
        yield "runs code that the model writes: boomspec does not", "leave it out"
    if task.get("doc_to_image") or task.get("doc_to_audio"):
        yield "shows images or plays sound: only text is measured", "leave it out"
    yield from _files(task)
    if task.in_python:
        return
    if task.output_type not in _OUTPUTS:
        yield f"has an output_type '{task.output_type}', which lm-eval does not know", f"one of {', '.join(_OUTPUTS)}"
        return
    if not (task.get("test_split") or task.get("validation_split")):
        yield "names no documents to be measured on", "give it a test_split or a validation_split"
    yield from _splits(task, section)
    yield from _examples(task, section)
    if task.output_type == "generate_until" and positions is not None:
        tokens = budget(task.generation if settings is None else settings.over(task.generation))
        if tokens >= positions:
            said = settings is not None and settings.max_tokens is not None
            fewer = "fewer generation.max_tokens leave" if said else "fewer generation.max_tokens (max_gen_toks) leave"
            hint = f"{fewer} room for a prompt; or leave it out"
            yield f"generates up to {tokens} tokens, and the teacher has {positions} positions", hint


def _files(task: SingleTask) -> Iterator[Failure]:
    """Files and functions that its YAML names and that do not exist."""
    if (include := task.get(MISSING)) is not None:
        yield f"includes {include}, which is not there", f"paths start at the folder of {task.fields[MISSING][1]}"
    for field, (value, path) in task.fields.items():
        for function in functions(value):
            module, _, name = function.rpartition(".")
            if function.module is None:
                package = module.partition(".")[0]
                if not package or not _may_be_installed(package):
                    hint = f"it is neither {module or function}.py beside {path} nor an installed package"
                    yield f"takes {field} from '{function}', which cannot be imported", hint
            elif (known := _names(function.module)) is not None and name not in known:
                hint = did_you_mean(name, sorted(known)) or f"it has: {', '.join(sorted(known)[:8])}"
                yield f"takes {field} from '{function}', and {function.module} has no '{name}'", hint


def _may_be_installed(package: str) -> bool:
    """Whether tasks can import a package; a machine that has no lm-eval only plans, and cannot tell."""
    known = (package, "lm_eval")
    return package in sys.modules or [importlib.util.find_spec(name) is None for name in known] != [True, False]


def _names(module: Path) -> set[str] | None:
    """The names that a Python file defines; None where its text does not show them."""
    try:
        nodes = list(ast.walk(ast.parse(module.read_bytes())))
    except (OSError, SyntaxError, ValueError):
        return None
    names = set()
    for node in nodes:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.Import(names=imported) | ast.ImportFrom(names=imported):
                names |= {alias.asname or alias.name.partition(".")[0] for alias in imported}
            case ast.Call(func=ast.Name(id="globals" | "setattr" | "exec")):
                return None
    return None if "*" in names else names


def _splits(task: SingleTask, section: TaskSpec) -> Iterator[Failure]:
    """Splits that it reads and that its data files do not have."""
    files = task.mapping("dataset_kwargs").get("data_files")
    if task.get("dataset_path") not in LOADERS or not files or task.get("custom_dataset"):
        return
    if isinstance(files, list) and not all(isinstance(file, str) for file in files):
        return  # a list may name splits, too
    splits = [str(split) for split in files] if isinstance(files, dict) else ["train"]
    read = ["test_split" if task.get("test_split") else "validation_split"]
    if task.shots(section.num_fewshot) and not (task.few_shot.get("samples") or task.few_shot.get("split")):
        read += [next((name for name in _POOLS if task.get(name)), read[0])]
    for name in dict.fromkeys(read):
        split = task.get(name)
        if isinstance(split, str) and split.partition("[")[0] not in splits:
            message = f"reads the {name} '{split}', and its data_files make {', '.join(splits)}"
            yield message, f"name the split's file: data_files: {{{split}: ...}}"


def _examples(task: SingleTask, section: TaskSpec) -> Iterator[Failure]:
    wanted, own = section.num_fewshot, task.get("num_fewshot")
    if wanted and task.output_type == "loglikelihood_rolling":
        yield "measures texts without a prompt: there is no place for examples", "leave num_fewshot out for it"
    elif wanted and type(own) is int and own == 0:
        yield f"fixes num_fewshot at 0, but the spec asks for {wanted}", "leave num_fewshot out for this task"
    elif task.shots(wanted):
        sampler = task.few_shot.get("sampler", "default")
        if type(sampler) is str and sampler not in _SAMPLERS:
            yield f"has a sampler '{sampler}', which lm-eval does not know", f"one of {', '.join(_SAMPLERS)}"
        if not any([*map(task.get, _POOLS), task.few_shot.get("split"), task.few_shot.get("samples")]):
            hint = "give it a fewshot_split or a training_split, or ask without examples"
            yield "would take its examples from the documents that it measures, each of them from itself, too", hint


def _positions(config: Mapping[str, Any]) -> int | None:
    """How many positions lm-eval takes a model to have; None where its config does not say."""
    config = config["text_config"] if isinstance(config.get("text_config"), Mapping) else config
    found = next((config[name] for name in _POSITIONS if config.get(name) is not None), None)
    return found if isinstance(found, int) else None
