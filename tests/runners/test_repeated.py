"""Functions that are called every so many seconds, from one thread."""

import threading
import time

import pytest

from runners.runtime.repeated import repeated
from tests.runners.corpora import wait_until


def test_a_function_is_called_again_and_again_and_not_any_more_when_the_context_ends() -> None:
    calls: list[float] = []
    with repeated(lambda: calls.append(time.monotonic()), every=0.02):
        wait_until(lambda: len(calls) >= 3)
    count = len(calls)
    time.sleep(0.1)
    assert len(calls) == count


def test_all_share_one_thread_and_one_that_comes_later_may_be_due_earlier() -> None:
    threads, late = set[int](), list[int]()
    with repeated(lambda: threads.add(threading.get_ident()), every=0.3):
        started = time.monotonic()
        with repeated(lambda: late.append(threading.get_ident()), every=0.01):
            wait_until(lambda: bool(late))
        assert time.monotonic() - started < 0.3
        wait_until(lambda: bool(threads))
    assert threads == {late[0]} != {threading.get_ident()}


def test_a_call_that_is_under_way_ends_before_the_context_does() -> None:
    entered, ended = threading.Event(), threading.Event()

    def slow() -> None:
        entered.set()
        time.sleep(0.1)
        ended.set()

    with repeated(slow, every=0.01):
        assert entered.wait(5)
    assert ended.is_set()


def test_what_one_raises_is_printed_and_the_others_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[int] = []

    def failing() -> None:
        raise ValueError("odd")

    with repeated(failing, every=0.01), repeated(lambda: calls.append(1), every=0.02):
        wait_until(lambda: len(calls) >= 2)
    assert "ValueError: odd" in capsys.readouterr().err
