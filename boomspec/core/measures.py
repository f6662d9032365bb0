"""What measures are called on pages and in tables, where a spec asks one lm-eval task in several ways."""

from __future__ import annotations


def shown_measure(measured: str, *, task: str | None, called: str) -> str:
    """The name, on a page, of what lm-eval calls `measured`: a task that is `called` otherwise, or a member of it."""
    if task in (None, called):
        return measured
    if measured == task:
        return called
    return f"{measured}{called.removeprefix(task)}" if called.startswith(f"{task} (") else f"{measured} ({called})"
