"""Load lm-eval's tasks with the data that the compiler found; errors in a task name its document.

Importing this module takes seconds, as `runners.evaluation.lm_eval_runner` does.
"""

import copy
import glob
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest.mock import patch

from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from boomspec.core.errors import BoomspecError, did_you_mean
from boomspec.core.graph import Source
from boomspec.core.identity import folder_digest
from boomspec.core.json_text import mapped
from boomspec.core.task_data import ASKS, changed_data
from boomspec.core.tasks import LmEval
from runners.evaluation.lm_eval_counts import Counted

_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
_AGAIN = "compile the spec again"


@contextmanager
def loaded_tasks(measure: LmEval, source: Source) -> Iterator[dict[str, Any]]:
    """Load a task, group or tag by lm-eval's TaskManager. Its data can be read inside the context only.

    Raises BoomspecError where the task or its data is not what the graph was compiled for.
    """
    folder = source.location.get("folder")
    compiled, installed = source.identity.get("lm_eval"), metadata.version("lm-eval")
    if compiled not in (None, installed):
        message = f"lm-eval {installed} is installed here, the graph was compiled for {compiled}"
        raise BoomspecError(message, hint=_AGAIN)
    if folder is not None and folder_digest(Path(folder)) != source.identity["folder"]:
        # Its templates and Python are run.
        raise BoomspecError(f"{folder}: has changed since the spec was compiled", hint=_AGAIN)
    if (changed := next(changed_data(source, at_most=None), None)) is not None:
        raise BoomspecError(f"{changed}: has changed since the spec was compiled, or is not there", hint=_AGAIN)
    manager = TaskManager(include_path=folder, include_defaults=folder is None)
    if measure.task not in manager.all_tasks:
        place, names = f"in {folder}" if folder else "of lm-eval", manager.all_tasks
        hint = did_you_mean(measure.task, names) or (f"there are: {', '.join(names)}" if len(names) <= 20 else None)
        raise BoomspecError(f"'{measure.task}' is no task {place}", hint=hint)
    read: list[str] = []  # the name of the task whose data was read last
    with tempfile.TemporaryDirectory(prefix="boomspec-data-") as cache:
        try:
            with patch.object(ConfigurableTask, "download", _download(source.location.get(ASKS, {}), cache, read)):
                loaded: dict[str, Any] = manager.load([measure.task])
        except BoomspecError:
            raise
        except Exception as error:  # of the datasets library, of lm-eval, of the task's own Python
            name = read[-1] if read else measure.task
            what = "its first document cannot be used" if read else "it cannot be loaded"
            raise BoomspecError(f"lm-eval task '{name}': {what}: {one_line(error)}") from error
        yield loaded


def _download(asks: Mapping[str, dict[str, Any]], cache: str, read: list[str]) -> Callable[..., None]:
    """lm-eval's `download`, with the paths that the compiler found in place of those in the task's files.

    It reads into `cache`: the cache of the datasets library knows a file by name and time only, and may be stale.
    """
    original = ConfigurableTask.download

    def escaped(name: str) -> str:
        return glob.escape(name) if Path(name).is_absolute() and Path(name).is_file() else name

    def download(task: Any, dataset_kwargs: dict[str, Any] | None = None, **more: Any) -> None:
        config = task.config
        read.clear()
        ask, before = asks.get(config.task), (config.dataset_path, config.dataset_kwargs, task.DATASET_PATH)
        if ask is None:
            path = config.dataset_path
            if isinstance(path, str) and not callable(config.custom_dataset) and Path(path).is_dir():
                message = f"lm-eval task '{config.task}': its data set '{path}' is also a folder in {Path.cwd()}"
                raise BoomspecError(message, hint="rename the folder, or run in another one")
            original(task, copy.deepcopy(dataset_kwargs), **more)
        else:
            options = copy.deepcopy(ask["dataset_kwargs"])
            if "data_files" in options:  # the datasets library takes names of files for patterns
                options["data_files"] = mapped(options["data_files"], str, escaped)
            if "dataset_path" in ask:
                config.dataset_path = task.DATASET_PATH = ask["dataset_path"]
                options["cache_dir"] = cache
            config.dataset_kwargs = options
            try:
                original(task, options, **more)
            finally:  # results name what the task's files say, not a path of this machine
                config.dataset_path, config.dataset_kwargs, task.DATASET_PATH = before
        keys = getattr(task.dataset, "keys", None)
        named = {getattr(config, name) for name in _SPLITS} - {None}
        # A slice of a split, such as "train[:100]", has a name of its own, too.
        if callable(keys) and (missing := sorted(str(name) for name in named if str(name) not in set(keys()))):
            message = f"lm-eval task '{config.task}': its data has no split '{missing[0]}'"
            raise BoomspecError(message, hint=f"there are: {', '.join(sorted(map(str, keys())))}")
        read.append(str(config.task))

    return download


def prepare(name: str, task: Any, measure: LmEval) -> None:
    """Set how many examples the prompts have, and the seed to draw them, as lm-eval's `simple_evaluate` does."""
    if getattr(task, "UNSAFE_CODE", False):
        raise BoomspecError(f"lm-eval task '{name}' runs code that the model writes: boomspec does not")
    fixed = task.get_config("num_fewshot")
    if measure.num_fewshot is not None:
        if fixed == 0 and measure.num_fewshot != 0:
            message = f"lm-eval task '{name}' fixes num_fewshot at 0, but the spec asks for {measure.num_fewshot}"
            raise BoomspecError(message, hint="leave num_fewshot out for this task")
        task.set_config(key="num_fewshot", value=measure.num_fewshot)
    elif fixed is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=measure.seed or 0)
    if measure.generation is not None and task.OUTPUT_TYPE == "generate_until":
        task.set_config(key="generation_kwargs", value=measure.generation.over(task.get_config("generation_kwargs")))
    if measure.chat is not None and type(task).fewshot_context is not ConfigurableTask.fewshot_context:
        message = f"lm-eval task '{name}' makes its prompts in Python: they are no turns of a chat"
        raise BoomspecError(message, hint="set chat: false for this task")
    shots, pool = task.get_config("num_fewshot") or 0, getattr(getattr(task, "sampler", None), "df", None)
    if pool is not None and shots > len(pool):
        message = f"lm-eval task '{name}' is asked with {shots} examples, and has {len(pool)} to take them from"
        raise BoomspecError(message, hint="ask for fewer: num_fewshot")


def guard(name: str, task: Any, counts: Counted, scored: Callable[[], None]) -> None:
    """Make errors in a task name the task and the document; count documents, and those whose answer is no choice."""
    ids: dict[int, int] = {}  # of documents by their identity in memory; the one seen last counts
    documents, scores = task.doc_iterator, task.process_results

    def iterated(**options: Any) -> Iterator[tuple[int, Any]]:
        for number, document in documents(**options):
            ids[id(document)] = number
            counts[name].documents.add(number)
            yield number, document

    def process(document: Any, results: Any) -> Any:
        own = not isinstance(task, ConfigurableTask) or callable(task.get_config("process_results"))
        if not own and task.OUTPUT_TYPE == "multiple_choice":  # lm-eval itself scores choices
            choices = task.doc_to_choice(document)
            answer = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
            answers = answer if isinstance(answer, list) else [answer]
            if not all(0 <= one < len(choices) if isinstance(one, int) else one in choices for one in answers):
                counts[name].answers_that_are_no_choice.add(ids.get(id(document), -1))
        found = scores(document, results)
        scored()
        return found

    def naming(function: Callable[..., Any], what: str) -> Callable[..., Any]:
        def named(*arguments: Any, **options: Any) -> Any:
            try:
                return function(*arguments, **options)
            except BoomspecError:
                raise
            except Exception as error:
                document = arguments[0] if arguments else options.get("doc")
                where = f"lm-eval task '{name}', document {ids.get(id(document), '?')}"
                hint = "mend the document or the task's templates, or leave the document out with process_docs"
                raise BoomspecError(f"{where}: {what}: {one_line(error)}", hint=hint) from error

        return named

    task.doc_iterator = iterated
    task.fewshot_context = naming(task.fewshot_context, "its prompt cannot be made")
    task.construct_requests = naming(task.construct_requests, "its requests cannot be made")
    task.process_results = naming(process, "it cannot be scored")


def one_line(error: BaseException) -> str:
    """The message of an error of other people's code, on one line."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    if isinstance(error, KeyError):
        return f"there is no {text}"
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
