"""What an agent does when a fork server hands it a link to another driver, or when its driver changes its mind."""

import os
import signal
import socket
from collections.abc import Iterator

import pytest

from shoal.wire.values import Command
from shoal_executor.drivers.agent import frames, stillness
from shoal_executor.drivers.agent.agent import Agent


@pytest.fixture
def wakeup() -> Iterator[None]:
    """This process's own wake-up descriptor comes back."""
    before = signal.set_wakeup_fd(-1)
    yield
    signal.set_wakeup_fd(before)


@pytest.mark.usefixtures("wakeup")
def test_a_command_that_waited_does_not_inherit_the_new_link() -> None:
    driver, link = socket.socketpair()
    server, lifeline = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    again, given = socket.socketpair()
    with driver, link, server, lifeline, again:
        link.setblocking(False)
        agent = Agent(link, lifeline, {"HOME": "/"}, "", 0)
        agent.begin()
        agent._stopped = []  # as in a freeze: what is asked for waits
        driver.send(frames.pack(frames.Run(1, Command(("sh", "-c", "echo /proc/self/fd/*")), False, "key")))
        agent.turn()
        socket.send_fds(server, [b"link"], [given.fileno()])
        given.close()
        agent._from_server(lifeline)
        (running,) = agent._by_pid.values()
        while running.outputs:
            agent.turn()
        agent.end()
        own = agent._link
        assert own is not None
        assert f"/proc/self/fd/{own.fileno()}".encode() not in running.result(0).stdout.split()
        unpacker = frames.Unpacker()
        assert isinstance(frames.tells.decode(unpacker.feed(again.recv(100))[0]), frames.Up)
        own.close()


@pytest.mark.usefixtures("wakeup")
def test_a_freeze_that_is_taken_back_before_it_is_heard_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    gone_on: list[list[int]] = []
    monkeypatch.setattr(stillness, "stop", lambda: [7])
    monkeypatch.setattr(stillness, "go_on", gone_on.append)
    monkeypatch.setattr(os, "sync", lambda: None)
    driver, link = socket.socketpair()
    with driver, link:
        link.setblocking(False)
        agent = Agent(link, None, {"HOME": "/"}, "", 0)
        agent.begin()
        asked = (frames.Freeze(1), frames.Cancel(1), frames.Thaw(0), frames.Rest(2, "key", 1, 0, 1), frames.Freeze(3))
        driver.send(b"".join(map(frames.pack, asked)))
        agent.turn()
        agent.end()
        told = [frames.tells.decode(body) for body in frames.Unpacker().feed(driver.recv(65_536))]
        assert [(type(each), each.id) for each in told] == [
            (frames.Frozen, 1),
            (frames.Settled, 2),
            (frames.Frozen, 3),
        ]
        assert gone_on == [[7]]
