"""What a person sees while a graph runs: live bars on a terminal, plain lines elsewhere.

A view gets the run's events (`runners/runtime/journal.py`) and the progress lines of running tasks
(`runners/runtime/context.py`): done, total, unit, and named values such as loss terms. A value `rate` is the task's
own measure of its units a second.

How long all tasks still take is judged by how long each was forecast to take: what is forecast of those that are done
is the share that is done. So a machine that is twice as slow as forecast is noticed with the first tasks.
"""

import os
import sys
import time
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any, Self

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from runners.runtime.journal import Event

_LINE_EVERY_SECONDS = 10.0
_RUN_EVERY_SECONDS = 60.0  # between plain lines about all tasks
_LEAST_SHARE = 0.02  # of all tasks, from which their speed says how long the others take
_LEAST_SHARE_UNKNOWN = 0.5  # where most of them have no forecast: by their number alone, a training is one of many
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

    @property
    def share(self) -> float | None:
        """How much of the task is done, 0 to 1; None while unknown."""
        if not self.line or self.line["total"] <= 0:
            return None
        done, total = float(self.line["done"]), float(self.line["total"])
        return min(1.0, done / total)

    @property
    def left(self) -> float | None:
        """Seconds; None while unknown."""
        if (rate := self.rate) and self.share is not None:
            return max(0.0, float(self.line["total"]) - float(self.line["done"])) / rate
        return None

    def amounts(self) -> list[str]:
        """The most important first: ["120/500 steps", "2.1 steps/s", "loss 3.41"]."""
        line, rate = self.line, self.rate
        if not line:
            return []
        of = f"/{quantity(line['total'])}" if line["total"] > 0 else ""
        parts = [f"{quantity(line['done'])}{of} {line['unit']}"]
        if rate:
            parts.append(f"{quantity(rate)} {line['unit']}/s")
        shown = {name: value for name, value in line.items() if name not in _FIELDS}
        return parts + [f"{n} {value if isinstance(value, str) else quantity(value)}" for n, value in shown.items()]


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


def times(share: float | None, spent: float, left: float | None) -> str:
    """ "24% after 0:57, 3:01 left"."""
    done = "" if share is None else f"{share:.0%} "
    return f"{done}after {clock(spent)}" + ("" if left is None else f", {clock(left)} left")


class View:
    """Plain lines: one for each transition, one every ten seconds for each task that runs, one a minute for all.

    `expected`: forecast seconds by task id, of those whose time is known.
    """

    def __init__(self, tasks: int, expected: Mapping[str, float] | None = None) -> None:
        self.tasks = tasks
        self.ended = 0
        self.names: dict[str, str] = {}
        self.paces: dict[str, Pace] = {}
        self.started: dict[str, float] = {}
        self._next: dict[str, float] = {}
        self._expected = expected or {}
        self._usual = median(self._expected.values()) if self._expected else 1.0
        self._all = sum(self._expected.values()) + self._usual * (tasks - len(self._expected))
        self._done = 0.0  # of `_all`
        self._began = self._told = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def event(self, event: Event) -> None:
        kind, task_id, name = event["event"], event.get("task", ""), event.get("name", "")
        if kind in ("task_started", "task_retried"):
            self.names[task_id], self.paces[task_id] = name, Pace()
            self.started[task_id] = time.monotonic()
        elif kind.startswith("task_"):
            self.ended += kind != "task_interrupted"
            self.paces.pop(task_id, None)
            self._count(task_id, computed=kind == "task_finished")
        values = {**event, "error": str(event.get("error", "")).partition("\n")[0]}
        if kind == "task_finished":
            values["seconds"] = clock(event.get("seconds", 0))
        elif kind == "task_reused":
            same = f"same inputs, byte for byte, as {event['same_as'][:12]}" if event.get("same_as") else ""
            values["why"] = same or "made by another run meanwhile"
        elif kind == "note":
            values["name"] = f"{name}: " if name else ""
        self.show(event, _LINES[kind].format_map(values) if kind in _LINES else "")

    def _count(self, task_id: str, *, computed: bool) -> None:
        share = self._expected.get(task_id, self._usual)
        if computed:
            self._done += share
        else:  # it took no time, or it will never be done
            self._all -= share

    def left(self) -> float | None:
        """Seconds until all tasks have ended, as fast as they went so far; None while too few are done."""
        running = {i: pace.share or 0.0 for i, pace in self.paces.items()}
        done = self._done + sum(share * self._expected.get(i, self._usual) for i, share in running.items())
        least = _LEAST_SHARE if 2 * len(self._expected) > self.tasks else _LEAST_SHARE_UNKNOWN
        if self._all <= 0 or done < least * self._all:
            return None
        return max(0.0, self._all - done) / done * self.spent()

    def spent(self, task_id: str | None = None) -> float:
        """Seconds since a task, or all, began."""
        return time.monotonic() - (self._began if task_id is None else self.started.get(task_id, self._began))

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
                spent = times(pace.share, self.spent(task_id), pace.left)
                self.show({}, f"         {self.names.get(task_id, '')}: {'  '.join([spent, *pace.amounts()])}")
        if now - self._told >= _RUN_EVERY_SECONDS and (left := self.left()) is not None:
            self._told = now
            self.show({}, f"         all tasks: {times(None, self.spent(), left)}")


_NARROW, _WIDE = 100, 140  # columns of a terminal
_OTHER_LINES = 4  # of a terminal beside the rows of tasks: all tasks, and what scrolls away


class _Fitting(ProgressColumn):
    """As many of a row's amounts as its terminal has room for, whole ones only."""

    max_refresh = None

    def __init__(self, console: Console, others: int) -> None:
        super().__init__(Column(no_wrap=True))
        self._console, self._others = console, others

    def render(self, task: Task) -> Text:
        room, text = self._console.width - self._others, ""
        for part in task.fields["amounts"]:
            longer = f"{text}  {part}" if text else part
            if cell_len(longer) > room:
                break
            text = longer
        return Text(text)


def shortened(name: str, width: int) -> str:
    """A name in so many columns: what tells tasks apart is at its start and its end, so the middle gives way.

    Of a measurement (`evaluate naive_pruning 4 layers: held_out`) it is around the colon: there the start gives way.
    """
    if len(name) <= width:
        return name
    model, colon, measure = name.rpartition(": ")
    if colon:
        room = width - len(colon)
        measured = min(len(measure), max(room // 2, room - len(model)))
        if measured < len(measure):
            measure = f"{measure[: measured - 1]}…"
        if len(model) > (front := room - measured):
            model = f"…{model[len(model) - front + 1 :]}"
        return f"{model}{colon}{measure}"
    front = (width - 1) // 2
    return f"{name[:front]}…{name[len(name) - (width - 1 - front) :]}"


class LiveView(View):
    """An overall bar and one bar for each task that runs; events scroll away above them.

    A row: name, bar, share, time spent and time left (0:57<3:01), then amounts, as far as there is room.
    """

    def __init__(
        self, tasks: int, expected: Mapping[str, float] | None = None, *, console: Console | None = None
    ) -> None:
        super().__init__(tasks, expected)
        console = console or Console(highlight=False)
        wide = console.width
        self._name, bar = (28, 8) if wide < _NARROW else (36, 16) if wide < _WIDE else (40, 24)
        self._name = min(self._name, max(8, wide - bar - 20))
        self._bars = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=bar),
            TextColumn("{task.fields[share]:>4}", markup=False, table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[times]:<9}", markup=False, table_column=Column(no_wrap=True)),
            _Fitting(console, self._name + bar + 4 + 11 + 5),
            console=console,
        )
        self._rows: dict[str, TaskID] = {}
        # More would overflow the terminal, and leave copies of themselves above.
        self._most_rows = max(1, console.height - _OTHER_LINES)
        self._all_tasks = self._bars.add_task("all tasks", total=tasks, **self._overall())

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.tick()
        self._bars.stop()

    def _overall(self) -> dict[str, Any]:
        amounts = [f"{self.ended}/{self.tasks}"]
        if (hidden := len(self._rows) - self._most_rows) > 0:
            amounts.append(f"{hidden} more at work")
        return {"share": "", "times": _spent_left(self.spent(), self.left()), "amounts": amounts}

    def show(self, event: Event, text: str) -> None:
        kind, task_id = event["event"], event.get("task", "")
        if kind == "task_started":
            name = shortened(event["name"], self._name)
            fields: dict[str, Any] = {"share": "", "times": _spent_left(0.0, None), "amounts": []}
            self._rows[task_id] = self._bars.add_task(name, total=None, **fields)
        elif kind.startswith("task_") and kind != "task_retried" and task_id in self._rows:
            self._bars.remove_task(self._rows.pop(task_id))
        for place, row in enumerate(self._rows.values()):
            self._bars.update(row, visible=place < self._most_rows)
        self._bars.update(self._all_tasks, completed=self.ended, **self._overall())
        if text and kind != "task_started":  # its bar shows that
            self._bars.console.print(Text(text, style="bold red" if kind == "task_failed" else ""))

    def progress(self, task_id: str, line: dict[str, Any]) -> None:
        if task_id in self.paces and task_id in self._rows:
            super().progress(task_id, line)
            total = line["total"] if line["total"] > 0 else None
            share = "" if (known := self.paces[task_id].share) is None else f"{known:.0%}"
            amounts = self.paces[task_id].amounts()
            self._bars.update(self._rows[task_id], completed=line["done"], total=total, share=share, amounts=amounts)
            self._clocks(task_id)

    def tick(self) -> None:
        for task_id in self._rows:
            self._clocks(task_id)
        self._bars.update(self._all_tasks, completed=self.ended, **self._overall())

    def _clocks(self, task_id: str) -> None:
        left = self.paces[task_id].left if task_id in self.paces else None
        self._bars.update(self._rows[task_id], times=_spent_left(self.spent(task_id), left))


def _spent_left(spent: float, left: float | None) -> str:
    """ "0:57<3:01", as progress bars of training scripts show it."""
    return f"{_minutes(spent)}<{'?' if left is None else _minutes(left)}"


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return clock(seconds) if minutes else f"0:{rest:02}"


def view_for(tasks: int, expected: Mapping[str, float] | None = None, *, plain: bool) -> View:
    """The view for a run of so many tasks on this process's standard output."""
    plain = plain or not sys.stdout.isatty() or os.environ.get("TERM") == "dumb"
    return View(tasks, expected) if plain else LiveView(tasks, expected)
