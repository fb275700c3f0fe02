"""How a process leaves the host for a template, and how its clone leaves the template for a sandbox of its own."""

import contextlib
import ctypes
import fcntl
import os
import resource
import signal
import socket
import struct
from typing import Final

from shoal_executor.drivers import kernel
from shoal_executor.drivers.agent import frames
from shoal_executor.drivers.agent.agent import Agent

RANGE: Final = 65_536
UPPER: Final = 5
"""The agent's descriptor of what its sandbox has written."""
_DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
_MASKED: Final = ("kcore", "keys", "timer_list", "sched_debug", "latency_stats", "kallsyms", "kmsg")
_READ_ONLY: Final = ("sys", "sysrq-trigger", "irq", "bus", "fs", "acpi", "scsi", "mtrr")
KEPT: Final = frozenset((0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 29, 31))
"""CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, SYS_CHROOT, AUDIT_WRITE and

SETFCAP: what a package manager needs to be root with, and all of it only inside the sandbox's own user namespace.
"""
_DESCRIPTORS: Final = 1 << 20  # more than any process may have open


def enter(
    order: frames.Order, link: socket.socket, lifeline: socket.socket, cgroups: list[int], program: bytes,
    lowers: list[str], layers: list[int], warm: socket.socket | None,
) -> Agent:  # fmt: skip
    """Turn this fresh clone into the first process of a sandbox."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    for fd in cgroups:
        os.write(fd, b"0")
    kernel.unshare(kernel.NEWCGROUP)
    upper = make_root(order.disk, order.shm, lowers, layers)
    os.setsid()
    _forget_arguments()
    kept = [fcntl.fcntl(warm, fcntl.F_DUPFD_CLOEXEC, 64), *cgroups] if warm is not None else []
    os.dup2(upper, UPPER, inheritable=False)  # the driver reads through it what was written
    copying = [os.dup2(fd, UPPER + 1 + number, inheritable=False) for number, fd in enumerate(kept)]
    os.closerange(UPPER + 1 + len(kept), _DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    confine(KEPT, program)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    link.setblocking(False)
    agent = Agent(link, lifeline, dict(order.env), order.user, order.inputs)
    if copying:
        agent.warmed(socket.socket(fileno=copying[0]), copying[1:], KEPT)
    return agent


def make_root(disk: int, shm: int, lowers: list[str], layers: list[int]) -> int:
    """Make a root of its own for this process, out of the template and more disks; returns a mount of what it writes.

    disk, shm: how much it may write there, in bytes.
    """
    kernel.mount("", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    os.umask(0o022)
    kernel.mount("tmpfs", "/box", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, _tmpfs(disk, 755))
    for name in ("u", "w", "m"):
        os.mkdir(f"/box/{name}", 0o755)
    for number, layer in enumerate(layers):
        place = f"/box/{number}"
        os.mkdir(place, 0o755)
        kernel.attach_mount(layer, place)
        os.close(layer)
        lowers = [place, *lowers]
    options = f"lowerdir={':'.join(lowers)},upperdir=/box/u,workdir=/box/w,userxattr"
    kernel.mount("overlay", "/box/m", "overlay", kernel.MS_NOSUID | kernel.MS_NODEV, options)
    upper = kernel.copy_mount("/box/u")
    os.chdir("/box/m")
    usr = os.path.isdir("/usr")
    for name in ("proc", "dev", "tmp", "root", *(("usr",) if usr else ())):
        if os.path.islink(name):  # a mount would follow it
            raise OSError(0, f"the template's /{name} is a symbolic link; it must be a directory, or not there")
        if not os.path.isdir(name):
            os.mkdir(name, 0o1777 if name == "tmp" else 0o755)
    if usr:
        kernel.bind("/usr", "usr")
    kernel.bind("/dev", "dev", recursive=True)
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("tmpfs", "dev/shm", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, _tmpfs(shm, 1777))
    kernel.mount(
        "devpts", "dev/pts", "devpts", kernel.MS_NOSUID | kernel.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620"
    )
    kernel.mount("proc", "proc", "proc", flags)
    kernel.pivot_here()
    for name in _READ_ONLY:
        path = f"/proc/{name}"
        if os.path.exists(path):
            kernel.bind(path, path, recursive=True)
            kernel.remount_read_only(path, flags)
    for name in _MASKED:
        if os.path.exists(f"/proc/{name}"):
            kernel.bind("/dev/null", f"/proc/{name}")
    _hostname_and_loopback()
    return upper


def confine(capabilities: frozenset[int], program: bytes) -> None:
    """Keep these capabilities and no way to others, load a filter, and end with whoever started this process."""
    kernel.drop_bounding(capabilities)
    kernel.set_capabilities(capabilities)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)  # cleared by the change of credentials
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.load_filter(program)


def arrange(*fds: int) -> list[int]:
    """Move a clone's descriptors out of the way of all others: the first two to 3 and 4. Returns where they are."""
    link, lifeline, *others = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in fds]
    return [os.dup2(link, 3, inheritable=False), os.dup2(lifeline, 4, inheritable=False), *others]


def _tmpfs(size: int, mode: int) -> str:
    # Empty files take kernel memory and no page of the size: one file a page, or they fill the sandbox's memory.
    return f"size={size},nr_inodes={max(size // 4096, 1024)},mode={mode}"


def _forget_arguments() -> None:
    """Blank what /proc/1/cmdline would tell of the host's paths. Where it is stands in proc(5): fields 48 and 49."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    if 0 < start < end:
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, b"shoal", min(5, end - start))


def _hostname_and_loopback() -> None:
    socket.sethostname("sandbox")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        fcntl.ioctl(probe, 0x8914, struct.pack("16sh", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS, IFF_UP | IFF_RUNNING


def enter_template(image: str, usr: str, scratch: str, base: int, disks: list[int]) -> list[str]:
    """Leave the host for the template: its own mounts, and root that is nobody outside.

    Returns what sandboxes are stacked on, the highest first: the disks, on top of the image where there is one.
    """
    root = base >= 0
    namespace: int | None = None
    if root:
        kernel.unshare(kernel.NEWNS)
        namespace = kernel.user_namespace(base, RANGE)
    else:
        uid, gid = os.geteuid(), os.getegid()
        kernel.unshare(kernel.NEWUSER | kernel.NEWNS)
        for kind, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{kind}", "w") as file:
                file.write(text)
    kernel.mount("", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", scratch, "tmpfs", kernel.MS_NOSUID, "size=1m,mode=755")
    stack = [f"disk{number}" for number in range(len(disks))]
    lowers = [*(["image"] if image else []), *stack]
    for name in (*lowers, "box", "proc", "dev", *(("usr",) if usr else ())):
        os.mkdir(f"{scratch}/{name}", 0o755)
    for name, disk in zip(stack, disks, strict=True):
        kernel.map_mount(disk, namespace)
        kernel.attach_mount(disk, f"{scratch}/{name}")
        os.close(disk)
    if root:
        if image:
            kernel.bind_mapped(image, f"{scratch}/image", namespace)
        if usr:
            kernel.bind_mapped(usr, f"{scratch}/usr", namespace)
    else:
        kernel.bind(image, f"{scratch}/image", recursive=True)
        if usr:
            kernel.bind(usr, f"{scratch}/usr", recursive=True)
            kernel.remount_read_only(f"{scratch}/usr", kernel.MS_NOSUID | kernel.MS_NODEV)
    _make_devices(f"{scratch}/dev")
    kernel.bind("/proc", f"{scratch}/proc", recursive=True)
    os.chdir(scratch)
    kernel.pivot_here()
    if namespace is not None:
        kernel.setns(namespace, kernel.NEWUSER)
        os.close(namespace)
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        # The change of uid hid this process's files under /proc from itself, and its clones' with them: it must write
        # their uid maps.
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
        kernel.unshare(kernel.NEWNS)
    return [f"/{name}" for name in reversed(lowers)]


def descend() -> None:
    """Go on as the first process of the template's pid namespace, while this one waits for its end.

    Nothing in the template can kill the first process, orphans are its to reap, and with it all of them end.
    """
    kernel.unshare(kernel.NEWPID)
    alive_r, alive_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    child = os.fork()
    if child:
        os.closerange(0, alive_w)
        os.closerange(alive_w + 1, _DESCRIPTORS)
        while os.waitpid(child, 0)[0] != child:
            pass
        os._exit(0)
    os.close(alive_w)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(BlockingIOError):
        os.read(alive_r, 1)
        os._exit(1)  # the waiting one was killed before that could be heard of
    os.close(alive_r)
    kernel.mount("proc", "/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)


def _make_devices(place: str) -> None:
    kernel.mount("tmpfs", place, "tmpfs", kernel.MS_NOSUID, "size=64k,mode=755")
    for name in _DEVICES:
        if os.path.exists(f"/dev/{name}"):
            os.close(os.open(f"{place}/{name}", os.O_CREAT | os.O_WRONLY, 0o666))
            kernel.bind(f"/dev/{name}", f"{place}/{name}")
    for name in ("shm", "pts"):
        os.mkdir(f"{place}/{name}", 0o755)
    links = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"}
    for name, target in links.items():
        os.symlink(target, f"{place}/{name}")
