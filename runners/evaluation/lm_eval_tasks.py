"""Load lm-eval's tasks with the data that the compiler found; errors in a task name its document.

Importing this module takes seconds, as `runners.evaluation.lm_eval_runner` does.
"""

from __future__ import annotations

import copy
import glob
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from boomspec.core.errors import BoomspecError, did_you_mean
from boomspec.core.graph import Source
from boomspec.core.identity import folder_digest
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
        place = f"in {folder}" if folder else "of lm-eval"
        names = manager.all_tasks
        hint = did_you_mean(measure.task, names) or (f"there are: {', '.join(names)}" if len(names) <= 20 else None)
        raise BoomspecError(f"'{measure.task}' is no task {place}", hint=hint)
    with ExitStack() as stack:
        cache = stack.enter_context(tempfile.TemporaryDirectory(prefix="boomspec-data-"))
        read: list[str] = []  # the name of the task whose data was read last
        try:
            with replaced(ConfigurableTask, "download", _download(source.location.get(ASKS, {}), cache, read)):
                loaded: dict[str, Any] = manager.load([measure.task])
        except BoomspecError:
            raise
        except Exception as error:  # of the datasets library, of lm-eval, of the task's own Python
            name = read[-1] if read else measure.task
            what = "its first document cannot be used" if read else "it cannot be loaded"
            raise BoomspecError(f"lm-eval task '{name}': {what}: {one_line(error)}") from error
        yield loaded


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute of lm-eval's inside the context."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _download(asks: Mapping[str, dict[str, Any]], cache: str, read: list[str]) -> Callable[..., None]:
    """lm-eval's `download`, with the paths that the compiler found in place of those in the task's files.

    It reads into `cache`: the cache of the datasets library knows a file by name and time only, and may be stale.
    """
    original = ConfigurableTask.download

    def download(task: Any, dataset_kwargs: dict[str, Any] | None = None, **more: Any) -> None:
        config = task.config
        read.clear()
        ask, before = asks.get(config.task), (config.dataset_path, config.dataset_kwargs, task.DATASET_PATH)
        if ask is None:
            _check_not_a_folder(config)
            original(task, copy.deepcopy(dataset_kwargs), **more)
        else:
            options = _escaped(ask["dataset_kwargs"])
            if "dataset_path" in ask:
                config.dataset_path = task.DATASET_PATH = ask["dataset_path"]
                options["cache_dir"] = cache
            config.dataset_kwargs = options
            try:
                original(task, options, **more)
            finally:  # results name what the task's files say, not a path of this machine
                config.dataset_path, config.dataset_kwargs, task.DATASET_PATH = before
        _check_splits(task)
        read.append(str(config.task))

    return download


def _check_not_a_folder(config: Any) -> None:
    """Raise BoomspecError where the name of a hub data set is also a folder in the working directory."""
    path = config.dataset_path
    if isinstance(path, str) and not callable(config.custom_dataset) and Path(path).is_dir():
        message = f"lm-eval task '{config.task}': its data set '{path}' is also a folder in {Path.cwd()}"
        raise BoomspecError(message, hint="rename the folder, or run in another one")


def _escaped(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a data set, with names of files escaped: the datasets library takes them for patterns."""

    def escaped(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: escaped(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [escaped(item) for item in value]
        plain = isinstance(value, str) and Path(value).is_absolute()
        return glob.escape(value) if plain and Path(value).is_file() else value

    copied = copy.deepcopy(options)
    return {key: escaped(value) if key == "data_files" else value for key, value in copied.items()}


def _check_splits(task: Any) -> None:
    named = {getattr(task.config, name) for name in _SPLITS} - {None}
    keys = getattr(task.dataset, "keys", None)
    if not callable(keys):
        return
    there = set(keys())
    # A slice of a split, such as "train[:100]", has a name of its own, too.
    if missing := sorted(str(name) for name in named if str(name) not in there):
        message = f"lm-eval task '{task.config.task}': its data has no split '{missing[0]}'"
        raise BoomspecError(message, hint=f"there are: {', '.join(sorted(map(str, there)))}")


def prepare(loaded: Mapping[str, Any], measure: LmEval) -> None:
    """Set how many examples the prompts have, and the seed to draw them, as lm-eval's `simple_evaluate` does."""
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise BoomspecError(f"lm-eval task '{name}' runs code that the model writes: boomspec does not")
        fixed = task.get_config("num_fewshot")
        if measure.num_fewshot is not None:
            if fixed == 0 and measure.num_fewshot != 0:
                raise BoomspecError(
                    f"lm-eval task '{name}' fixes num_fewshot at 0, but the spec asks for {measure.num_fewshot}",
                    hint="leave num_fewshot out for this task",
                )
            task.set_config(key="num_fewshot", value=measure.num_fewshot)
        elif fixed is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=measure.seed or 0)
        shots, pool = task.get_config("num_fewshot") or 0, getattr(getattr(task, "sampler", None), "df", None)
        if pool is not None and shots > len(pool):
            message = f"lm-eval task '{name}' is asked with {shots} examples, and has {len(pool)} to take them from"
            raise BoomspecError(message, hint="ask for fewer: num_fewshot")


def guard(loaded: Mapping[str, Any], counts: Counted, scored: Callable[[], None]) -> None:
    """Make errors in a task name the task and the document; count the documents whose answer is no choice.

    `scored` is called for every document that is scored.
    """
    for name, task in loaded["tasks"].items():
        _Guard(name, task, counts, scored)


class _Guard:
    def __init__(self, name: str, task: Any, counts: Counted, scored: Callable[[], None]) -> None:
        self.name, self.task, self.counts, self.scored = name, task, counts, scored
        self.ids: dict[int, int] = {}  # of documents by their identity in memory; the one seen last counts
        self.scores, documents = task.process_results, task.doc_iterator

        def iterated(**options: Any) -> Iterator[tuple[int, Any]]:
            for number, document in documents(**options):
                self.ids[id(document)] = number
                self.counts[self.name].documents.add(number)
                yield number, document

        task.doc_iterator = iterated
        task.fewshot_context = self.naming(task.fewshot_context, "its prompt cannot be made")
        task.construct_requests = self.naming(task.construct_requests, "its requests cannot be made")
        task.process_results = self.naming(self.process, "it cannot be scored")

    def naming(self, function: Callable[..., Any], what: str) -> Callable[..., Any]:
        def named(*arguments: Any, **options: Any) -> Any:
            try:
                return function(*arguments, **options)
            except BoomspecError:
                raise
            except Exception as error:
                document = arguments[0] if arguments else options.get("doc")
                where = f"lm-eval task '{self.name}', document {self.ids.get(id(document), '?')}"
                hint = "mend the document or the task's templates, or leave the document out with process_docs"
                raise BoomspecError(f"{where}: {what}: {one_line(error)}", hint=hint) from error

        return named

    def process(self, document: Any, results: Any) -> Any:
        if not self.has_choice(document):
            self.counts[self.name].no_choice.add(self.ids.get(id(document), -1))
        found = self.scores(document, results)
        self.scored()
        return found

    def has_choice(self, document: Any) -> bool:
        """Whether the answer is among the choices, where lm-eval itself scores choices; else True."""
        task = self.task
        own = not isinstance(task, ConfigurableTask) or callable(task.get_config("process_results"))
        if own or task.OUTPUT_TYPE != "multiple_choice":
            return True
        choices = task.doc_to_choice(document)
        answer = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
        answers = answer if isinstance(answer, list) else [answer]
        return all(0 <= one < len(choices) if isinstance(one, int) else one in choices for one in answers)


def one_line(error: BaseException) -> str:
    """The message of an error of other people's code, on one line."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    if isinstance(error, KeyError):
        return f"there is no {text}"
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
