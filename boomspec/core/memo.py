"""What is read or worked out once for many experiments."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class Once:
    """Answers by key. It lives as long as one command's work on a set of experiments, in which no file changes."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Any] = {}

    def __call__(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gave for this key; called at its first use."""
        if key not in self._known:
            self._known[key] = make()
        known: T = self._known[key]
        return known
