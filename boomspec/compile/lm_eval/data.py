"""Find the local data that lm-eval tasks name, so that it is checked and digested before anything is trained.

    tasks --local_data--> LocalData, or BoomspecError for what is missing or may not be named

lm-eval hands `dataset_path` and `dataset_kwargs` to the datasets library, for which relative paths start where the
process runs. Here they start at the folder of the file that says them. Names of data sets on the hub stay as they are.
What a task's own Python reads is known only as far as it lies in the tasks' folder.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boomspec.compile.lm_eval.tasks import LOADERS, SingleTask, texts
from boomspec.core.errors import BoomspecError
from boomspec.core.task_data import data_folder_files

_PINNED = re.compile(r"hf://datasets/[\w.-]+(/[\w.-]+)?@[0-9a-f]{40}/.+")
_SAVED = ("dataset_info.json", "state.json", "dataset_dict.json")  # of `save_to_disk`
_ADVICE = "write dataset_path: json (csv, parquet, text) and dataset_kwargs: {data_files: {test: FILE}}"


@dataclass
class LocalData:
    """`outside`: files and folders that do not lie in the tasks' folder. `asks`: by task, its fields that name data."""

    outside: list[Path] = field(default_factory=list)
    asks: dict[str, dict[str, Any]] = field(default_factory=dict)


def local_data(tasks: Iterable[SingleTask], root: Path, *, own: bool) -> LocalData:
    """The local data of tasks of the folder `root`; `own`: the spec's, and not those of the installed lm-eval."""
    found = LocalData()
    for task in tasks:
        search = _Search(task, root, own)
        if fields := search.fields():
            found.asks[task.name] = fields
        found.outside += [path for path in search.outside if path not in found.outside]
    return found


@dataclass
class _Search:
    """Looks for the data of one task."""

    task: SingleTask
    root: Path
    own: bool
    outside: list[Path] = field(default_factory=list)

    def fields(self) -> dict[str, Any]:
        """The fields that name data, with absolute paths; empty where nothing local is named."""
        path, options = self.task.get("dataset_path"), self.task.mapping("dataset_kwargs")
        files, folder = options.get("data_files"), options.get("data_dir")
        if self.task.in_python or "custom_dataset" in self.task.fields:
            return self._of_a_function(options)
        if not isinstance(path, str):
            return {}
        if path in LOADERS:
            return self._of_a_loader(path, options, files, folder)
        if (local := self._folder(path)) is not None:
            self._check_folder(path, local)
            self._take(local)
            more = {"data_files": self._matched(files, local)} if files else {}
            return {"dataset_path": str(local), "dataset_kwargs": {**options, **more}}
        self._check_pinned(files)
        if any(Path(text).is_absolute() for text in texts(files) if "://" not in text):
            # Relative files are the hub's own, and absolute ones this machine's.
            files = self._matched(files, Path("/nowhere"))
            return {"dataset_path": path, "dataset_kwargs": {**options, "data_files": files}}
        return {}

    def _of_a_loader(self, path: str, options: dict[str, Any], files: Any, folder: Any) -> dict[str, Any]:
        """Files that are named one by one, or all of a folder."""
        if not files and not folder:
            if self.own:  # datasets would take what lies where the process runs
                raise self._error(f"dataset_path '{path}' reads files, and none are named", _ADVICE)
            return {}
        base = self.task.file("dataset_kwargs").parent
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

    def _of_a_function(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options that a function of the task gets: where all of them are files or folders, they are data."""
        named = {key: options[key] for key in ("data_files", "data_dir") if options.get(key)}
        base = self.task.file("dataset_kwargs").parent if named else self.root

        def absolute(text: str) -> Path:
            return base / Path(text).expanduser()

        given = [absolute(text) for text in texts(named)]
        if not given or not all(path.exists() for path in given):
            return {}
        for path in given:
            self._take(path.resolve())
        return {"dataset_kwargs": {**options, **_mapped(named, lambda text: str(absolute(text).resolve()))}}

    def _folder(self, path: str) -> Path | None:
        """The folder that `dataset_path` names; None for the name of a data set on the hub."""
        if "://" in path:
            raise self._error(f"dataset_path '{path}' is no data set of the hub and no folder", _ADVICE)
        folder = (self.task.file("dataset_path").parent / Path(path).expanduser()).resolve()
        if folder.is_dir():
            return folder
        if not (path.startswith((".", "/", "~")) or path.count("/") > 1 or folder.is_file()):
            return None
        if folder.exists():
            raise self._error(f"dataset_path '{path}' is a file, and lm-eval takes folders", _ADVICE)
        raise self._missing(path, folder)

    def _check_folder(self, path: str, folder: Path) -> None:
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
        matched = [path] if path.is_file() else _glob(pattern, base)
        if not matched:
            raise self._missing(pattern, path)
        for file in matched:
            self._take(file.resolve())
        return [str(file.resolve()) for file in matched]

    def _take(self, path: Path) -> None:
        if not path.is_relative_to(self.root.resolve()):
            self.outside.append(path)

    def _missing(self, named: str, path: Path) -> BoomspecError:
        hint = "paths are relative to the folder of the file that names them"
        return self._error(f"there is no data at '{named}' ({path})", hint)

    def _error(self, message: str, hint: str) -> BoomspecError:
        return BoomspecError(f"lm-eval task '{self.task.name}': {message}", hint=hint)


def _glob(pattern: str, base: Path) -> list[Path]:
    """The files that a pattern matches, sorted; the folder that it starts from is no part of the pattern."""
    whole = Path(pattern).expanduser()
    start, rest = (Path(whole.anchor), whole.relative_to(whole.anchor)) if whole.is_absolute() else (base, whole)
    try:
        return sorted(path for path in start.glob(str(rest)) if path.is_file())
    except (ValueError, NotImplementedError, OSError):
        return []  # "**" inside a name, too long a name


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_mapped(item, change) for item in value]
    return change(value) if isinstance(value, str) else value
