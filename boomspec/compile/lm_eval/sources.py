"""The lm-eval tasks of a spec: the folder that each comes from, the local data that it names, and what identifies it.

A task is looked for in the spec's own `tasks_folder` first, and then in the installed lm-eval. Where none
is installed, its tasks are not known: a plan goes on without them, and nothing is run (`TaskGraph.check_known`).

lm-eval hands `dataset_path` and `dataset_kwargs` to the datasets library, for which relative paths start where the
process runs. Here they start at the folder of the file that says them. Names of data sets on the hub stay as they are.
What a task's own Python reads is known only as far as it lies in the tasks' folder.
"""

import glob
import importlib.metadata
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from boomspec.compile.lm_eval import tasks as lm_eval
from boomspec.compile.lm_eval.randomness import bootstraps, draws
from boomspec.compile.lm_eval.tasks import SingleTask, TaskDefinition, stock_folder, task_index, texts
from boomspec.compile.places import errors_at, resolve_path, shown_path
from boomspec.core.errors import BoomspecError, did_you_mean
from boomspec.core.graph import OUTSIDE, UNKNOWN, Source
from boomspec.core.identity import folder_digest
from boomspec.core.json_text import mapped
from boomspec.core.task_data import ASKS, DATA, TASKS, data_folder_files, digests
from boomspec.core.tasks import Generation
from boomspec.spec.sections.evaluation import TaskSpec
from boomspec.spec.spec_file import SpecFile, memoized_for

_FOLDER = ("evaluate", "tasks_folder")
_PINNED = re.compile(r"hf://datasets/[\w.-]+(/[\w.-]+)?@[0-9a-f]{40}/.+")
_SAVED = ("dataset_info.json", "state.json", "dataset_dict.json")  # of `save_to_disk`
_NOT_KNOWN = TaskDefinition((), (), (), {}, {}, ())
_ADVICE = "write dataset_path: json (csv, parquet, text) and dataset_kwargs: {data_files: {test: FILE}}"


def task_chance(file: SpecFile, task: TaskSpec, generation: Generation | None = None) -> tuple[bool, bool]:
    """Whether a seed, and whether the number of resamples, can change what a task measures. It has to exist.

    generation: how the spec has its text generated.
    """
    if not is_known(file, task.task):
        return True, True
    folder, tasks, shots = _folder_of(file, task.task), definition_of(file, task.task).tasks, task.num_fewshot

    def chance() -> tuple[bool, bool]:
        if not tasks:
            return True, True  # what lm-eval will run is not known
        drawn = any(draws(one, folder, num_fewshot=shots, generation=generation) for one in tasks)
        return drawn, any(map(bootstraps, tasks))

    return file.once(("chance", folder, task.task, shots, generation), chance)


def is_known(file: SpecFile, task: str) -> bool:
    """Whether it can be told here what a task is: not of lm-eval's own where lm-eval is not installed."""
    own = _own_folder(file)
    return lm_eval.installed_package() is not None or (own is not None and task in task_index(own).names)


def definition_of(file: SpecFile, task: str) -> TaskDefinition:
    """What a task consists of; nothing where that is not known here."""
    if not is_known(file, task):
        return _NOT_KNOWN
    folder = _folder_of(file, task)
    return file.once(("task definition", folder, task), lambda: lm_eval.read_task(task, folder))


@memoized_for("evaluate")
def generates(file: SpecFile, task: str) -> bool:
    """Whether models write text for this task, or may do so: of a class in Python nobody knows."""
    tasks = definition_of(file, task).tasks
    return not tasks or any(one.in_python or one.output_type == "generate_until" for one in tasks)


def only_generates(file: SpecFile, task: str) -> bool:
    """Whether all that this task asks of a model is to write text."""
    tasks = definition_of(file, task).tasks
    return bool(tasks) and all(not one.in_python and one.output_type == "generate_until" for one in tasks)


def _own_folder(file: SpecFile) -> Path | None:
    named = file.spec.evaluate.tasks_folder if file.spec.evaluate is not None else None
    return None if named is None else resolve_path(file, _FOLDER, named)


def _folder_of(file: SpecFile, task: str) -> Path:
    own = _own_folder(file)
    return own if own is not None and task in task_index(own).names else stock_folder()


@memoized_for("evaluate")
def task_source(file: SpecFile, task: str, index: int) -> Source:
    """The source of a task, the `index`-th of the spec. Raises SpecError for one that does not exist or may not run."""
    if not is_known(file, task):
        return Source("lm_eval_tasks", {"lm_eval": UNKNOWN}, {})
    own, folder, place = _own_folder(file), _folder_of(file, task), ("evaluate", "tasks", index)
    if task not in task_index(folder).names:
        known = [*(task_index(own).names if own is not None else ()), *task_index(folder).names]
        hint = did_you_mean(task, known) or "list them with: lm-eval ls tasks"
        raise file.error_at(place, f"lm-eval knows no task '{task}'", hint)
    definition, package = definition_of(file, task), lm_eval.installed_package()
    stock = package / "tasks" if package is not None else None
    outside = [path for path in definition.outside if stock is None or not path.is_relative_to(stock.resolve())]
    if folder == own and outside:
        message = f"'{task}' of {folder} takes something from outside of that folder: {outside[0]}"
        raise file.error_at(place, message, "put it into the folder: what is in it is part of what identifies a result")
    metrics = _own_metrics(package)
    if unknown := [name for name in definition.metrics if metrics and name not in metrics]:
        message = f"lm-eval task '{task}': its metric '{unknown[0].removeprefix('evaluate/')}' is code of the hub"
        hint = "code that nobody has pinned is not run; lm-eval's own metrics are: " + ", ".join(sorted(metrics))
        raise file.error_at(place, message, hint)
    with errors_at(file, place):
        elsewhere, asks = local_data(definition.tasks, folder, own=folder == own)
    identity: dict[str, Any]
    if folder != own:
        identity, location = {"lm_eval": importlib.metadata.version("lm-eval")}, dict[str, Any]()
    else:
        assert file.spec.evaluate is not None
        identity = {"folder": folder_digest(folder)}
        location = {"folder": str(folder), "name": shown_path(str(file.spec.evaluate.tasks_folder))}
        location[OUTSIDE] = not folder.is_relative_to(file.folder(_FOLDER).resolve())
    if asks:  # two tasks that read the same data have different sources: each needs paths of its own
        identity[TASKS], location[ASKS] = sorted(asks), asks
    if asks and elsewhere:
        identity[DATA] = [file.once(("data", path), partial(digests, path)) for path in elsewhere]
        location[DATA] = [{"path": str(path), "is_file": path.is_file()} for path in elsewhere]
    return Source("lm_eval_tasks", identity, location)


@cache
def _own_metrics(package: Path | None) -> frozenset[str]:
    """lm-eval's own metrics, read from its source; empty where they cannot be read. It fetches others from the hub."""
    source = package / "api" / "metrics.py" if package is not None else None
    if source is None or not source.is_file():
        return frozenset()
    return frozenset(re.findall(r"metric=\"([\w.-]+)\"", source.read_text(encoding="utf-8")))


def local_data(tasks: Iterable[SingleTask], root: Path, *, own: bool) -> tuple[list[Path], dict[str, dict[str, Any]]]:
    """The local data of tasks of the folder `root`; `own`: the spec's, and not those of the installed lm-eval.

    Returns files and folders that do not lie in `root`, and by task its fields that name data, with absolute paths. All
    is checked and digested before anything is trained. Raises BoomspecError for what is missing or may not be named.
    """
    outside: list[Path] = []
    asks = {task.name: _Search(task, root, own, outside).fields() for task in tasks}
    return outside, {name: fields for name, fields in asks.items() if fields}


@dataclass
class _Search:
    """Looks for the data of one task; `outside` collects what does not lie in the tasks' folder, each once."""

    task: SingleTask
    root: Path
    own: bool
    outside: list[Path]

    def fields(self) -> dict[str, Any]:
        """The fields that name data, with absolute paths; empty where nothing local is named."""
        path, options = self.task.get("dataset_path"), self.task.mapping("dataset_kwargs")
        files = options.get("data_files")
        if self.task.in_python or "custom_dataset" in self.task.fields:
            return self._of_a_function(options)
        if not isinstance(path, str):
            return {}
        if path in lm_eval.LOADERS:
            return self._of_a_loader(path, options)
        if (local := self._folder(path)) is not None:
            self._take(local)
            more = {"data_files": self._matched(files, local)} if files else {}
            return {"dataset_path": str(local), "dataset_kwargs": {**options, **more}}
        self._check_pinned(files)
        if any(Path(text).is_absolute() for text in texts(files) if "://" not in text):
            # Relative files are the hub's own, and absolute ones this machine's.
            files = self._matched(files, Path("/nowhere"))
            return {"dataset_path": path, "dataset_kwargs": {**options, "data_files": files}}
        return {}

    def _of_a_function(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options that a function of the task gets: where all of them are files or folders, they are data."""
        named = {key: options[key] for key in ("data_files", "data_dir") if options.get(key)}
        base = self.task.fields["dataset_kwargs"][1].parent if named else self.root
        given = [base / Path(text).expanduser() for text in texts(named)]
        if not given or not all(path.exists() for path in given):
            return {}
        for path in given:
            self._take(path.resolve())
        absolute = mapped(named, str, lambda text: str((base / Path(text).expanduser()).resolve()))
        return {"dataset_kwargs": {**options, **absolute}}

    def _of_a_loader(self, path: str, options: dict[str, Any]) -> dict[str, Any]:
        """Files that are named one by one, or all of a folder."""
        files, folder = options.get("data_files"), options.get("data_dir")
        if not files and not folder:
            if self.own:  # datasets would take what lies where the process runs
                raise self._error(f"dataset_path '{path}' reads files, and none are named", _ADVICE)
            return {}
        base = self.task.fields["dataset_kwargs"][1].parent
        if folder:
            self._check_pinned(folder)
            named, base = str(folder), (base / Path(str(folder)).expanduser()).resolve()
            if not base.is_dir():
                raise self._missing(named, base)
        if files:
            rest = {key: value for key, value in options.items() if key != "data_dir"}
            return {"dataset_path": path, "dataset_kwargs": {**rest, "data_files": self._matched(files, base)}}
        self._check_plain(base)
        self._take(base)
        return {"dataset_path": path, "dataset_kwargs": {**options, "data_dir": str(base)}}

    def _folder(self, path: str) -> Path | None:
        """The folder that `dataset_path` names; None for the name of a data set on the hub."""
        if "://" in path:
            raise self._error(f"dataset_path '{path}' is no data set of the hub and no folder", _ADVICE)
        folder = (self.task.fields["dataset_path"][1].parent / Path(path).expanduser()).resolve()
        if folder.is_file():
            raise self._error(f"dataset_path '{path}' is a file, and lm-eval takes folders", _ADVICE)
        if not folder.is_dir():
            if path.startswith((".", "/", "~")) or path.count("/") > 1:
                raise self._missing(path, folder)
            return None
        self._check_plain(folder)
        files = data_folder_files(folder)
        if not files:
            raise self._error(f"dataset_path '{path}': there is no data in {folder}", _ADVICE)
        if any(file.name in _SAVED for file in files) and not any(file.suffix == ".parquet" for file in files):
            hint = "write its splits with to_parquet: lm-eval cannot read what save_to_disk wrote"
            raise self._error(f"dataset_path '{path}' was written by save_to_disk", hint)
        if (folder / f"{folder.name}.py").is_file():
            hint = "save its data as jsonl or parquet: the datasets library no longer runs scripts"
            raise self._error(f"dataset_path '{path}' is a loading script", hint)
        return folder

    def _check_plain(self, folder: Path) -> None:
        if glob.has_magic(str(folder)):
            hint = "rename it: the datasets library takes *, ? and [ in its path for patterns"
            raise self._error(f"the data lies in {folder}", hint)

    def _check_pinned(self, value: Any) -> None:
        for text in texts(value):
            if "://" in text and self.own and not _PINNED.fullmatch(text):
                hint = "name a commit (hf://datasets/owner/name@COMMIT/file), or put the file beside the task"
                raise self._error(f"'{text}' can change without anybody noticing", hint)

    def _matched(self, value: Any, base: Path) -> Any:
        """The same structure with the files that its patterns match."""
        if isinstance(value, dict):
            return {key: self._matched(item, base) for key, item in value.items()}
        self._check_pinned(value)
        return [file for text in texts(value) for file in ([text] if "://" in text else self._files(text, base))]

    def _files(self, pattern: str, base: Path) -> list[str]:
        path = base / Path(pattern).expanduser()
        if path.is_dir():
            raise self._error(f"data_files '{pattern}' is a folder", "name its files, or give it as data_dir")
        matched = [path] if path.is_file() else []
        with suppress(ValueError, NotImplementedError, OSError):  # "**" inside a name, too long a name
            # The folder that a pattern starts from is no part of it.
            start = Path(path.anchor) if Path(pattern).expanduser().is_absolute() else base
            matched = matched or sorted(p for p in start.glob(str(path.relative_to(start))) if p.is_file())
        if not matched:
            raise self._missing(pattern, path)
        for file in matched:
            self._take(file.resolve())
        return [str(file.resolve()) for file in matched]

    def _take(self, path: Path) -> None:
        if not path.is_relative_to(self.root.resolve()) and path not in self.outside:
            self.outside.append(path)

    def _missing(self, named: str, path: Path) -> BoomspecError:
        hint = "paths are relative to the folder of the file that names them"
        return self._error(f"there is no data at '{named}' ({path})", hint)

    def _error(self, message: str, hint: str) -> BoomspecError:
        return BoomspecError(f"lm-eval task '{self.task.name}': {message}", hint=hint)
