"""What a sandbox does first, done by the fork server before any is forked.

Python learns of code by running it (which functions are busy, where names are found) and writes down what it learns,
in pages that every clone would have to copy for it.
"""

import socket
from typing import Final

from shoal.wire.values import Command
from shoal_executor.drivers.agent import frames
from shoal_executor.drivers.agent.agent import Agent

_TIMES: Final = 32
"""After 8 calls CPython 3.11 takes a function for a busy one, and then looks what each instruction is used for."""


def rehearse() -> None:
    """Be an agent that is asked for a program which is not there: nothing of the template runs in the fork server."""
    for number in range(_TIMES):
        driver, link = socket.socketpair()
        server, lifeline = socket.socketpair()
        with driver, link, server, lifeline:
            link.setblocking(False)
            agent = Agent(link, lifeline, {}, "", 0)
            agent.begin()
            driver.send(frames.pack(frames.Run(1, Command(("/dev/null/true",)), False, f"{number}")))
            agent.turn()
            agent.end()
