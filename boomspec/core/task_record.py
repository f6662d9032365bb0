"""What the records of all task kinds have in common (`boomspec.core.tasks`)."""

from typing import ClassVar

from boomspec.core.types import Strict


class Record(Strict):
    """Parameters of one task. Subclasses set `kind` and `version`."""

    kind: ClassVar[str]
    version: ClassVar[int]
