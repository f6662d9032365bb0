"""What a person sees while a graph runs: live bars on a terminal, plain lines elsewhere.

A view gets the run's events (`runners/runtime/journal.py`) and the progress lines of running tasks
(`runners/runtime/context.py`): done, total, unit, and named values such as loss terms. A value `rate` is the task's
own measure of its units a second.
"""

import os
import sys
import time
from collections import deque
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from runners.runtime.journal import Event

_LINE_EVERY_SECONDS = 10.0
_PACE_OVER_SECONDS = 30.0
_FIELDS = frozenset({"time", "done", "total", "unit", "rate"})
_LINES = {  # events as lines for people
    "task_started": "start    {name}",
    "task_finished": "done     {name} ({seconds})",
    "task_reused": "reused   {name} ({why})",
    "task_retried": "retry    {name} (its worker was lost; attempt {attempt}, on {host})",
    "task_failed": "FAILED   {name}: {error}",
    "task_blocked": "blocked  {name}: {error}",
    "note": "note     {name}{message}",
}


class Pace:
    """How fast one task is and how long it still takes, from its progress lines."""

    def __init__(self) -> None:
        self.line: dict[str, Any] = {}
        self._samples: deque[tuple[float, float]] = deque()

    def update(self, line: dict[str, Any]) -> None:
        if self._samples and line["done"] < self._samples[-1][1]:
            self._samples.clear()  # a new attempt, or the next phase of the task
        self.line = line
        self._samples.append((line["time"], line["done"]))
        while line["time"] - self._samples[0][0] > _PACE_OVER_SECONDS and len(self._samples) > 2:
            self._samples.popleft()

    @property
    def rate(self) -> float | None:
        """Units a second: what the task itself measures, else over the last half minute; None while unknown."""
        if "rate" in self.line:
            return float(self.line["rate"])
        if len(self._samples) < 2:
            return None
        (first, before), (last, done) = self._samples[0], self._samples[-1]
        return (done - before) / (last - first) if last > first else None

    def describe(self) -> str:
        """ "120/500 steps  24%  2.1 steps/s  loss 3.41  3:01 left"."""
        line, rate = self.line, self.rate
        total, unit = line["total"], line["unit"]
        parts = [f"{quantity(line['done'])} {unit}"]
        if total > 0:
            parts = [f"{quantity(line['done'])}/{quantity(total)} {unit}", f"{line['done'] / total:.0%}"]
        if rate:
            parts.append(f"{quantity(rate)} {unit}/s")
        shown = {name: value for name, value in line.items() if name not in _FIELDS}
        parts += [f"{n} {value if isinstance(value, str) else quantity(value)}" for n, value in shown.items()]
        if rate and total > 0:
            parts.append(f"{clock((total - line['done']) / rate)} left")
        return "  ".join(parts)


def quantity(number: float) -> str:
    """A number in at most four significant digits: 950, 9.53k, 2.1M."""
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(number) >= limit:
            return f"{number / (1e3 if suffix == 'k' else limit):.3g}{suffix}"
    return f"{number:.4g}"


def clock(seconds: float) -> str:
    """Seconds as 4 s, 3:01 or 2:03:01."""
    if (whole := round(seconds)) < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class View:
    """Plain lines: one for each transition, and one every ten seconds for each task that runs."""

    def __init__(self, tasks: int) -> None:
        self.tasks = tasks
        self.ended = 0
        self.names: dict[str, str] = {}
        self.paces: dict[str, Pace] = {}
        self._next: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def event(self, event: Event) -> None:
        kind, task_id, name = event["event"], event.get("task", ""), event.get("name", "")
        if kind in ("task_started", "task_retried"):
            self.names[task_id], self.paces[task_id] = name, Pace()
        elif kind.startswith("task_"):
            self.ended += 1
            self.paces.pop(task_id, None)
        values = {**event, "error": str(event.get("error", "")).partition("\n")[0]}
        if kind == "task_finished":
            values["seconds"] = clock(event.get("seconds", 0))
        elif kind == "task_reused":
            same = f"same inputs, byte for byte, as {event['same_as'][:12]}" if event.get("same_as") else ""
            values["why"] = same or "made by another run meanwhile"
        elif kind == "note":
            values["name"] = f"{name}: " if name else ""
        self.show(event, _LINES[kind].format_map(values) if kind in _LINES else "")

    def show(self, event: Event, text: str) -> None:
        if text:
            print(f"{time.strftime('%H:%M:%S')} {f'[{self.ended}/{self.tasks}]':>9} {text}", flush=True)

    def progress(self, task_id: str, line: dict[str, Any]) -> None:
        self.paces.setdefault(task_id, Pace()).update(line)

    def tick(self) -> None:
        """Called a few times a second."""
        now = time.monotonic()
        for task_id, pace in self.paces.items():
            due = self._next.setdefault(task_id, now + _LINE_EVERY_SECONDS)
            if now >= due and pace.line:
                self._next[task_id] = now + _LINE_EVERY_SECONDS
                self.show({}, f"         {self.names.get(task_id, '')}: {pace.describe()}")


class LiveView(View):
    """An overall bar and one bar for each task that runs; events scroll away above them."""

    def __init__(self, tasks: int, *, console: Console | None = None) -> None:
        super().__init__(tasks)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, max_width=40)),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[details]}", markup=False, table_column=Column(no_wrap=True)),
            console=console or Console(highlight=False),
        )
        self._all = self._bars.add_task("all tasks", total=tasks, details=f"0/{tasks}")
        self._rows: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, event: Event, text: str) -> None:
        kind, task_id = event["event"], event.get("task", "")
        if kind == "task_started":
            self._rows[task_id] = self._bars.add_task(event["name"], total=None, details="")
        elif kind.startswith("task_") and kind != "task_retried" and task_id in self._rows:
            self._bars.remove_task(self._rows.pop(task_id))
        self._bars.update(self._all, completed=self.ended, details=f"{self.ended}/{self.tasks}")
        if text and kind != "task_started":  # its bar shows that
            self._bars.console.print(Text(text, style="bold red" if kind == "task_failed" else ""))

    def progress(self, task_id: str, line: dict[str, Any]) -> None:
        if task_id in self.paces and task_id in self._rows:
            super().progress(task_id, line)
            total = line["total"] if line["total"] > 0 else None
            details = self.paces[task_id].describe()
            self._bars.update(self._rows[task_id], completed=line["done"], total=total, details=details)

    def tick(self) -> None:
        pass


def view_for(tasks: int, *, plain: bool) -> View:
    """The view for a run of so many tasks on this process's standard output."""
    plain = plain or not sys.stdout.isatty() or os.environ.get("TERM") == "dumb"
    return View(tasks) if plain else LiveView(tasks)
