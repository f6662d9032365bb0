"""What a person sees of a run, and how a run is asked to stop."""

import io
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from boomspec.core.graph import Source, TaskGraph
from runners.executor.view import LiveView, Pace, View, clock, quantity, shortened, view_for
from runners.runtime import environment
from runners.runtime.interrupt import Interrupt
from tests.messages import wording


def line(time: float, done: float, total: float = 500, **values: Any) -> dict[str, Any]:
    return {"time": time, "done": done, "total": total, "unit": "steps", **values}


def tell(view: View) -> None:
    """A run of two tasks: one fails, one is lost, replaced and finished."""

    def event(event: str, name: str, **fields: Any) -> None:
        view.event({"event": event, "task": f"id of {name}", "name": name, **fields})

    event("task_started", "tokenize [data]")
    event("task_started", "distill")
    view.progress("id of distill", line(100.0, 50, loss=3.41234))
    view.progress("id of distill", line(110.0, 100, loss=3.40001))
    view.tick()
    event("note", "distill", message="continues after step 50")
    event("task_failed", "tokenize [data]", error="rows.jsonl:1: has no field 'text'\n  hint: set it")
    event("task_retried", "distill", attempt=2, host="node7")
    event("task_finished", "distill", seconds=83.2)


def test_plain_lines_tell_every_transition_and_how_many_tasks_have_ended(capsys: pytest.CaptureFixture[str]) -> None:
    with View(2) as view:
        tell(view)
    lines = [row[9:].strip() for row in capsys.readouterr().out.splitlines()]  # behind the clock
    assert lines == [
        "[0/2] start    tokenize [data]",
        "[0/2] start    distill",
        wording("view.note_distill_continues_after"),
        wording("view.failed_tokenize_data_rows", name="text"),
        wording("view.retry_distill_worker_lost"),
        "[2/2] done     distill (1:23)",
    ]


def test_a_long_task_is_heard_of_in_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runners.executor.view._LINE_EVERY_SECONDS", 0.0)
    with View(2) as view:
        tell(view)
    assert "distill: 20% after 0 s, 1:20 left  100/500 steps  5 steps/s  loss 3.4" in capsys.readouterr().out


def test_the_live_view_shows_a_bar_for_each_task_and_lets_what_has_ended_scroll_away() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=160, color_system=None)
    with LiveView(2, console=console) as view:
        tell(view)
    text = screen.getvalue()
    assert wording("view.failed_tokenize_data_rows_jsonl", name="text") in text
    assert "done     distill (1:23)" in text
    overall = [row for row in text.splitlines() if "all tasks" in row]
    assert "0/2" in overall[0]
    assert "2/2" in overall[-1]


def test_the_live_view_shows_rate_values_and_time_left() -> None:
    screen = io.StringIO()
    view = LiveView(1, console=Console(file=screen, force_terminal=True, width=160, color_system=None))
    with view:
        view.event({"event": "task_started", "task": "id", "name": "distill"})
        view.progress("id", line(100.0, 50, kl=0.12))
        view.progress("id", line(110.0, 100, kl=0.11))
    row = next(row for row in reversed(screen.getvalue().splitlines()) if "distill" in row)
    assert row.split()[-8:] == ["20%", "0:00<1:20", "100/500", "steps", "5", "steps/s", "kl", "0.11"]


@pytest.mark.parametrize("width", [80, 60])
def test_on_a_narrow_terminal_bar_and_time_left_stay_and_amounts_are_left_out_whole(width: int) -> None:
    screen = io.StringIO()
    view = LiveView(1, console=Console(file=screen, force_terminal=True, width=width, color_system=None))
    with view:
        view.event(
            {"event": "task_started", "task": "id", "name": "evaluate interpolated 12 layers, 3 patched: held_out"}
        )
        view.progress("id", line(100.0, 50, cross_entropy=3.21, kl=0.12, hidden_cosine=0.4))
        view.progress("id", line(110.0, 100, cross_entropy=3.21, kl=0.11, hidden_cosine=0.4))
    rows = [row.rstrip() for row in screen.getvalue().splitlines() if "held_out" in row]
    assert all(len(row) <= width for row in rows)
    assert "3 patched: held_out" in rows[-1]
    assert "━" in rows[-1]
    amounts = rows[-1].partition("0:00<1:20")[2].split()
    assert amounts == {80: ["100/500", "steps", "5", "steps/s"], 60: []}[width]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("evaluate teacher: held_out", "evaluate teacher: held_out"),
        ("evaluate naive_pruning 4 layers: held_out", "…_pruning 4 layers: held_out"),
        ("evaluate interpolated 5 layers: stdlib_continuation", "…ted 5 layers: stdlib_conti…"),
        ("interpolate 5 layers of a long experiment", "interpolate 5…ong experiment"),
    ],
)
def test_a_name_that_is_too_long_keeps_what_tells_tasks_apart(name: str, shown: str) -> None:
    assert shortened(name, 28) == shown


def test_no_more_rows_than_the_terminal_has_lines() -> None:
    screen = io.StringIO()
    view = LiveView(9, console=Console(file=screen, force_terminal=True, width=100, height=8, color_system=None))
    with view:
        for number in range(9):
            view.event({"event": "task_started", "task": str(number), "name": f"evaluate {number}"})
        rows = [task for task in view._bars.tasks if task.visible]
    assert len(rows) == 1 + 4
    assert "5 more at work" in screen.getvalue()


def test_what_was_interrupted_has_not_ended() -> None:
    view = View(3)
    for task in "ab":
        view.event({"event": "task_started", "task": task, "name": task})
    view.event({"event": "task_finished", "task": "a", "name": "a", "seconds": 1.0})
    for task in "bc":
        view.event({"event": "task_interrupted", "task": task, "name": task})
    assert view.ended == 1


def test_tasks_without_a_forecast_say_nothing_about_the_time_left_until_half_of_them_have_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr("runners.executor.view.time.monotonic", lambda: now)
    view = View(4, {"a": 30.0})
    now = 1060.0
    view.event({"event": "task_finished", "task": "a", "name": "a", "seconds": 60.0})
    assert view.left() is None  # it was a training, say, and the others are done in seconds
    view.event({"event": "task_finished", "task": "b", "name": "b", "seconds": 0.1})
    assert view.left() == pytest.approx(60)


def test_the_time_left_of_all_tasks_follows_from_the_forecast_share_that_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr("runners.executor.view.time.monotonic", lambda: now)
    view = View(4, {"a": 30.0, "b": 60.0, "c": 10.0, "d": 500.0})
    assert view.left() is None
    for task in "abd":
        view.event({"event": "task_started", "task": task, "name": task})
    now = 1060.0  # twice as slow as forecast
    view.event({"event": "task_finished", "task": "a", "name": "a", "seconds": 60.0})
    view.event({"event": "task_reused", "task": "d", "name": "d"})  # it takes no time
    assert view.left() == pytest.approx(60 / 30 * 70)
    view.progress("b", line(60.0, 250))
    assert view.left() == pytest.approx(60 / 60 * 40)


def test_without_a_terminal_the_view_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    assert capsys.readouterr().out == ""
    assert not isinstance(view_for(1, plain=False), LiveView)


def test_the_pace_starts_anew_with_another_attempt_and_trusts_a_task_that_measures_itself() -> None:
    pace = Pace()
    pace.update(line(0.0, 400))
    pace.update(line(10.0, 450))
    assert pace.rate == 5
    pace.update(line(20.0, 100))  # from a checkpoint
    assert pace.rate is None
    pace.update(line(30.0, 200, rate=8.0))
    assert pace.rate == 8
    assert pace.amounts() == ["200/500 steps", "8 steps/s"]
    assert pace.share == 0.4
    assert pace.left == 37.5


def test_a_task_of_unknown_length_shows_no_share_and_no_time_left() -> None:
    pace = Pace()
    pace.update(line(0.0, 10_000, total=0))
    pace.update(line(10.0, 30_000, total=0, phase="reading"))
    assert pace.amounts() == ["30k steps", "2000 steps/s", "phase reading"]
    assert pace.share is None
    assert pace.left is None


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (3.41234, "3.412"), (9534, "9534"), (12_345, "12.3k"), (2.1e6, "2.1M"), (5e9, "5B")]
)
def test_quantities_are_short(number: float, text: str) -> None:
    assert quantity(number) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (181, "3:01"), (7384, "2:03:04")])
def test_times_are_short(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_the_second_raises_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Interrupt() as interrupt:
        assert not interrupt.requested
        os.kill(os.getpid(), number)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def reads_hub(*sources: Source) -> bool:
    return TaskGraph("graph", {}, {source.id: source for source in sources}, ()).reads_hub


def test_a_graph_without_hub_sources_runs_offline_with_its_caches_in_the_store(tmp_path: Path) -> None:
    text = Source("text", {"files": [], "format": "text"}, {"files": []})
    model = Source("model", {"hub": "Qwen/Qwen3-4B-Base", "revision": "0" * 40}, {"hub": "Qwen/Qwen3-4B-Base"})
    stock = Source("lm_eval_tasks", {"lm_eval": "0.4.13"}, {})
    offline = environment.variables(tmp_path, hub=reads_hub(text))
    assert offline["HF_HUB_OFFLINE"] == "1"
    assert offline["HF_HOME"] == str(tmp_path / "cache" / "huggingface")
    for source in (model, stock):
        variables = environment.variables(tmp_path, hub=reads_hub(text, source))
        assert "HF_HUB_OFFLINE" not in variables
        assert "HF_HOME" not in variables  # the person's own cache may hold the model


def test_variables_that_are_set_already_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    environment.apply({"HF_HUB_OFFLINE": "1"})
    assert os.environ["HF_HUB_OFFLINE"] == "0"
