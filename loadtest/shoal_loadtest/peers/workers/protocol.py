"""How a peer is asked, in its own process: a JSON line on standard input, one on standard output.

    {"do": "start"}                                  {"settings": {...}}
    {"do": "fan_out", "n": 1000}                     {"seconds": 1.25}
    {"do": "one", "times": 100, "pause_s": 0.02}     {"ms": [...]}
    {"do": "stop"}                                   {"stopped": true}

What a peer cannot do is answered with {"error": "a sentence"}. What else is printed goes to standard error.
"""

import ctypes
import fcntl
import json
import os
import socket
import struct
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Final

Settings = dict[str, str]
_CLONE_NEWNET: Final = 0x4000_0000
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1


class Peer(ABC):
    """One way to fan units of work out. `shut_off`: nobody but its own processes can reach it."""

    shut_off = False

    def __init__(self, place: Path) -> None:
        """`place`: an empty directory of its own."""
        self.place = place

    @abstractmethod
    def start(self) -> Settings:
        """Bring it up, and say how it is configured, for people."""

    @abstractmethod
    def fan_out(self, n: int) -> int:
        """Have so many units done, and collect their results; returns how many there were."""

    @abstractmethod
    def one(self) -> None:
        """Have one unit done, and wait for its result."""

    @abstractmethod
    def stop(self) -> None:
        """Take it down."""


def cores() -> int:
    """Return how many workers are as many as this machine has cores."""
    return len(os.sched_getaffinity(0))


def answer(peer: Peer, asked: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked of a peer."""
    match asked:
        case {"do": "start"}:
            return {"settings": peer.start()}
        case {"do": "fan_out", "n": int(n)}:
            began = time.perf_counter()
            count = peer.fan_out(n)
            seconds = time.perf_counter() - began
            return {"seconds": seconds} if count == n else {"error": f"of {n} results {count} came"}
        case {"do": "one", "times": int(times), "pause_s": float(pause_s)}:
            return {"ms": [_timed(peer, pause_s) for _ in range(times)]}
        case {"do": "stop"}:
            peer.stop()
            return {"stopped": True}
    return {"error": f"{asked} is not understood"}


def _timed(peer: Peer, pause_s: float) -> float:
    time.sleep(pause_s)
    began = time.perf_counter()
    peer.one()
    return (time.perf_counter() - began) * 1000


def _words(error: BaseException) -> str:
    """Return what went wrong, and why, in a line."""
    said = f"{type(error).__name__}: {error}".strip().split("\n", 1)[0]
    return f"{said} ({_words(error.__cause__)})" if error.__cause__ is not None else said


def shut_off() -> bool:
    """Leave this machine's network for one with nothing but a loopback; returns whether that was allowed.

    Some peers listen on every interface, whatever they are told.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        return False
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
    return True


def serve(peer: Peer) -> None:
    """Answer until there is nobody any more who asks, or it is stopped."""
    peer.shut_off = shut_off()
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    stopped = False
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            told = answer(peer, asked)
        except Exception as error:  # whatever it is, it is this peer's answer
            told = {"error": _words(error)}
        out.write(json.dumps(told) + "\n")
        out.flush()
        stopped = asked.get("do") == "stop"
        if stopped:
            break
    if not stopped:  # whoever asked is gone
        peer.stop()


def main(make: type[Peer]) -> None:
    """Serve a peer in the directory that is this program's argument."""
    serve(make(Path(sys.argv[1])))
