"""The lock file: pinned revisions and digests; read, write and compare it.

    <spec>.lock.json, beside the spec     what a spec's names stood for when `boomspec lock` was called
    <run folder>/lock.json                what a run used

JSON and not YAML, so that `specs/*.yaml` are specs, and no digest is ever read as a number. Sorted, one fact a line.
There are no absolute paths, times or hosts in it: the same inputs give the same lock everywhere, packages aside.
null is what was not known yet; it agrees with everything.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from boomspec.core.errors import BoomspecError, redact
from boomspec.core.files import read_json, write_atomically
from boomspec.core.machine import CHANGING_RESULTS
from boomspec.core.types import Strict
from boomspec.spec.spec_file import Pins

SCHEMA_VERSION = 1
_VERSION_KEY = "boomspec_lock"
_ABOUT = "What the names in this experiment stood for. Written by `boomspec lock`; keep it beside the spec, in git."

Commit = Annotated[str, Field(pattern="^[0-9a-f]{40}$")]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Checksum = Annotated[str, Field(pattern="^(sha256:[0-9a-f]{64}|git:[0-9a-f]{40})$")]  # git: a blob's id


class LockedModel(Strict):
    """A model with its tokenizer. Of a hub model the commit says all; the files are those whose checksums are known."""

    revision: Commit | None = None  # None: a folder
    files: dict[str, Checksum]


class LockedText(Strict):
    """Text files. `source` is the identity of them all, in their order."""

    format: str
    source: Sha256
    files: dict[str, Checksum]


class LockedTask(Strict):
    """An lm-eval task, group or tag: `sha256` is of all files that it consists of."""

    origin: str  # "lm_eval 0.4.9", or the folder
    sha256: Sha256
    versions: dict[str, str]  # of its tasks
    datasets: dict[str, str | None]  # that it reads, with the revisions named in its files
    data: dict[str, Checksum] | None = None  # files outside of its folder that it names; None: not known


class LockedRows(Strict):
    """The documents of one stream, in order: sha256 over each one's length (8 bytes, little-endian) and UTF-8 text."""

    documents: Annotated[int, Field(ge=0)]
    sha256: Sha256


class LockedStreams(Strict):
    train: LockedRows
    held_out: LockedRows


class Lock(Strict):
    """Everything that the names of an experiment hide."""

    spec: str  # the experiment's name
    models: dict[str, LockedModel]  # by "owner/name", "owner/name@revision" or folder, as the spec says it
    datasets: dict[str, Commit | None]  # as models; those that lm-eval tasks read, too
    texts: dict[str, LockedText]
    tasks: dict[str, LockedTask]
    rows: dict[Sha256, LockedStreams | None]  # by id of the `tokenize` task; None: not read yet
    packages: dict[str, str]  # of the environment, Python itself included

    def text(self) -> str:
        """The lock file: the sections in their order, everything in them sorted."""
        of_json = self.model_dump(mode="json").items()
        sections = {key: json.loads(json.dumps(value, sort_keys=True, allow_nan=False)) for key, value in of_json}
        data = {"about": _ABOUT, _VERSION_KEY: SCHEMA_VERSION, **sections}
        return json.dumps(redact(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def write(self, path: Path) -> None:
        write_atomically(path, self.text())

    def pins(self, *, only_offline: bool = False) -> Pins:
        models = {name: model.revision for name, model in self.models.items() if model.revision is not None}
        datasets = {name: commit for name, commit in self.datasets.items() if commit is not None}
        return Pins(models, datasets, only_offline)


def lock_path(spec: Path) -> Path:
    """Where the lock of a spec lies: `specs/x.yaml` has `specs/x.lock.json`, `specs/x.yml` `specs/x.yml.lock.json`."""
    return spec.with_name(f"{spec.stem if spec.suffix == '.yaml' else spec.name}.lock.json")


def read_lock(path: Path, *, spec: str | None = None) -> Lock:
    """Read a lock file. Raises BoomspecError where it is none, of another version, or of another spec than `spec`."""
    again = "if it cannot be mended (by git, say), remove it and write it anew: boomspec lock SPEC"
    try:
        data = read_json(path)
    except OSError as error:
        raise BoomspecError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BoomspecError(f"{path}: cannot be read as a lock: {error}", hint=again) from error
    version = data.pop(_VERSION_KEY, None) if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        message = f"{path}: lock version {version!r}, but this boomspec reads version {SCHEMA_VERSION}"
        raise BoomspecError(message, hint="use the boomspec that wrote it, or remove it and write it anew")
    data.pop("about", None)
    try:
        lock = Lock.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BoomspecError(f"{path}: {where}: {first['msg']}: the file was altered", hint=again) from error
    if spec is not None and lock.spec != spec:
        message = f"{path}: is the lock of '{lock.spec}', and this spec is '{spec}'"
        raise BoomspecError(message, hint="remove it and write it anew: boomspec lock SPEC")
    return lock


def completed(lock: Lock, known: Lock) -> Lock:
    """`lock` with what it does not know and `known` does, of the same commits and the same `tokenize` tasks."""
    models = dict(lock.models)
    for name, model in models.items():
        before = known.models.get(name)
        if model.revision is not None and before is not None and before.revision == model.revision:
            models[name] = model.model_copy(update={"files": {**before.files, **model.files}})
    datasets = {name: commit or known.datasets.get(name) for name, commit in lock.datasets.items()}
    rows = {task: streams or known.rows.get(task) for task, streams in lock.rows.items()}
    return lock.model_copy(update={"models": models, "datasets": datasets, "rows": rows})


@dataclass(frozen=True)
class LockChange:
    """One fact that two locks say differently; None where one does not say it."""

    path: tuple[str, ...]  # section, name, and what of it
    before: str | None
    after: str | None
    entry: bool = False  # a whole entry is missing

    def __str__(self) -> str:
        place = ": ".join(shortened(part) for part in self.path)
        return f"{place}: {shortened(self.before)} -> {shortened(self.after)}"


def shortened(value: str | None) -> str:
    """A fact for people: of a long digest its beginning."""
    if value is None:
        return "(nothing)"
    kind, colon, digest = value.rpartition(":")
    return f"{kind}{colon}{digest if len(digest) < 40 or ' ' in digest else digest[:12]}"


def differences(before: Lock, after: Lock) -> list[LockChange]:
    """Every fact that the two say differently, in the order of a lock."""
    found: list[LockChange] = []
    one, two = before.model_dump(mode="json"), after.model_dump(mode="json")
    for section in (name for name in Lock.model_fields if name != "spec"):
        for name in sorted({*one[section], *two[section]}):
            found += _entry_differences((section, name), one[section], two[section])
    return found


def drifts(lock: Lock, now: Lock, *, partial: bool = False, packages: bool = True) -> list[LockChange]:
    """What no longer is as `lock` says. `partial`: it may hold more than is needed. `packages`: compare those, too."""

    def counts(change: LockChange) -> bool:
        known = change.before is not None and change.after is not None
        match change.path:
            case ("packages", name, *_):
                return packages and change.before is not None and name in ("boomspec", *CHANGING_RESULTS)
            case ("rows", *_):
                return known
            case _ if change.entry:
                return not (partial and change.after is None)
            case ("datasets", *_):
                return known
            case ("models", name, "files", _) if lock.models[name].revision is not None:
                return known  # the cache may hold some of the files, and the commit says what all of them are
            case _:
                return True

    return [change for change in differences(lock, now) if counts(change)]


def _entry_differences(path: tuple[str, ...], one: Mapping[str, Any], two: Mapping[str, Any]) -> Iterator[LockChange]:
    name = path[-1]
    if name not in one or name not in two:
        yield LockChange(path, _summary(one, name), _summary(two, name), entry=True)
        return
    if one[name] is None or two[name] is None:
        if one[name] != two[name]:
            before, after = (None if side[name] is None else _summary(side, name) for side in (one, two))
            yield LockChange(path, before, after)
        return
    was, now = dict(_leaves(path, one[name])), dict(_leaves(path, two[name]))
    differing = [place for place in was | now if was.get(place) != now.get(place)]
    for place in differing:
        if place[0] == "texts" and place[-1] == "source" and len(differing) > 1:
            continue  # follows from the others
        yield LockChange(place, was.get(place), now.get(place))


def _summary(entries: Mapping[str, Any], name: str) -> str | None:
    if name not in entries:
        return None
    entry = entries[name]
    if not isinstance(entry, dict):
        return "unknown" if entry is None else str(entry)
    if "train" in entry:
        return " and ".join(f"{entry[stream]['documents']} documents ({stream})" for stream in ("train", "held_out"))
    main = entry.get("revision") or entry.get("sha256") or entry.get("source")
    return str(main) if main else f"{len(entry.get('files', entry))} files"


def _leaves(path: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], str | None]]:
    if isinstance(value, dict):
        for key in sorted(value, key=lambda key: (isinstance(value[key], dict), key)):  # the revision before the files
            yield from _leaves((*path, key), value[key])
    else:
        yield path, None if value is None else str(value)
