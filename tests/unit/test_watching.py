"""Who is called when a descriptor is ready, and who is not any more."""

import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from shoal_executor.drivers.agent.watching import Watching, patience_ms

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two ends."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def test_it_waits_until_something_comes(pair: Pair) -> None:
    watching = Watching()
    heard: list[bytes] = []
    watching.add(pair[0].fileno(), select.POLLIN, lambda: heard.append(pair[0].recv(10)))
    timer = threading.Timer(0.05, pair[1].send, [b"word"])
    timer.start()
    watching.turn(10_000)
    timer.join()
    assert heard == [b"word"]


def test_it_waits_no_longer_than_it_may(pair: Pair) -> None:
    watching = Watching()
    watching.add(pair[0].fileno(), select.POLLIN, lambda: pytest.fail("nothing came"))
    watching.turn(1)


def test_what_is_written_and_the_end_are_both_heard(pair: Pair) -> None:
    watching = Watching()
    heard: list[bytes] = []
    watching.add(pair[0].fileno(), select.POLLIN, lambda: heard.append(pair[0].recv(10)))
    pair[1].send(b"word")
    watching.turn(1000)
    pair[1].close()
    watching.turn(1000)
    assert heard == [b"word", b""]


def test_who_may_write_is_called_until_there_is_nothing_to_write(pair: Pair) -> None:
    watching = Watching()
    called: list[str] = []
    fd = pair[0].fileno()
    watching.add(fd, select.POLLIN, lambda: called.append("read"))
    watching.press(fd, lambda: called.append("first"))
    watching.press(fd, lambda: called.append("write"))
    watching.turn(1000)
    pair[1].send(b"x")
    watching.turn(1000)
    watching.press(fd, None)
    watching.press(fd, None)
    watching.turn(1000)
    assert called == ["write", "write", "read", "read"]


def test_one_that_ends_another_of_the_same_turn_is_the_last_called(pair: Pair) -> None:
    watching = Watching()
    called: list[int] = []

    def end_the_other(own: int, other: int) -> None:
        called.append(own)
        watching.remove(other)

    first, second = (each.fileno() for each in pair)
    watching.add(first, select.POLLOUT, lambda: end_the_other(first, second))
    watching.add(second, select.POLLOUT, lambda: end_the_other(second, first))
    watching.turn(1000)
    assert len(called) == 1
    watching.remove(called[0])
    watching.remove(called[0])
    watching.turn(0)
    assert len(called) == 1


def test_one_that_is_gone_while_it_may_write_is_not_read(pair: Pair) -> None:
    watching = Watching()
    fd = pair[0].fileno()
    watching.add(fd, select.POLLIN, lambda: pytest.fail("it was let go of"))
    watching.press(fd, lambda: watching.remove(fd))
    pair[1].send(b"x")
    watching.turn(1000)


def test_a_number_that_is_used_again_is_watched_anew() -> None:
    watching = Watching()
    heard: list[str] = []
    for word in ("first", "second"):
        read, write = os.pipe()
        watching.add(read, select.POLLIN, partial(heard.append, word))
        os.write(write, b"x")
        watching.turn(1000)
        watching.remove(read)
        os.close(read)
        os.close(write)
    assert heard == ["first", "second"]


def test_a_deadline_farther_than_poll_can_wait_is_waited_for_in_parts() -> None:
    for seconds in (10_000_000, 2**63 / 1000, 2**1000):
        patience = patience_ms([time.monotonic() + seconds])
        assert patience == 2**31 - 1
    assert patience_ms([]) is None
    assert patience_ms([0.0, time.monotonic() + 5]) == 0
