"""How a process leaves the host for a template, and becomes the first process there."""

import contextlib
import os
import signal
from typing import Final

from shoal_executor.drivers import kernel

RANGE: Final = 65_536
_DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
_DESCRIPTORS: Final = 1 << 20  # more than any process may have open


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
