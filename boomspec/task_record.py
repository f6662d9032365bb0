"""What the records of all task kinds have in common (`boomspec.tasks`)."""

from typing import ClassVar

from boomspec.language.fields import Strict


class Record(Strict):
    """Parameters of one task. Subclasses set `kind` and `version`."""

    kind: ClassVar[str]
    version: ClassVar[int]
