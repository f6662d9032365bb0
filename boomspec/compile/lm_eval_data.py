"""The local data that lm-eval tasks name: found, checked and digested before anything is trained.

    tasks --local_data--> LocalData, or DataError with what is missing or may not be named

lm-eval hands `dataset_path` and `dataset_kwargs` on to the datasets library, which looks for relative paths where a
process happens to run. Here they are relative to the folder of the file that says them. Names of data sets on the hub
stay as they are. What a task's own Python reads is known only as far as it lies in the tasks' folder.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boomspec.compile.lm_eval_configs import SingleTask
from boomspec.compile.lm_eval_files import LOADERS
from boomspec.core.errors import BoomspecError
from boomspec.core.task_data import data_folder_files

_KEYS = ("data_files", "data_dir")
_PINNED = re.compile(r"hf://datasets/[\w.-]+(/[\w.-]+)?@[0-9a-f]{40}/.+")
_SAVED = ("dataset_info.json", "state.json", "dataset_dict.json")  # of `save_to_disk`


class DataError(BoomspecError):
    """Data that a task names is not there, or may not be named."""


@dataclass
class LocalData:
    """`outside`: files and folders that do not lie in the tasks' folder. `asks`: by task, its fields that name data."""

    outside: list[Path] = field(default_factory=list)
    asks: dict[str, dict[str, Any]] = field(default_factory=dict)


def local_data(tasks: Iterable[SingleTask], root: Path, *, own: bool) -> LocalData:
    """The local data of tasks of the folder `root`; `own`: the spec's, and not those of the installed lm-eval."""
    found = LocalData()
    for task in tasks:
        look = _Look(task, root, own, found)
        if ask := look.ask():
            found.asks[task.name] = ask
    found.outside = list(dict.fromkeys(found.outside))
    return found


@dataclass
class _Look:
    task: SingleTask
    root: Path
    own: bool
    found: LocalData

    def ask(self) -> dict[str, Any]:
        """The fields with absolute paths; empty where nothing local is named."""
        path, options = self.task.get("dataset_path"), self.task.get("dataset_kwargs")
        options = options if isinstance(options, dict) else {}
        named = {key: options[key] for key in _KEYS if options.get(key)}
        if self.task.in_python or "custom_dataset" in self.task.fields:
            return self._handed_on(options, named)
        if not isinstance(path, str):
            return {}
        if path in LOADERS:
            return self._loaded(path, options, named)
        folder = self._folder(path)
        if folder is None:
            return self._of_hub(path, options, named)
        self._check_folder(path, folder)
        self._take(folder)
        more = {key: self._patterns(value, folder) for key, value in named.items() if key == "data_files"}
        return {"dataset_path": str(folder), "dataset_kwargs": {**options, **more}}

    def _loaded(self, path: str, options: dict[str, Any], named: dict[str, Any]) -> dict[str, Any]:
        """Files that are named one by one, or all of a folder."""
        if not named:
            if self.own:  # datasets would take what lies where the process runs
                raise self._error(f"dataset_path '{path}' reads files, and none are named", _ADVICE)
            return {}
        base = self.task.file("dataset_kwargs").parent
        if "data_dir" in named:
            base = self._existing_folder(named["data_dir"], base)
        if "data_files" not in named:
            self._check_plain(base)
            self._take(base)
            return {"dataset_path": path, "dataset_kwargs": {**options, "data_dir": str(base)}}
        files = self._patterns(named["data_files"], base)
        rest = {key: value for key, value in options.items() if key != "data_dir"}
        return {"dataset_path": path, "dataset_kwargs": {**rest, "data_files": files}}

    def _of_hub(self, path: str, options: dict[str, Any], named: dict[str, Any]) -> dict[str, Any]:
        """A data set on the hub: its relative files are its own, but absolute ones are this machine's."""
        files = [Path(text) for text in _texts(named.get("data_files")) if "://" not in text]
        self._check_remote(named.get("data_files"))
        if not any(file.is_absolute() for file in files):
            return {}
        patterns = self._patterns(named["data_files"], Path("/nowhere"))
        return {"dataset_path": path, "dataset_kwargs": {**options, "data_files": patterns}}

    def _handed_on(self, options: dict[str, Any], named: dict[str, Any]) -> dict[str, Any]:
        """What a function of the task gets: files that are there are taken for what they look like."""
        base = self.task.file("dataset_kwargs").parent if named else self.root
        given = [base / Path(text).expanduser() for value in named.values() for text in _texts(value)]
        if not given or not all(path.exists() for path in given):
            return {}
        for path in given:
            self._take(path.resolve())
        moved = {
            key: _mapped(value, lambda text: str((base / Path(text).expanduser()).resolve()))
            for key, value in named.items()
        }
        return {"dataset_kwargs": {**options, **moved}}

    def _folder(self, path: str) -> Path | None:
        """The folder that `dataset_path` names; None for the name of a data set on the hub."""
        if "://" in path:
            raise self._error(f"dataset_path '{path}' is no data set of the hub and no folder", _ADVICE)
        folder = (self.task.file("dataset_path").parent / Path(path).expanduser()).resolve()
        if folder.is_dir():
            return folder
        looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1 or folder.is_file()
        if looks_local and folder.exists():
            raise self._error(f"dataset_path '{path}' is a file, and lm-eval takes folders", _ADVICE)
        if looks_local:
            raise self._missing(path, folder)
        return None

    def _check_folder(self, path: str, folder: Path) -> None:
        self._check_plain(folder)
        files = data_folder_files(folder)
        if not files:
            raise self._error(f"dataset_path '{path}': there is no data in {folder}", _ADVICE)
        if any(file.name in _SAVED for file in files) and not any(file.suffix == ".parquet" for file in files):
            hint = "write its splits with to_parquet: lm-eval cannot read what save_to_disk wrote"
            raise self._error(f"dataset_path '{path}' was written by save_to_disk", hint)
        if (folder / f"{folder.name}.py").is_file():
            hint = "save what it makes as jsonl or parquet: the datasets library no longer runs scripts"
            raise self._error(f"dataset_path '{path}' is a loading script", hint)

    def _check_plain(self, folder: Path) -> None:
        if glob.has_magic(str(folder)):
            hint = "call it otherwise: the datasets library takes *, ? and [ in its path for patterns"
            raise self._error(f"the data lies in {folder}", hint)

    def _existing_folder(self, path: Any, base: Path) -> Path:
        self._check_remote(path)
        folder = (base / Path(str(path)).expanduser()).resolve()
        if not folder.is_dir():
            raise self._missing(str(path), folder)
        return folder

    def _check_remote(self, value: Any) -> None:
        for text in _texts(value):
            if "://" in text and self.own and not _PINNED.fullmatch(text):
                hint = "name a commit (hf://datasets/owner/name@COMMIT/file), or put the file beside the task"
                raise self._error(f"'{text}' can change without anybody noticing", hint)

    def _patterns(self, value: Any, base: Path) -> Any:
        """The same structure with the files that the patterns match."""
        if isinstance(value, dict):
            return {key: self._patterns(item, base) for key, item in value.items()}
        self._check_remote(value)
        files: list[str] = []
        for text in _texts(value):
            files += [text] if "://" in text else [str(path) for path in self._matches(text, base)]
        return files

    def _matches(self, pattern: str, base: Path) -> list[Path]:
        path = base / Path(pattern).expanduser()
        if path.is_file():
            matched = [path]
        elif path.is_dir():
            raise self._error(f"data_files '{pattern}' is a folder", "name its files, or give it as data_dir")
        else:
            matched = _glob(pattern, base)
        if not matched:
            raise self._missing(pattern, path)
        found = [path.resolve() for path in matched]
        for file in found:
            self._take(file)
        return found

    def _take(self, path: Path) -> None:
        if not path.is_relative_to(self.root.resolve()):
            self.found.outside.append(path)

    def _missing(self, named: str, path: Path) -> DataError:
        hint = "paths are relative to the folder of the file that names them"
        return self._error(f"there is no data at '{named}' ({path})", hint)

    def _error(self, message: str, hint: str) -> DataError:
        return DataError(f"lm-eval task '{self.task.name}': {message}", hint=hint)


_ADVICE = "write dataset_path: json (csv, parquet, text) and dataset_kwargs: {data_files: {test: FILE}}"


def _glob(pattern: str, base: Path) -> list[Path]:
    """The files that a pattern matches, sorted; the folder that it starts from is no part of the pattern."""
    whole = Path(pattern).expanduser()
    start, rest = (Path(whole.anchor), whole.relative_to(whole.anchor)) if whole.is_absolute() else (base, whole)
    try:
        return sorted(path for path in start.glob(str(rest)) if path.is_file())
    except (ValueError, NotImplementedError, OSError):
        return []  # "**" inside a name, too long a name


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_mapped(item, change) for item in value]
    return change(value) if isinstance(value, str) else value
