"""One template's fork server, seen from the driver: launched or found again, told, heard, ended."""

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

import msgspec

from shoal.runtime.lease import start_time
from shoal_executor.drivers.agent import frames
from shoal_executor.drivers.protocol import DriverError

_UP_S: Final = 30.0
_LOCK_S: Final = 10.0
PATIENCE_S: Final = 60.0
"""How long a fork server waits for the next driver when its own is gone."""


class Entry(msgspec.Struct, frozen=True):
    """What the state directory tells the next driver of a fork server. `base`: the first of its uids outside."""

    digest: str
    base: int
    pid: int
    start: int
    protocol: int


class ForkServer:
    """The process behind `server`. `gone` is called once, when it has ended or is being ended.

    `heard` gets its words, and with a sandbox that is `here` the socket to its agent.
    """

    def __init__(
        self,
        heard: Callable[["ForkServer", frames.Event, socket.socket | None], None],
        gone: Callable[["ForkServer"], None],
    ) -> None:
        self._heard = heard
        self._gone = gone
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._control: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._pidfd: int | None = None
        self._place: Path | None = None
        self.base = -1
        self.alive = True

    async def launch(
        self, root: Path, usr: str, scratch: Path, base: int, diary: Path, place: Path, digest: str, patience_s: float
    ) -> None:
        """Start it on a template's root; returns when it forks. Raises DriverError, having left nothing behind.

        `base` is the first of its uids outside, -1 without root; what it has to complain of goes into `diary`. At
        `place` (and with `.json` behind it) the next driver finds it.
        """
        self.base, self._place = base, place
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._take(ours)
        try:
            with diary.open("wb") as words, theirs, _listener(place) as listener:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, "-I", "-m", "shoal_executor.drivers.zygote.server",
                    str(root), usr, str(scratch), str(base), str(theirs.fileno()), str(listener.fileno()),
                    str(patience_s), pass_fds=[theirs.fileno(), listener.fileno()], stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL, stderr=words, env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
                    cwd="/", start_new_session=True,
                )  # fmt: skip
            pid = self._process.pid
            entry = Entry(digest, base, pid, start_time(pid) or 0, frames.PROTOCOL)
            _entry_of(place).write_bytes(msgspec.json.encode(entry))
            async with asyncio.timeout(_UP_S):
                await self._ready
        except (TimeoutError, DriverError, OSError) as error:
            await self.end()
            raise DriverError(str(error) or _last_line(diary)) from None
        except asyncio.CancelledError:
            await self.end()
            raise

    async def adopt(self, place: Path, entry: Entry) -> None:
        """Take over the one at `place`; returns when it has told what is there. Raises DriverError, having ended it."""
        self.base, self._place = entry.base, place
        try:
            self._pidfd = os.pidfd_open(entry.pid)
            if start_time(entry.pid) != entry.start:  # another process by now
                os.close(self._pidfd)
                self._pidfd = None
                raise DriverError("it has ended")
            if entry.protocol != frames.PROTOCOL:
                raise DriverError("it is of another version")
            control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            control.settimeout(_UP_S)
            try:
                with _short(place) as path:
                    await asyncio.to_thread(control.connect, path)
            except OSError:
                control.close()
                raise
            self._take(control)
            async with asyncio.timeout(_UP_S):
                await self._ready
        except (TimeoutError, DriverError, OSError) as error:
            await self.end()
            raise DriverError(str(error) or "it does not answer") from None
        except asyncio.CancelledError:
            await self.end()
            raise

    def _take(self, control: socket.socket) -> None:
        control.setblocking(False)
        control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._control = control
        asyncio.get_running_loop().add_reader(control, self._hear)

    def fork(self, order: frames.Order, descriptors: list[int]) -> None:
        """Tell it to fork a sandbox. Raises OSError when it is gone, or has too much to do."""
        if self._control is None:
            raise BrokenPipeError("the fork server is gone")
        socket.send_fds(self._control, [frames.encode(order)], descriptors)

    def kill(self, name: str) -> None:
        """Tell it to kill a sandbox's first process; may be lost when it has too much to do."""
        if self.alive and self._control is not None:
            with contextlib.suppress(OSError):
                self._control.send(frames.encode(frames.Order(name, kill=True)))

    async def end(self) -> None:
        """Kill it, which takes all its sandboxes along, and wait until it is gone. May come twice."""
        if self._process is not None:
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
            await self._process.wait()
        elif self._pidfd is not None:
            pidfd, self._pidfd = self._pidfd, None
            await _kill(pidfd)
        self._ended()
        if self._place is not None:
            for path in (self._place, _entry_of(self._place)):
                path.unlink(missing_ok=True)

    def _hear(self) -> None:
        assert self._control is not None
        try:
            data, fds, _, _ = socket.recv_fds(self._control, 65_536, 1)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self._ended()
            return
        event = frames.events.decode(data)
        if event.kind == "ready":
            if self._ready.done():
                return
            if event.status == frames.PROTOCOL:
                self._ready.set_result(None)
            else:  # its program was replaced under a driver that still runs
                self._ready.set_exception(DriverError("it is of another version"))
        elif event.kind == "broken":
            self._ready.set_exception(DriverError(event.detail))
        else:
            self._heard(self, event, socket.socket(fileno=fds[0]) if fds else None)

    def _ended(self) -> None:
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()
            self._control = None
        if not self.alive:
            return
        self.alive = False
        if not self._ready.done():
            self._ready.set_exception(DriverError(""))
            self._ready.exception()  # whoever launched it may have given up before
        self._gone(self)


def entries(directory: Path) -> list[tuple[Path, Entry]]:
    """Return the fork servers an earlier driver noted there."""
    found: list[tuple[Path, Entry]] = []
    for path in sorted(directory.glob("*.json")):
        with contextlib.suppress(OSError, ValueError):
            found.append((path.with_suffix(""), msgspec.json.decode(path.read_bytes(), type=Entry)))
    return found


def sweep(directory: Path) -> None:
    """Remove what an earlier driver, killed while it launched one, noted by halves: no sandbox is behind it."""
    whole = {path for place, _ in entries(directory) for path in (place, _entry_of(place))}
    for path in directory.iterdir():
        if path not in whole:
            path.unlink(missing_ok=True)


def hold(path: Path) -> IO[bytes]:
    """Take the lock of a state directory; it is held until the file is closed. Raises DriverError after ten seconds."""
    lock = path.open("ab")
    until = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() >= until:
                lock.close()
                raise DriverError(
                    f"another executor uses {path.parent}; stop it, or choose another directory"
                ) from None
            time.sleep(0.05)


def _entry_of(place: Path) -> Path:
    return place.with_name(place.name + ".json")


@contextlib.contextmanager
def _short(place: Path) -> Iterator[str]:
    """Yield a short path to the same place: a socket's may have 107 bytes."""
    directory = os.open(place.parent, os.O_PATH)
    try:
        yield f"/proc/self/fd/{directory}/{place.name}"
    finally:
        os.close(directory)


def _listener(place: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _short(place) as path:
            listener.bind(path)
        place.chmod(0o600)
        listener.listen(1)
    except BaseException:
        listener.close()
        raise
    return listener


async def _kill(pidfd: int) -> None:
    """Kill a process that is no child of ours and wait until it has ended."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    loop.add_reader(pidfd, lambda: None if ended.done() else ended.set_result(None))
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        await ended
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


def _last_line(diary: Path) -> str:
    lines = diary.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it did not answer"
