"""The fork server of one template: enters the template once, then forks sandboxes out of itself.

Run as a program of its own (`python -I -m shoal_executor.drivers.zygote.server`) with an empty environment. As root it
begins with the host's privileges for as long as it takes to mount; before anything of a template or a tenant could run
it has left them behind for a user namespace in which root is nobody outside. What it forks is born with its imports
done.

It outlives its driver, so that sandboxes do: when the driver is gone it listens for the next one, tells it what is here
and hands it new links to the agents. When none comes in time it ends, and its sandboxes with it.
"""

import contextlib
import ctypes
import fcntl
import gc
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
import traceback
from typing import Final, NamedTuple

from shoal_executor.drivers import kernel
from shoal_executor.drivers.agent import frames
from shoal_executor.drivers.agent.agent import Agent
from shoal_executor.drivers.zygote.filter import compile_filter

RANGE: Final = 65_536
_DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
_MASKED: Final = ("kcore", "keys", "timer_list", "sched_debug", "latency_stats", "kallsyms", "kmsg")
_READ_ONLY: Final = ("sys", "sysrq-trigger", "irq", "bus", "fs", "acpi", "scsi", "mtrr")
_KEPT: Final = frozenset((0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 29, 31))
"""CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, SYS_CHROOT, AUDIT_WRITE and

SETFCAP: what a package manager needs to be root with, and all of it only inside the sandbox's own user namespace.
"""
_DESCRIPTORS: Final = 1 << 20  # more than any process may have open
_ENDS: Final = 1024
"""How many of the last ends are told again to the next driver: more than a socket holds unread."""
_READY: Final = frames.Event("ready", status=frames.PROTOCOL)
_FLAGS: Final = (
    kernel.NEWUSER | kernel.NEWNS | kernel.NEWPID | kernel.NEWIPC | kernel.NEWUTS | kernel.NEWNET
)  # fmt: skip


class Sandbox(NamedTuple):
    """One sandbox: its first process, and our end of the lifeline its agent holds on to."""

    pid: int
    lifeline: socket.socket


class Server:
    """One template's fork server. `patience_s`: how long it waits for a driver when it has none."""

    def __init__(self, control: socket.socket, listener: socket.socket, single: bool, patience_s: float) -> None:
        self._limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (self._limit[1], self._limit[1]))  # a lifeline for each sandbox
        self._control: socket.socket | None = control
        self._listener = listener
        self._patience_s = patience_s
        self._alone_since = 0.0
        self._map = "0 0 1" if single else f"0 0 {RANGE}"
        self._filter = compile_filter()
        self._sandboxes: dict[str, Sandbox] = {}
        self._names: dict[int, str] = {}
        self._ends: dict[str, int] = {}
        self._wake_r, wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._poll = select.poll()
        self._poll.register(self._wake_r, select.POLLIN)
        self._poll.register(control, select.POLLIN)

    def serve(self) -> None:
        """Fork, kill and reap as told, until no driver comes any more."""
        self._say(_READY)
        while True:
            for fd, _ in self._poll.poll(self._patience_ms()):
                if fd == self._wake_r:
                    self._reap()
                elif fd == self._listener.fileno():
                    self._welcome()
                else:
                    self._obey()

    def _patience_ms(self) -> int | None:
        if self._control is not None:
            return None
        left = self._alone_since + self._patience_s - time.monotonic()
        if left <= 0:
            os._exit(0)  # which takes the sandboxes along
        return int(left * 1000) + 1

    def _say(self, event: frames.Event, *fds: int) -> None:
        if self._control is not None:
            try:
                socket.send_fds(self._control, [frames.encode(event)], fds)
                return
            except OSError:
                self._lose_driver()

    def _note_end(self, name: str, status: int) -> None:
        """Keep it for the next driver: that it was sent to this one does not say that it was read before a kill."""
        self._ends[name] = status
        if self._control is not None:
            while len(self._ends) > _ENDS:
                del self._ends[next(iter(self._ends))]

    def _lose_driver(self) -> None:
        """The driver is gone: listen for the next one."""
        if self._control is None:
            return
        self._poll.unregister(self._control)
        self._control.close()
        self._control = None
        self._alone_since = time.monotonic()
        self._poll.register(self._listener, select.POLLIN)

    def _welcome(self) -> None:
        """A driver has come: tell it what ended lately, what is here, and that this was all."""
        self._control, _ = self._listener.accept()
        self._control.setblocking(True)
        self._poll.unregister(self._listener)
        self._poll.register(self._control, select.POLLIN)
        for name, status in self._ends.items():
            self._say(frames.Event("ended", name, status))
        for name, sandbox in self._sandboxes.items():
            ours, theirs = socket.socketpair()
            with ours, theirs:
                with contextlib.suppress(OSError):  # it is dying and not dead yet: its link is one to nobody
                    socket.send_fds(sandbox.lifeline, [b"link"], [ours.fileno()])
                self._say(frames.Event("here", name), theirs.fileno())
        self._say(_READY)

    def _obey(self) -> None:
        if self._control is None:
            return
        try:
            data, fds, _, _ = socket.recv_fds(self._control, 1 << 18, 16)
        except OSError:
            data, fds = b"", []
        if not data:
            self._lose_driver()
            return
        order = frames.orders.decode(data)
        if order.kill:
            with contextlib.suppress(KeyError, ProcessLookupError):
                os.kill(self._sandboxes[order.name].pid, signal.SIGKILL)
            return
        try:
            self._fork(order, fds)
        except OSError as error:
            self._say(frames.Event("failed", order.name, detail=str(error)))
        finally:
            for fd in fds:
                os.close(fd)

    def _fork(self, order: frames.Order, fds: list[int]) -> None:
        gate_r, gate_w = os.pipe()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = kernel.clone(_FLAGS)
        if pid == 0:
            link, lifeline, *cgroups = _arrange(fds[0], theirs.fileno(), *fds[1:])
            try:
                os.close(gate_w)
                if not os.read(gate_r, 1):
                    os._exit(1)
                signal.set_wakeup_fd(-1)
                resource.setrlimit(resource.RLIMIT_NOFILE, self._limit)
                agent = _enter(order, socket.socket(fileno=link), socket.socket(fileno=lifeline), cgroups, self._filter)
            except BaseException as error:
                with contextlib.suppress(OSError):
                    os.write(link, frames.pack(frames.Up(0, f"{type(error).__name__}: {error}")))
                os._exit(1)
            try:
                agent.serve()
            except BaseException:
                traceback.print_exc()  # into the fork server's log, on the host
            finally:
                os._exit(1)
        os.close(gate_r)
        theirs.close()
        try:
            for kind in ("uid", "gid"):
                if kind == "gid" and self._map == "0 0 1":
                    with open(f"/proc/{pid}/setgroups", "w") as file:
                        file.write("deny")
                with open(f"/proc/{pid}/{kind}_map", "w") as file:
                    file.write(self._map)
            os.write(gate_w, b"x")
        except OSError:
            ours.close()
            raise
        finally:
            os.close(gate_w)
        self._ends.pop(order.name, None)  # another of that name
        self._sandboxes[order.name] = Sandbox(pid, ours)
        self._names[pid] = order.name

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_r, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            name = self._names.pop(pid, None)
            if name is not None:
                self._sandboxes.pop(name).lifeline.close()
                self._note_end(name, status)
                self._say(frames.Event("ended", name, status))


def _enter(
    order: frames.Order, link: socket.socket, lifeline: socket.socket, cgroups: list[int], program: bytes
) -> Agent:
    """Turn this fresh clone into the first process of a sandbox."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    for fd in cgroups:
        os.write(fd, b"0")
    kernel.unshare(kernel.NEWCGROUP)
    kernel.mount("", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    os.umask(0o022)
    kernel.mount("tmpfs", "/box", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, _tmpfs(order.disk, 755))
    for name in ("u", "w", "m"):
        os.mkdir(f"/box/{name}", 0o755)
    options = "lowerdir=/image,upperdir=/box/u,workdir=/box/w,userxattr"
    kernel.mount("overlay", "/box/m", "overlay", kernel.MS_NOSUID | kernel.MS_NODEV, options)
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
    kernel.mount("tmpfs", "dev/shm", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, _tmpfs(order.shm, 1777))
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
    os.setsid()
    _forget_arguments()
    os.closerange(5, _DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    kernel.drop_bounding(_KEPT)
    kernel.set_capabilities(_KEPT)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)  # cleared by the change of credentials
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.load_filter(program)
    return Agent(link, lifeline, dict(order.env), order.user, order.inputs)


def _arrange(*fds: int) -> list[int]:
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


def _enter_template(image: str, usr: str, scratch: str, base: int) -> None:
    """Leave the host for the template: its own mounts, and root that is nobody outside."""
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
    for name in ("image", "box", "proc", "dev", *(("usr",) if usr else ())):
        os.mkdir(f"{scratch}/{name}", 0o755)
    if root:
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


def main() -> None:
    """`server IMAGE USR SCRATCH BASE CONTROL LISTENER PATIENCE`: USR is empty or the host's; BASE is the first outside

    uid, -1 without root; CONTROL and LISTENER are descriptors of sockets, to the driver and for the next one; PATIENCE
    is in seconds.
    """
    image, usr, scratch, base = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    control, listener = (socket.socket(fileno=int(each)) for each in sys.argv[5:7])
    try:
        _enter_template(image, usr, scratch, base)
        server = Server(control, listener, base < 0, float(sys.argv[7]))
    except OSError as error:
        control.send(frames.encode(frames.Event("broken", detail=str(error))))
        sys.exit(1)
    gc.collect()
    gc.freeze()
    gc.disable()
    server.serve()


if __name__ == "__main__":
    main()
