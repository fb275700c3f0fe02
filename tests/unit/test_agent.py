"""What an agent does when a fork server hands it a link to another driver."""

import signal
import socket
from collections.abc import Iterator

import pytest

from shoal.wire.values import Command
from shoal_executor.drivers.agent import frames
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
