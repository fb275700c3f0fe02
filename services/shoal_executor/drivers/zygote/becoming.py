"""How a clone of the fork server leaves the template for a sandbox of its own, by steps that the server prepared."""

import ctypes
import fcntl
import os
import resource
import signal
import socket
from collections.abc import Sequence
from typing import Final, NamedTuple

from shoal_executor.drivers import kernel
from shoal_executor.drivers.agent import frames, programs
from shoal_executor.drivers.agent.agent import Agent
from shoal_executor.drivers.zygote import steps
from shoal_executor.drivers.zygote.steps import Step, take

LINK: Final = 3
"""The agent's descriptor of its link to the driver, from the first step on."""
_LIFELINE: Final = 4
UPPER: Final = 5
"""The agent's descriptor of what its sandbox has written."""
_WARM: Final = 6  # and control groups after it
_TAKEN: Final = 32
_DESCRIPTORS: Final = 1 << 20  # more than any process may have open
_USUAL: Final = 65_536
"""Descriptors a program may have open that does not ask for more: some look at each number below their limit."""
_TERMINALS: Final = 64
"""Of the kernel's pseudoterminals, 3072 for all sandboxes of a machine by default, those one sandbox may have."""
_WATCHERS: Final = "sys/fs/inotify/max_user_instances", "sys/user/max_inotify_instances"
"""Below /proc, how many inotify instances a user may have on the host, and in a user namespace."""
_SHARE: Final = 8
"""The sandboxes of a template share what the host allows one user; a user of one sandbox has at most this part."""
_PART: Final = 4
_MASKED: Final = ("kcore", "keys", "timer_list", "sched_debug", "latency_stats", "kallsyms", "kmsg")
_READ_ONLY: Final = ("sys", "sysrq-trigger", "irq", "bus", "fs", "acpi", "scsi", "mtrr")
KEPT: Final = frozenset((0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 29, 31))
"""CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, SYS_CHROOT, AUDIT_WRITE and

SETFCAP: what a package manager needs to be root with, and all of it only inside the sandbox's own user namespace.
"""


class Root(NamedTuple):
    """A root of its own for a process: the steps until it is mounted, and those that go into it."""

    stack: list[Step]
    inside: tuple[list[Step], ...]

    def make(self) -> int:
        """Make it this process's; returns a mount of what it writes. Raises OSError."""
        take(self.stack)
        upper = kernel.copy_mount("/box/u")
        for part in self.inside:
            take(part)
        return upper


class Way(NamedTuple):
    """What one clone has to do."""

    lifeline: int
    root: Root
    copying: list[Step]
    open: int
    env: dict[str, str]
    user: str
    inputs: int


def usual_descriptors() -> tuple[int, int]:
    """Return the limits of descriptors, soft and hard, of what runs in a sandbox."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(soft, _USUAL), hard


Counted = tuple[int, tuple[int, int]]
"""A limit of a user's, soft and hard."""


def count_apart() -> list[Counted]:
    """Lift what the kernel counts by user and, with it, for whoever made the user's namespace; for root.

    The user of a template's namespace has no limit then, so that no sandbox of it takes from another. Returns the
    limits that each sandbox is to have again: what they take is memory, which is counted as its own. Where root may
    not lift them (in a container without CAP_SYS_RESOURCE), a sandbox is to have a part of what the template's share.
    """
    counted: list[Counted] = []
    for kind in (resource.RLIMIT_SIGPENDING, resource.RLIMIT_MSGQUEUE):
        usual = resource.getrlimit(kind)
        try:
            resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        except ValueError:
            soft = usual[0] // _PART
            counted.append((kind, (soft, soft)))
        else:
            counted.append((kind, usual))
    return counted


class Entrance:
    """The way from one template into its sandboxes.

    The process that makes it takes its first descriptors for it, lifts its own limit of descriptors (there is a
    lifeline for each sandbox), and leaves no core files. `counted`: see `count_apart`; `owned`: clones are users of the
    template until they are root of their own, see `owners`.
    """

    def __init__(
        self, lowers: list[str], program: bytes, warm: socket.socket | None, counted: Sequence[Counted] = (), *,
        owned: bool = False,
    ) -> None:  # fmt: skip
        self._lowers = lowers
        self._owned = owned
        self._around = _around_memory()
        self._confine = [*confine(KEPT, program), steps.prctl(kernel.PR_SET_DUMPABLE)]
        self._arguments = _arguments()
        self._watchers = few_watchers()
        self._counted = counted
        self._limit = usual_descriptors()
        hard = self._limit[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _take_first_descriptors()
        self._warm = fcntl.fcntl(warm, fcntl.F_DUPFD_CLOEXEC, _TAKEN) if warm is not None else None

    def prepare(self, order: frames.Order, link: int, lifeline: int, others: list[int]) -> Way:
        """Work out what is of this order alone. `others`: its layers, the lowest first, and its control groups."""
        layers, cgroups = others[: order.layers], others[order.layers :]
        copying = [self._warm, *cgroups] if self._warm is not None else []
        stack = [
            steps.place(link, LINK),
            steps.place(lifeline, _LIFELINE),
            steps.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL),
            *(steps.write(fd, b"0", "enter a control group") for fd in cgroups),
            steps.unshare(kernel.NEWCGROUP),
            *self._watchers,
            *stacked(order.disk, self._lowers, layers),
        ]
        before, after = self._around
        return Way(
            lifeline, Root(stack, (before, [_memory(order.shm)], after)),
            [steps.place(fd, number) for number, fd in enumerate(copying, _WARM)], _WARM + len(copying),
            dict(order.env), order.user, order.inputs,
        )  # fmt: skip

    def become(self, way: Way) -> Agent:
        """Turn this fresh clone into the first process of a sandbox, as soon as a byte on its lifeline says so."""
        if not os.read(way.lifeline, 1):
            os._exit(1)
        if self._owned:
            kernel.be_root()
        upper = way.root.make()
        os.setsid()
        start, size = self._arguments
        ctypes.memset(start, 0, size)
        ctypes.memmove(start, b"shoal", min(5, size))
        os.dup2(upper, UPPER, inheritable=False)  # the driver reads through it what was written
        take(way.copying)
        os.closerange(way.open, _DESCRIPTORS)
        resource.setrlimit(resource.RLIMIT_NOFILE, self._limit)
        for kind, limits in self._counted:
            resource.setrlimit(kind, limits)
        programs.keep_mark()
        take(self._confine)
        link, lifeline = socket.socket(fileno=LINK), socket.socket(fileno=_LIFELINE)
        link.setblocking(False)
        agent = Agent(link, lifeline, way.env, way.user, way.inputs)
        if way.open > _WARM:
            agent.warmed(socket.socket(fileno=_WARM), list(range(_WARM + 1, way.open)), KEPT)
        return agent


def stacked(disk: int, lowers: list[str], layers: list[int]) -> list[Step]:
    """Mount a root at /box/m out of the template and more disks, the lowest first, and go there.

    disk: how much may be written to it, in bytes.
    """
    places = [f"/box/{number}" for number in range(len(layers))]
    lowest = ":".join([*reversed(places), *lowers])
    flags = kernel.MS_NOSUID | kernel.MS_NODEV
    return [
        steps.mount("", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE),
        steps.mount("tmpfs", "/box", "tmpfs", flags, _tmpfs(disk, 755)),
        *(steps.mkdir(f"/box/{name}", 0o755) for name in ("u", "w", "m")),
        *(steps.mkdir(place, 0o755) for place in places),
        *(steps.attach_mount(layer, place) for layer, place in zip(layers, places, strict=True)),
        steps.mount(
            "overlay", "/box/m", "overlay", flags, f"lowerdir={lowest},upperdir=/box/u,workdir=/box/w,userxattr"
        ),
        steps.chdir("/box/m"),
        *(steps.be_directory(name, 0o755) for name in ("proc", "dev", "root")),
        steps.be_directory("tmp", 0o1777),
    ]


def inside(shm: int) -> tuple[list[Step], ...]:
    """Make the root that we are in the only one, with what every sandbox has of its own. shm: bytes of /dev/shm."""
    before, after = _around_memory()
    return before, [_memory(shm)], after


def _memory(size: int) -> Step:
    return steps.mount("tmpfs", "dev/shm", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, _tmpfs(size, 1777))


def _around_memory() -> tuple[list[Step], list[Step]]:
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    usr = [steps.be_directory("usr", 0o755), steps.bind("/usr", "usr")] if os.path.isdir("/usr") else []
    before = [*usr, steps.bind("/dev", "dev", recursive=True)]
    terminals = f"newinstance,ptmxmode=0666,mode=620,max={_TERMINALS}"
    after = [
        steps.mount("devpts", "dev/pts", "devpts", kernel.MS_NOSUID | kernel.MS_NOEXEC, terminals),
        steps.mount("proc", "proc", "proc", flags),
        *steps.pivot_here(),
    ]
    after += [steps.read_only(f"/proc/{name}", flags) for name in _READ_ONLY]
    after += [steps.masked(f"/proc/{name}") for name in _MASKED]
    return before, [*after, steps.sethostname("sandbox"), steps.loopback_up()]


def confine(capabilities: frozenset[int], program: bytes) -> list[Step]:
    """Keep these capabilities and no way to others, load a filter, and end with whoever started this process."""
    return [
        *steps.drop_bounding(capabilities),
        steps.set_capabilities(capabilities),
        steps.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL),  # cleared by the change of credentials
        steps.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1),
        steps.load_filter(program),
    ]


def few_watchers() -> list[Step]:
    """Limit the inotify instances of each user of the namespace that this process is in then."""
    host, own = (f"/proc/{name}" for name in _WATCHERS)
    try:
        with open(host) as file:
            allowed = int(file.read())
    except OSError:
        return []
    return [steps.told(own, b"%d" % max(allowed // _SHARE, 1))]


def _tmpfs(size: int, mode: int) -> str:
    # Empty files take kernel memory and no page of the size: one file a page, or they fill the sandbox's memory.
    return f"size={size},nr_inodes={max(size // 4096, 1024)},mode={mode}"


def _arguments() -> tuple[int, int]:
    """Return where /proc/1/cmdline, which would tell of the host's paths, is in memory, and its bytes.

    It stands in proc(5), fields 48 and 49.
    """
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    return (start, end - start) if 0 < start < end else (0, 0)


def _take_first_descriptors() -> None:
    """What comes later has higher numbers, so that a clone can put it at its place in any order."""
    with open("/dev/null") as low:
        nothing = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, _TAKEN)
    for number in range(_TAKEN):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(nothing, number, inheritable=False)
    os.close(nothing)
