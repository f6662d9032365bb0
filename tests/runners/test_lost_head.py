"""A head that is gone is told of, and ends the run before Ray would. The whole story is in test_failures.py."""

import socket
import time
from collections.abc import Iterator

import pytest

from runners.cluster.head_watch import HeadLostError, RayHead
from tests.messages import wording
from tests.runners.corpora import wait_until

EVERY = 0.05  # seconds


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def address(server: socket.socket) -> str:
    host, port = server.getsockname()
    return f"{host}:{port}"


def test_a_head_that_answers_is_nothing_to_tell_of(listening):
    head = RayHead(address(listening), seconds=0, every=EVERY)
    with head.watched():
        time.sleep(5 * EVERY)
        assert list(head.notes()) == []


def test_one_that_is_gone_for_a_moment_is_told_of_once_and_so_is_its_return(listening):
    place = listening.getsockname()
    head = RayHead(address(listening), seconds=600, every=EVERY)
    listening.close()
    with head.watched():
        wait_until(lambda: not head.answers)
        assert list(head.notes()) == [wording("lost_head.head_cluster_does_not", place=place[0], place2=place[1])]
        assert list(head.notes()) == []
        with socket.create_server(place):
            wait_until(lambda: head.answers)
            assert list(head.notes()) == [
                wording("lost_head.head_cluster_answers_again", place=place[0], place2=place[1])
            ]


def test_one_that_is_gone_for_too_long_ends_the_run():
    head = RayHead("127.0.0.1:1", seconds=2 * EVERY, every=EVERY)
    with head.watched():
        time.sleep(6 * EVERY)
        with pytest.raises(HeadLostError, match=wording("lost_head.not_answered_seconds_lost")):
            list(head.notes())


def test_who_hangs_in_a_call_to_it_is_ended_with_the_same_words(monkeypatch, capsys):
    monkeypatch.setattr("runners.cluster.head_watch._LAST_SECONDS", EVERY)
    ended: list[int] = []
    head = RayHead("127.0.0.1:1", seconds=EVERY, every=EVERY)
    with head.watched(ended.append):
        wait_until(lambda: bool(ended))
    assert ended[0] == 1
    assert wording("lost_head.same_command_goes_last") in capsys.readouterr().err


def test_a_cluster_that_may_be_longer_without_a_head_is_given_that_time(monkeypatch):
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "300")
    assert RayHead("127.0.0.1:1")._seconds == 285
