"""Limits: one control group a sandbox, in version 1 hierarchies or in version 2's one."""

import asyncio
import contextlib
import errno
import os
import signal
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shoal.wire.messages import Resources
from shoal_executor.drivers import kernel

_PERIOD_US: Final = 100_000
_MOUNTS: Final = Path("/proc/self/mounts")
_MOUNT_FLAGS: Final = {"nosuid": 2, "nodev": 4, "noexec": 8, "noatime": 1024, "relatime": 1 << 21}
_CONTROLLERS: Final = ("memory", "pids", "cpu")
_TOLD: Final = "trusted.shoal.oom_kills"
_TOLD_OF: Final = "trusted.shoal.oom_commands"


@dataclass(frozen=True, slots=True)
class Group:
    """One sandbox's control group: a directory in each hierarchy."""

    directories: tuple[Path, ...]


class Groups:
    """The control groups of one executor, below one directory named after it.

    `note` is a file that tells its next process where that is: below whatever group the executor was started in.
    """

    def __init__(self, name: str, note: Path) -> None:
        self._name = f"shoal-{name}"
        self._note = note
        self._earlier: list[Path] = []
        self._v1: dict[str, Path] = {}
        self._v2: Path | None = None
        self._favoured: Path | None = None
        self.unenforced: tuple[str, ...] = ()

    def look(self) -> None:
        """Find the hierarchies, and where an earlier process had its groups."""
        for controller in _CONTROLLERS:
            place = _v1_place(controller)
            if place is not None:
                self._v1[controller] = place / self._name
        if not self._v1:
            place = _v2_place()
            if place is not None:
                self._v2 = place / self._name
        with contextlib.suppress(FileNotFoundError):
            noted = [Path(line) for line in self._note.read_text().splitlines()]
            self._earlier = [path for path in noted if path.name == self._name and path not in self._roots()]

    def _roots(self) -> list[Path]:
        return [*self._v1.values(), *([self._v2] if self._v2 else []), *self._earlier]

    def open(self, keep: Collection[str] = ()) -> None:
        """Make our directory, and clear in it what an earlier process left but the groups with these names."""
        missing: list[str] = []
        if os.geteuid() != 0:
            self._v1, self._v2, self._earlier = {}, None, []
            self.unenforced = tuple(f"{name} (only root can make control groups here)" for name in _CONTROLLERS)
            return
        self.clear(keep)
        self._earlier = [path for path in self._earlier if path.is_dir()]
        self._note.write_text("".join(f"{path}\n" for path in self._roots()))
        try:
            for path in self._v1.values():
                path.mkdir(exist_ok=True)
            if self._v2 is not None:
                self._v2.mkdir(exist_ok=True)
                for parent in (self._v2.parent, self._v2):
                    for controller in _CONTROLLERS:
                        with contextlib.suppress(OSError):
                            (parent / "cgroup.subtree_control").write_text(f"+{controller}")
                have = (self._v2 / "cgroup.subtree_control").read_text().split()
                missing = [name for name in _CONTROLLERS if name not in have]
            else:
                missing = [name for name in _CONTROLLERS if name not in self._v1]
        except OSError as error:
            self._v1, self._v2 = {}, None
            missing = list(_CONTROLLERS)
            self.unenforced = tuple(f"{name} (control groups cannot be made: {error.strerror})" for name in missing)
            return
        self.unenforced = tuple(f"{name} (the kernel offers no such controller here)" for name in missing)

    def favour_moves(self, marker: Path) -> None:
        """Ask the kernel to keep moves into control groups quick; `usual_moves` takes it back.

        By default the first move after a pause waits for a grace period of read-copy-update: 13 ms of an 18 ms start
        on an idle machine. `favordynmods` (kernel 6.0 and later; set on version 2's hierarchy, it serves all) makes
        forks and exits a little dearer instead. See docs/adr/0005. The marker file says, to the next process of this
        state directory if this one is killed, that it was we who asked.
        """
        place = _v2_place()
        if os.geteuid() != 0 or place is None:
            return
        if "favordynmods" in _v2_options():
            self._favoured = place if marker.exists() else None
        elif _remount(place, favour=True):
            marker.touch()
            self._favoured = place

    def usual_moves(self, marker: Path) -> None:
        """Take `favour_moves` back, if it was this state directory's executor that asked."""
        if self._favoured is not None:
            _remount(self._favoured, favour=False)
            self._favoured = None
            marker.unlink(missing_ok=True)

    def make(self, name: str, limits: Resources) -> Group:
        """Make a sandbox's group with its limits."""
        made: list[Path] = []
        try:
            if self._v2 is not None:
                path = self._v2 / name
                path.mkdir()
                made.append(path)
                _set(path, "memory.max", limits.memory)
                _set(path, "memory.swap.max", 0)
                _set(path, "pids.max", limits.pids)
                _set(path, "cpu.max", f"{limits.cpu_milli * _PERIOD_US // 1000} {_PERIOD_US}")
            for controller, parent in self._v1.items():
                path = parent / name
                path.mkdir()
                made.append(path)
                if controller == "memory":
                    _set(path, "memory.limit_in_bytes", limits.memory)
                    _set(path, "memory.memsw.limit_in_bytes", limits.memory)
                elif controller == "pids":
                    _set(path, "pids.max", limits.pids)
                else:
                    _set(path, "cpu.cfs_quota_us", limits.cpu_milli * _PERIOD_US // 1000)
        except OSError:
            for path in made:
                path.rmdir()
            raise
        return Group(tuple(made))

    @staticmethod
    def limit_cpu(group: Group, cpu_milli: int) -> None:
        """Let it have so many thousandths of a core from now on, as many as there are with 0. Raises OSError."""
        quota = cpu_milli * _PERIOD_US // 1000
        for path in group.directories:
            _set(path, "cpu.max", f"{quota or 'max'} {_PERIOD_US}")
            _set(path, "cpu.cfs_quota_us", quota or -1)

    def find(self, name: str) -> Group:
        """Return the group an earlier process made for a sandbox, or what is left of it."""
        return Group(tuple(path for root in self._roots() if (path := root / name).is_dir()))

    @staticmethod
    def doors(group: Group) -> list[Path]:
        """Return files: whoever writes `0` to them is in."""
        return [path / "cgroup.procs" for path in group.directories]

    @classmethod
    def entrances(cls, group: Group) -> list[int]:
        """Return the same, open. Raises OSError."""
        opened: list[int] = []
        try:
            for path in cls.doors(group):
                opened.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC))  # noqa: PERF401 - one may fail
        except OSError:
            for fd in opened:
                os.close(fd)
            raise
        return opened

    @staticmethod
    def oom_kills(group: Group) -> int:
        """Return how many processes of the group were killed for want of memory."""
        for path in group.directories:
            for name in ("memory.oom_control", "memory.events"):
                with contextlib.suppress(OSError):
                    for line in (path / name).read_text().splitlines():
                        if line.startswith("oom_kill "):
                            return int(line.split()[1])
        return 0

    @staticmethod
    def refused_processes(group: Group) -> int:
        """Return how often the group was refused a process or a thread because it had as many as it may."""
        for path in group.directories:
            with contextlib.suppress(OSError):
                for line in (path / "pids.events").read_text().splitlines():
                    if line.startswith("max "):
                        return int(line.split()[1])
        return 0

    @staticmethod
    def memory_used(group: Group) -> int:
        """Return how many bytes its processes and what they wrote to memory take, 0 where nobody counts."""
        for path in group.directories:
            for name in ("memory.usage_in_bytes", "memory.current"):
                with contextlib.suppress(OSError):
                    return int((path / name).read_text())
        return 0

    @staticmethod
    def tell_oom_kills(group: Group, kills: int, commands: Collection[str]) -> None:
        """Note, for the next process of this node, that so many kills were told of, as what ended these commands.

        They are told anew of a command that this process did not come to note anywhere.
        """
        for path in group.directories:
            with contextlib.suppress(OSError):  # where it cannot be noted, a kill may be told of twice
                os.setxattr(path, _TOLD_OF, "\0".join(commands).encode())
                os.setxattr(path, _TOLD, str(kills).encode())

    @staticmethod
    def told_oom_kills(group: Group) -> tuple[int, set[str]]:
        """Return how many kills were told of already, and of which commands that may have to be told anew."""
        kills, commands = 0, ""
        for path in group.directories:
            with contextlib.suppress(OSError):
                kills = int(os.getxattr(path, _TOLD))
                commands = os.getxattr(path, _TOLD_OF).decode()
                break
        return kills, set(commands.split("\0")) if commands else set()

    @staticmethod
    def kill(group: Group) -> None:
        """Kill every process that is in it now."""
        for path in group.directories:
            _kill(path)

    async def remove(self, group: Group) -> None:
        """Remove a group whose processes are ending; waits for the last of them. Raises OSError after 10 s."""
        for path in group.directories:
            pause = 0.001
            while True:
                try:
                    path.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError as error:
                    if error.errno != errno.EBUSY or pause > 2:
                        raise
                    if pause > 0.02:
                        _kill(path)
                await asyncio.sleep(pause)
                pause *= 1.5

    def clear(self, keep: Collection[str] = ()) -> None:
        """Kill and remove whatever is below our directory but the groups with these names, and the directory."""
        for root in self._roots():
            if root.is_dir():
                children = [entry for entry in root.iterdir() if entry.is_dir()]
                for child in (*(each for each in children if each.name not in keep), *(() if keep else (root,))):
                    _kill(child)
                    for _ in range(200):
                        try:
                            child.rmdir()
                            break
                        except FileNotFoundError:
                            break
                        except OSError:
                            _kill(child)
                            signal.sigtimedwait([], 0.005)


def _set(path: Path, name: str, value: int | str) -> None:
    try:
        fd = os.open(path / name, os.O_WRONLY)
    except FileNotFoundError:
        return  # this kernel has no such knob (swap accounting, say)
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)


def _kill(path: Path) -> None:
    with contextlib.suppress(OSError):
        for line in (path / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(line), signal.SIGKILL)


def _own(controller: str) -> str:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return path
    return "/"


def _v1_place(controller: str) -> Path | None:
    for line in _MOUNTS.read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup" and controller in fields[3].split(","):
            own = Path(fields[1]) / _own(controller).lstrip("/")
            return own if own.is_dir() else Path(fields[1])
    return None


def _v2_options() -> list[str]:
    for line in _MOUNTS.read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return fields[3].split(",")
    return []


def _remount(place: Path, favour: bool) -> bool:
    """Mount version 2's hierarchy anew as it is, with or without favordynmods; returns whether the kernel agreed."""
    options = [option for option in _v2_options() if option not in ("rw", "ro", "favordynmods")]
    flags = sum(_MOUNT_FLAGS[option] for option in options if option in _MOUNT_FLAGS)
    data = [option for option in options if option not in _MOUNT_FLAGS] + (["favordynmods"] if favour else [])
    with contextlib.suppress(OSError):
        kernel.mount("none", str(place), "cgroup2", kernel.MS_REMOUNT | flags, ",".join(data))
    return ("favordynmods" in _v2_options()) == favour


def _v2_place() -> Path | None:
    for line in _MOUNTS.read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return Path(fields[1])
    return None
