"""What lies in a store: its folders by name, the workspace of a task, and what `gc` may delete."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from boomspec.core.errors import BoomspecError
from boomspec.store.record import ArtifactId

RUNS = "runs"
SOURCE = "source"  # the folder of uploaded sources, beside those of the kinds of tasks
MADE_OF = "made_of"  # the folder of the index for early cut-off
Waiting = Callable[[], None]  # called once when we have to wait for another process
Report = Callable[[str], None]  # called with a message for people
Damages = dict[ArtifactId, str | None]
Unread = dict[ArtifactId, BoomspecError] | None  # filled with the errors of artifacts that cannot be read now


@dataclass(frozen=True)
class Workspace:
    """Where one task works: its payload goes into `path`, its checkpoints into `resume`."""

    path: Path
    resume: Path


@dataclass(frozen=True)
class Deletable:
    """Something in a store that `gc` may delete, and why: a file, a folder, or a group of objects.

    "artifact" and "checkpoints" belong to `task`; "leftover" is what dead processes left.
    """

    what: Literal["run", "artifact", "broken artifact", "checkpoints", "leftover", "cache"]
    path: Path | str  # a URL, for objects
    kind: str = ""  # of task
    task: str = ""
    reason: str = ""  # why it can go; "" where that depends on the runs
    damage: str | None = None  # of an artifact
    objects: tuple[str, ...] = ()  # in the order of deletion: first the one without which nobody looks for the others
    upload: str = ""  # id of an upload that never ended
    bytes: int = 0


def stored_kinds() -> tuple[str, ...]:
    """The folders of artifacts: a kind of task each, and sources."""
    from boomspec.core.tasks import KINDS  # imported here: shell completion does without pydantic

    return (*KINDS, SOURCE)


def nothing(*_: Any) -> None:
    """The callback that does nothing."""
