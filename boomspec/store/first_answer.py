"""How long a store at a URL may take to answer for the first time.

A run waits for a store that does not answer: it worked a while ago. A command that a person has just typed says within
seconds that an address is wrong or that nobody listens there; once the store has answered it is waited for, as in a
run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

SECONDS = 5.0
_limit: ContextVar[float | None] = ContextVar("first_answer", default=None)


def first_answer() -> float | None:
    """Seconds in which a store that is opened now must have answered once; None for as long as later on."""
    return _limit.get()


@contextmanager
def answering_at_once(seconds: float = SECONDS) -> Iterator[None]:
    """Stores that are opened within the context must answer within so many seconds."""
    token = _limit.set(seconds)
    try:
        yield
    finally:
        _limit.reset(token)
