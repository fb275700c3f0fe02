"""One template's fork server, seen from the driver: launched or found again, told, heard, ended."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from shoal.runtime.lease import start_time
from shoal.wire.messages import Blob
from shoal_executor.drivers.agent import frames
from shoal_executor.drivers.cgroups import Group
from shoal_executor.drivers.disks import Mounted
from shoal_executor.drivers.ground import Ground
from shoal_executor.drivers.protocol import BadInputError, DriverError

_UP_S: Final = 30.0
_WARM_S: Final = 300.0
"""How long a template's code may take."""
PATIENCE_S: Final = 60.0
"""How long a fork server waits for the next driver when its own is gone."""


class Entry(msgspec.Struct, frozen=True):
    """What the state directory tells the next driver of a fork server.

    `digest`: of all that its template is made of (`roots.key_of`); `base`: the first of its uids outside.
    """

    digest: str
    base: int
    pid: int
    start: int
    protocol: int
    group: str = ""  # of its warm interpreter
    ground: Ground | None = None  # what its sandboxes are started upon


class ForkServer:
    """The process behind `server`, and the one that waits for it.

    `gone` is called once, when it has ended or is being ended. `heard` gets its words, and with a sandbox that is
    `here` the socket to its agent.
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
        self._inner: int | None = None
        self._place: Path | None = None
        self.group: Group | None = None
        self.ground: Ground | None = None
        self._where: dict[str, asyncio.Future[int]] = {}
        self.base = -1
        self.pid = 0
        self.alive = True

    async def launch(
        self, template: frames.Template, diary: Path, place: Path, digest: str, group: Group | None = None
    ) -> None:
        """Start it on a template; returns when it forks. Raises DriverError, having left nothing behind.

        The template's sockets are made here. What it has to complain of goes into `diary`. At `place` (and with `.json`
        behind it) the next driver finds it. `group`: its warm interpreter's.
        """
        self.base, self._place, self.group = template.base, place, group
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._take(ours)
        try:
            with diary.open("wb") as words, theirs, _listener(place) as listener:
                sockets = (theirs.fileno(), listener.fileno())
                template = msgspec.structs.replace(template, control=sockets[0], listener=sockets[1])
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, "-I", "-m", "shoal_executor.drivers.zygote.server",
                    pass_fds=[*sockets, *template.disks, *template.cgroups], stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.DEVNULL, stderr=words, env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
                    cwd="/", start_new_session=True,
                )  # fmt: skip
            assert self._process.stdin is not None
            self._process.stdin.write(frames.encode(template))
            self._process.stdin.close()
            pid = self.pid = self._process.pid
            name = group.directories[0].name if group is not None and group.directories else ""
            entry = Entry(digest, self.base, pid, start_time(pid) or 0, frames.PROTOCOL, name, self.ground)
            _entry_of(place).write_bytes(msgspec.json.encode(entry))
            async with asyncio.timeout(_WARM_S if template.warm else _UP_S):
                await self._ready
        except (TimeoutError, DriverError, OSError) as error:
            await self.end()
            if isinstance(error, BadInputError):
                raise
            if isinstance(error, TimeoutError) and template.warm:
                raise BadInputError(f"warm: its code has not come to its end within {_WARM_S:g} s") from None
            raise DriverError(str(error) or _last_line(diary)) from None
        except asyncio.CancelledError:
            await self.end()
            raise

    async def adopt(self, place: Path, entry: Entry) -> None:
        """Take over the one at `place`; returns when it has told what is there. Raises DriverError, having ended it."""
        self.base, self._place, self.pid, self.ground = entry.base, place, entry.pid, entry.ground
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
        """Tell it to fork a sandbox. Raises OSError when it is gone, or has too much to do; DriverError."""
        if self._control is None:
            raise BrokenPipeError("the fork server is gone")
        told = frames.encode(order)
        if len(told) > frames.LARGEST_ORDER:
            most = frames.LARGEST_ORDER // 1024
            raise DriverError(f"env: its variables take more than {most} KiB with the template's; make them fewer")
        socket.send_fds(self._control, [told], descriptors)

    def silent(self, seconds: float) -> str:
        """Return what to say where it did nothing of what it was told."""
        return f"the fork server, process {self.pid}, did not answer within {seconds:g} s; is it stopped?"

    async def where(self, name: str) -> int:
        """Return a sandbox's first process as the host sees it. Raises DriverError when it has ended."""
        asked = self._where.get(name)
        if asked is None and self._control is not None:
            asked = self._where[name] = asyncio.get_running_loop().create_future()
            with contextlib.suppress(OSError):
                self._control.send(frames.encode(frames.Order(name, where=True)))
        try:
            async with asyncio.timeout(_UP_S):
                pid = await asyncio.shield(asked) if asked is not None else 0
        except TimeoutError:
            raise DriverError(self.silent(_UP_S)) from None
        finally:
            self._where.pop(name, None)
        if not pid:
            raise DriverError("the sandbox has ended")
        return pid

    async def borrow(self, mounted: Mounted, blobs: Sequence[Blob]) -> list[int]:
        """Return descriptors of disks whose owners are shifted to its sandboxes' root. Raises DriverError, OSError."""
        if not blobs:
            return []
        namespace = os.open(f"/proc/{self.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return await mounted.lend_all(blobs, namespace)
        finally:
            os.close(namespace)

    def kill(self, name: str) -> None:
        """Tell it to kill a sandbox's first process; may be lost when it has too much to do."""
        if self.alive and self._control is not None:
            with contextlib.suppress(OSError):
                self._control.send(frames.encode(frames.Order(name, kill=True)))

    async def end(self) -> None:
        """Kill it, which takes all its sandboxes along, and wait until all are gone. May come twice."""
        inner, self._inner = self._inner, None
        if inner is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(inner, signal.SIGKILL)
            os.close(inner)
        if self._process is not None:
            if self._process.returncode is None and inner is None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
            await self._process.wait()
        elif self._pidfd is not None:
            pidfd, self._pidfd = self._pidfd, None
            await _ended(pidfd, kill=inner is None)
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
                os.close(fds[0])
                return
            self._inner = fds[0]
            if event.status == frames.PROTOCOL:
                self._ready.set_result(None)
            else:  # its program was replaced under a driver that still runs
                self._ready.set_exception(DriverError("it is of another version"))
        elif event.kind == "where":
            asked = self._where.get(event.name)
            pid = _pid_of(fds[0]) if fds else 0
            for fd in fds:
                os.close(fd)
            if asked is not None and not asked.done():
                asked.set_result(pid)
        elif event.kind == "unwarmed":
            self._ready.set_exception(BadInputError(f"warm: {event.detail}"))
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
        for asked in self._where.values():
            if not asked.done():
                asked.set_result(0)
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


def _pid_of(process: int) -> int:
    """Return the number under which this process sees another, 0 when that has ended."""
    for line in Path(f"/proc/self/fdinfo/{process}").read_text().splitlines():
        if line.startswith("Pid:"):
            return max(int(line.split()[1]), 0)
    return 0


async def _ended(pidfd: int, *, kill: bool) -> None:
    """Wait until a process that is no child of ours has ended; kill it first where that is asked for."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    loop.add_reader(pidfd, lambda: None if ended.done() else ended.set_result(None))
    try:
        if kill:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        await ended
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


def _last_line(diary: Path) -> str:
    lines = diary.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it did not answer"
