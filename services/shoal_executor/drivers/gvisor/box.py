"""One sandbox on its host: a directory, an overlay mounted in it, limits, and one container after the other."""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from shoal_executor.drivers import kernel
from shoal_executor.drivers.cgroups import Groups
from shoal_executor.drivers.ground import Ground
from shoal_executor.drivers.gvisor import closure, sparing
from shoal_executor.drivers.gvisor.channel import Channel
from shoal_executor.drivers.gvisor.runsc import Runsc, fault, last_word
from shoal_executor.drivers.inhabited import UP_S, Inhabited
from shoal_executor.drivers.pipes import PipeEnd
from shoal_executor.drivers.protocol import DriverError
from shoal_executor.drivers.threads import to_its_end

_CAPABILITIES: Final = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_MKNOD", "CAP_AUDIT_WRITE", "CAP_SETFCAP",
)  # fmt: skip
"""Of root in a sandbox: containers' usual ones. They are over the sandbox's own kernel, never over the host's."""
_LIMITER: Final = "CAP_SYS_RESOURCE"
"""The agent's alone: it sets the limit of processes anew in a copy that may have more. What it starts is without."""
_ENTER: Final = 'while [ "$1" != -- ]; do echo 0 > "$1" || exit 1; shift; done; shift; exec "$@"'
_WORDS: Final = 16_384
_PANIC: Final = 65_536
"""What is looked at of a panic: it begins with what it is about."""
_POINTS: Final = {"proc": 0o755, "dev": 0o755, "sys": 0o755, "root": 0o700, "tmp": 0o1777}
_FULL: Final = ".X11-unix"
"""runsc mounts a /tmp of its own over an empty one, which would be no part of the disk."""


@dataclass(frozen=True, slots=True)
class Root:
    """What a sandbox starts on: a directory of this host, or none; mounted disks; and the host's /usr, or not."""

    base: Path | None
    usr: str
    ground: Ground | None = None


@dataclass(slots=True, kw_only=True)
class Box(Inhabited):
    """See the module. `shm`: bytes of its /dev/shm, which a checkpoint has, too.

    `alone`: for who takes its container from it. `held`: the checkpoint it can go on from, while it has no container.
    """

    place: Path
    runsc: Runsc
    over: Callable[["Box"], None]
    shm: int
    cpu_milli: int
    held: Path | None = None
    alone: asyncio.Lock = field(default_factory=asyncio.Lock)
    stem: str = field(default_factory=lambda: secrets.token_hex(8))
    _count: int = 0
    _pidfd: int | None = None
    _words: bytearray = field(default_factory=bytearray)
    channel: Channel = field(init=False)

    def __post_init__(self) -> None:
        self.channel = Channel(self.link, lambda: self.over(self))

    @property
    def upper(self) -> Path:
        """Where what it writes is."""
        return self.place / "d" / "u"

    @property
    def _panics(self) -> Path:
        return self.place / "panics"

    @property
    def _id(self) -> str:
        return f"{self.stem}-{self._count}"

    # --- its disk

    async def mount(self, root: Root, points: Path, layers: Sequence[int], disk: int) -> None:
        """Mount its disk: `layers`, mounted filesystems, the lowest first, on the root. Raises OSError, DriverError."""
        await to_its_end(self._mount, root, points, layers, disk)

    def _mount(self, root: Root, points: Path, layers: Sequence[int], disk: int) -> None:
        self.place.mkdir(parents=True, mode=0o700)
        for name in ("d", "m"):
            (self.place / name).mkdir(mode=0o755)
        size = f"size={disk},nr_inodes={max(disk // 4096, 1024)},mode=755"
        kernel.mount("tmpfs", str(self.place / "d"), "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, size)
        for name in ("u", "w"):
            (self.place / "d" / name).mkdir(mode=0o755)
        attached: list[Path] = []
        opened: list[int] = []
        try:
            for number, layer in enumerate(layers):
                at = self.place / "d" / f"l{number}"
                at.mkdir()
                kernel.attach_mount(layer, str(at))
                attached.append(at)
            lowers = [points, *([root.base] if root.base is not None else []), *attached]
            # By descriptor: a path may have a colon in it, and all of them must fit into a page.
            for path in (*reversed(lowers), self.place / "d" / "u", self.place / "d" / "w"):
                fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                opened.append(fd)
            *low, upper, work = (f"/proc/self/fd/{fd}" for fd in opened)
            options = f"lowerdir={':'.join(low)},upperdir={upper},workdir={work},userxattr"
            flags = kernel.MS_NOSUID | kernel.MS_NODEV
            kernel.mount("overlay", str(self.place / "m"), "overlay", flags, options)
        finally:
            for fd in opened:
                os.close(fd)
            for at in attached:  # the overlay has them for itself
                kernel.unmount(str(at))
        self._look_through(usr=bool(root.usr))

    def _look_through(self, *, usr: bool) -> None:
        """See that what is mounted upon is no way out of the image. Raises DriverError."""
        root = os.open(self.place / "m", os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name in (*_POINTS, closure.PLACE.strip("/"), *(("usr",) if usr else ())):
                if not stat.S_ISDIR(os.stat(name, dir_fd=root, follow_symlinks=False).st_mode):
                    raise DriverError(f"the template's /{name} is no directory; it must be one, or not there")
            with contextlib.suppress(OSError):  # a link, or no directory: runsc knows what to do
                tmp = os.open("tmp", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root)
                try:
                    if not os.listdir(tmp):
                        os.mkdir(_FULL, 0o1777, dir_fd=tmp)
                finally:
                    os.close(tmp)
        finally:
            os.close(root)

    def show(self, memory: int) -> Path:
        """Mount what was kept of a memory, and return where; until `hide`. Raises OSError."""
        (self.place / "i").mkdir(mode=0o700)
        kernel.attach_mount(memory, str(self.place / "i"))
        return self.place / "i"

    def hide(self) -> None:
        """Undo `show`, if it was done."""
        if (self.place / "i").is_mount():
            kernel.unmount(str(self.place / "i"))

    # --- its container

    def configure(self, python: Path, usr: str) -> None:
        """Write what runsc wants to know of it. All who restore a checkpoint must say the same, so it says no more."""
        read_only = ["ro", "rbind", "nosuid", "nodev"]
        mounts = [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": closure.PLACE, "type": "bind", "source": str(python), "options": read_only},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": [f"size={self.shm}"]},  # noqa: S108
        ]
        if usr:
            mounts.append({"destination": "/usr", "type": "bind", "source": usr, "options": read_only})
        own = (*_CAPABILITIES, _LIMITER)
        capabilities = {"bounding": _CAPABILITIES, "effective": own, "permitted": own}
        process = {
            "terminal": False, "user": {"uid": 0, "gid": 0}, "args": closure.COMMAND, "cwd": "/",
            "env": ["LANG=C.UTF-8"],
            "capabilities": capabilities, "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 65_536, "soft": 65_536}],
        }  # fmt: skip
        told = {
            "ociVersion": "1.0.0", "process": process, "root": {"path": str(self.place / "m"), "readonly": False},
            "hostname": "sandbox", "mounts": mounts,
            "linux": {
                "namespaces": [{"type": kind} for kind in ("pid", "network", "mount", "ipc", "uts")],
                "seccomp": sparing.FILTER,
            },
        }  # fmt: skip
        (self.place / "config.json").write_text(json.dumps(told))

    @contextlib.contextmanager
    def unhurried(self) -> Iterator[None]:
        """Limit its processor time to what was asked for only after this: runsc's own work is not the tenant's."""
        Groups.limit_cpu(self.group, 0)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # it is gone with its group
                Groups.limit_cpu(self.group, self.cpu_milli)

    async def launch(self, checkpoint: Path | None = None) -> None:
        """Start its container, from a checkpoint where one is given; returns when runsc is done with that.

        Raises DriverError with what runsc had to say.
        """
        self._count += 1
        self._words.clear()
        pid_file = self.place / "pid"
        pid_file.unlink(missing_ok=True)
        words = ["restore", f"--image-path={checkpoint}"] if checkpoint is not None else ["run"]
        told = ("--detach", f"--bundle={self.place}", f"--pid-file={pid_file}", self._id)
        line = self.runsc.line(*words, *told, panics=self._panics)
        # Sockets carry the link: pipes can be opened anew by their names in /proc, to speak in the agent's place.
        fds = [*_sockets(), *_sockets(), *os.pipe()]
        (theirs_in, ours_in), (ours_out, theirs_out), (ours_err, theirs_err) = zip(fds[::2], fds[1::2], strict=True)
        try:
            process = await asyncio.create_subprocess_exec(
                "/bin/sh", "-c", _ENTER, "sh", *map(str, Groups.doors(self.group)), "--", *line,
                stdin=theirs_in, stdout=theirs_out, stderr=theirs_err, cwd="/",
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, start_new_session=True,
            )  # fmt: skip
        except BaseException:
            for fd in (ours_in, ours_out, ours_err):
                os.close(fd)
            raise
        finally:
            for fd in (theirs_in, theirs_out, theirs_err):
                os.close(fd)
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_read_pipe(lambda: _Listener(self._words), PipeEnd(ours_err))
            await self.channel.attach(ours_out, ours_in)
            async with asyncio.timeout(UP_S):
                code = await process.wait()
        except TimeoutError:
            raise DriverError(f"runsc did not start it within {UP_S:g} s") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if code:
            raise DriverError(f"runsc {words[0]} failed: {self.said}")
        with contextlib.suppress(OSError, ValueError):  # it has ended already: its pipe says so
            self._pidfd = os.pidfd_open(int(pid_file.read_text()))

    @property
    def fault(self) -> str:
        """See `Inhabited`. No process of the sandbox can write there."""
        try:
            with self._panics.open("rb") as panics:
                return fault(panics.read(_PANIC).decode(errors="replace"))
        except OSError:
            return ""

    @property
    def said(self) -> str:
        """The line of what runsc and the agent complained of that says most."""
        return self.fault or last_word(self._words.decode(errors="replace"))

    async def checkpoint(self, image: Path) -> None:
        """Write all its memory into an empty directory; its container has ended then. Raises DriverError."""
        self.channel.expect_end()
        try:
            await self.runsc.call("checkpoint", f"--image-path={image}", self._id)
        except BaseException:
            self.channel.expect_end(expected=False)
            raise
        await self.channel.detach()
        await self._finished()

    def lives(self) -> bool:
        """Return whether its container's kernel has not ended."""
        if self._pidfd is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, 0)
            return True
        return False

    async def _finished(self) -> None:
        """Wait for the end of a container's kernel, and remove what runsc noted of it."""
        pidfd, self._pidfd = self._pidfd, None
        if pidfd is not None:
            loop, done = asyncio.get_running_loop(), asyncio.Event()
            loop.add_reader(pidfd, done.set)
            try:
                async with asyncio.timeout(UP_S):
                    await done.wait()
            except BaseException:
                self._pidfd = pidfd  # for whoever waits for it next
                raise
            finally:
                loop.remove_reader(pidfd)
            os.close(pidfd)
        for path in self.runsc.root.glob(f"*{self._id}*"):
            path.unlink(missing_ok=True)

    # --- its end

    async def killed(self) -> None:
        """Kill all that is in its group, and wait for it."""
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        Groups.kill(self.group)
        await self._finished()
        self.channel.abort()
        self.ended.set()

    def removed(self) -> None:
        """Unmount and remove what it had on this host. Raises OSError."""
        for name in ("i", "m", "d"):
            if (self.place / name).is_mount():
                kernel.unmount(str(self.place / name))
        shutil.rmtree(self.place, ignore_errors=True)


def _sockets() -> tuple[int, int]:
    one, other = socket.socketpair()
    return one.detach(), other.detach()


def make_points(directory: Path, *, usr: bool) -> Path:
    """Return a directory of those that must be there to mount on, for the bottom of every sandbox's stack."""
    place = directory / ("points-usr" if usr else "points")
    if not place.is_dir():
        for name, mode in {**_POINTS, closure.PLACE.strip("/"): 0o755, **({"usr": 0o755} if usr else {})}.items():
            (place / name).mkdir(parents=True, exist_ok=True)
            (place / name).chmod(mode)
        (place / "tmp" / _FULL).mkdir(exist_ok=True)
        (place / "tmp" / _FULL).chmod(0o1777)
    return place


def unmount_below(directory: Path) -> None:
    """Unmount whatever is mounted in a directory. Raises OSError."""
    prefix = f"{directory.resolve()}/"
    with open("/proc/self/mounts") as mounts:
        places = [line.split()[1].encode().decode("unicode_escape") for line in mounts]
    for place in reversed([place for place in places if place.startswith(prefix)]):
        kernel.unmount(place)


class _Listener(asyncio.Protocol):
    """Keeps the last of what is said: a sandbox's processes can write here, too, as much as they like."""

    def __init__(self, words: bytearray) -> None:
        self._words = words

    def data_received(self, data: bytes) -> None:
        self._words += data
        del self._words[:-_WORDS]
