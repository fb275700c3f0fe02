"""The kernel calls that Python has no name for: namespaces, mounts, idmapped mounts, capabilities."""

import ctypes
import errno
import os
import signal
import struct
from typing import Final

NEWNS: Final = 0x00020000
NEWCGROUP: Final = 0x02000000
NEWUTS: Final = 0x04000000
NEWIPC: Final = 0x08000000
NEWUSER: Final = 0x10000000
NEWPID: Final = 0x20000000
NEWNET: Final = 0x40000000

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_SECCOMP: Final = 22
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
_PR_SET_SECUREBITS: Final = 28
_NO_SETUID_FIXUP: Final = 1 << 2
PR_SET_NO_NEW_PRIVS: Final = 38

_MACHINE: Final = os.uname().machine
_CLONE: Final = {"x86_64": 56, "aarch64": 220}.get(_MACHINE, 56)
PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41}.get(_MACHINE, 155)
_OPEN_TREE: Final = 428  # these have one number on every architecture
MOVE_MOUNT: Final = 429
_FSOPEN: Final = 430
_FSCONFIG: Final = 431
_FSMOUNT: Final = 432
_OPENAT2: Final = 437
_MOUNT_SETATTR: Final = 442
_RESOLVE_NO_MAGICLINKS: Final = 2
AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_AT_RECURSIVE: Final = 0x8000
_OPEN_TREE_CLONE: Final = 1
MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_FSCONFIG_SET_FLAG: Final = 0
_FSCONFIG_SET_STRING: Final = 1
_FSCONFIG_CMD_CREATE: Final = 6
_CLOEXEC: Final = 1  # of fsopen and fsmount
_MOUNT_ATTR_RDONLY: Final = 1
_MOUNT_ATTR_NOSUID: Final = 2
_MOUNT_ATTR_NODEV: Final = 4
_MOUNT_ATTR_IDMAP: Final = 0x00100000

_libc = ctypes.CDLL(None, use_errno=True)
_holding = ctypes.PyDLL(None, use_errno=True)  # keeps the interpreter's lock: a clone must come back with it


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """Mount. Raises OSError naming the target."""
    _check(
        _libc.mount(
            source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None
        ),
        f"mount {kind or 'bind'} at {target}",
    )


def bind(source: str, target: str, *, recursive: bool = False) -> None:
    """Make source appear at target, too."""
    mount(source, target, "", MS_BIND | (MS_REC if recursive else 0))


def remount_read_only(target: str, flags: int = 0) -> None:
    """Make one bind mount read-only."""
    mount("none", target, "", MS_BIND | MS_REMOUNT | MS_RDONLY | flags)


def unmount(target: str) -> None:
    """Detach what is mounted at target."""
    _check(_libc.umount2(target.encode(), MNT_DETACH), f"unmount {target}")


def pivot_here() -> None:
    """Make the current directory the root, and let go of the old one. The directory must be a mount point."""
    _check(_libc.syscall(PIVOT_ROOT, b".", b"."), "pivot_root")
    unmount(".")
    os.chdir("/")


def unshare(flags: int) -> None:
    """Leave namespaces for new ones."""
    _check(_libc.unshare(flags), f"unshare {flags:#x}")


def setns(fd: int, kind: int) -> None:
    """Enter a namespace."""
    _check(_libc.setns(fd, kind), "setns")


def clone(flags: int) -> int:
    """Fork into new namespaces; returns as fork does. It saves the fork that unshare needs for a pid namespace.

    What Python repairs after a fork (locks, other threads, what modules have asked for, such as `random` a new seed) is
    not repaired in the child, for which a process must have one thread and no such modules. It would be 1 ms, and a
    copy of 200 pages.
    """
    pid = _holding.syscall(_CLONE, ctypes.c_ulong(flags | signal.SIGCHLD), 0, 0, 0, 0)
    return _check(pid, f"clone {flags:#x}")


def keep_capabilities() -> None:
    """Have every capability whatever the effective user is, as `clone_for` needs it."""
    prctl(_PR_SET_SECUREBITS, _NO_SETUID_FIXUP)


def clone_for(owner: int, flags: int) -> int:
    """Clone into a new user namespace that belongs to this user; for root that has done `keep_capabilities`.

    Limits that the kernel counts by user and namespace it counts, of all that is in there, for that user, too. The
    child is that user until its ids are mapped and it does `be_root`.
    """
    try:
        os.seteuid(owner)
        prctl(PR_SET_DUMPABLE, 1)  # each change of user hides its files under /proc, and its clones'
        pid = clone(flags)
    except OSError:
        be_root()
        raise
    if pid:
        be_root()
    return pid


def be_root() -> None:
    """Be root in all respects, and as visible under /proc as before."""
    os.setresuid(0, 0, 0)
    prctl(PR_SET_DUMPABLE, 1)


def prctl(option: int, value: int = 0) -> None:
    """Set an attribute of this process."""
    _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")


def open_plainly(path: str, flags: int, mode: int = 0) -> int:
    """Open as os.open does, but through none of /proc's links to what a process has open (OSError ELOOP).

    gVisor has no such call; there those links lead to nothing of the host.
    """
    how = struct.pack("QQQ", flags, mode & 0o7777 if flags & os.O_CREAT else 0, _RESOLVE_NO_MAGICLINKS)
    try:
        return _check(_libc.syscall(_OPENAT2, AT_FDCWD, os.fsencode(path), how, len(how)), f"open {path}")
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        return os.open(path, flags, mode)


def drop_bounding(keep: frozenset[int]) -> None:
    """Take all capabilities but these out of reach for ever."""
    for capability in range(64):
        if capability not in keep and _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            break  # beyond the last one this kernel knows


def set_capabilities(keep: frozenset[int]) -> None:
    """Have exactly these capabilities, none inheritable."""
    _check(_libc.capset(*capabilities(keep)), "capset")


def capabilities(keep: frozenset[int]) -> tuple[bytes, bytes]:
    """Return what capset is given."""
    bits = sum(1 << capability for capability in keep)
    low, high = bits & 0xFFFFFFFF, bits >> 32
    return struct.pack("Ii", 0x20080522, 0), struct.pack("IIIIII", low, low, 0, high, high, 0)


def user_namespace(base: int, count: int) -> int:
    """Return a descriptor of a new user namespace whose ids 0.. are `base`.. outside. Needs root.

    It is `base` that makes it: what the kernel counts by user, such as inotify instances, it counts there and for
    whoever made the namespace, too, and the host's root is to have its own to itself.
    """
    ready_r, ready_w = os.pipe()
    done_r, done_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            prctl(_PR_SET_SECUREBITS, _NO_SETUID_FIXUP)  # it keeps its capabilities: some hosts want them for this
            os.setresgid(base, base, base)
            os.setresuid(base, base, base)
            unshare(NEWUSER)
            os.write(ready_w, b"x")
            os.close(done_w)
            os.read(done_r, 1)
        finally:
            os._exit(0)
    try:
        os.close(ready_w)
        if not os.read(ready_r, 1):
            raise OSError("this kernel gives no user namespace")
        for kind in ("uid", "gid"):
            with open(f"/proc/{pid}/{kind}_map", "w") as file:
                file.write(f"0 {base} {count}")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(done_w)
        os.waitpid(pid, 0)
        for fd in (ready_r, done_r):
            os.close(fd)


def mount_detached(kind: str, source: str) -> int:
    """Mount a filesystem read-only at no place: it is there for as long as its descriptor or a copy of it is."""
    context = _check(_libc.syscall(_FSOPEN, kind.encode(), _CLOEXEC), f"fsopen {kind}")
    try:
        for command, key, value in (
            (_FSCONFIG_SET_STRING, b"source", source.encode()),
            (_FSCONFIG_SET_FLAG, b"ro", None),
            (_FSCONFIG_CMD_CREATE, None, None),
        ):
            _check(_libc.syscall(_FSCONFIG, context, command, key, value, 0), f"mount {source} as {kind}")
        flags = _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV
        return _check(_libc.syscall(_FSMOUNT, context, _CLOEXEC, flags), f"mount {source} as {kind}")
    finally:
        os.close(context)


def clone_mount(path: str | int, namespace: int | None) -> int:
    """Return a detached read-only copy of a mount, its owners shifted into the user namespace where one is given.

    A detached mount itself, given by its descriptor, can be copied since Linux 6.15.
    """
    tree = copy_mount(path)
    try:
        map_mount(tree, namespace)
    except OSError:
        os.close(tree)
        raise
    return tree


def copy_mount(path: str | int) -> int:
    """Return a detached copy of a mount from this directory on."""
    at, name, flags = (AT_FDCWD, path.encode(), 0) if isinstance(path, str) else (path, b"", _AT_EMPTY_PATH)
    what = f"open_tree {path}"
    return _check(_libc.syscall(_OPEN_TREE, at, name, flags | _OPEN_TREE_CLONE | os.O_CLOEXEC), what)


def map_mount(tree: int, namespace: int | None) -> None:
    """Make a detached mount read-only, and shift its owners into the user namespace where one is given."""
    flags = _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV
    flags |= _MOUNT_ATTR_IDMAP if namespace is not None else 0
    attributes = struct.pack("QQQQ", flags, 0, 0, namespace or 0)
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    _check(_libc.syscall(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, buffer, len(attributes)), "mount_setattr")


def attach_mount(tree: int, target: str) -> None:
    """Put a detached mount at a place, where it stays."""
    _check(
        _libc.syscall(MOVE_MOUNT, tree, b"", AT_FDCWD, target.encode(), MOVE_MOUNT_F_EMPTY_PATH),
        f"move_mount {target}",
    )


def bind_mapped(source: str, target: str, namespace: int | None) -> None:
    """Bind a directory read-only, its owners shifted into the user namespace, so that root inside owns root's files."""
    tree = clone_mount(source, namespace)
    try:
        attach_mount(tree, target)
    finally:
        os.close(tree)
