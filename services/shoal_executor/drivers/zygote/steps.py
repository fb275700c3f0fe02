"""Kernel calls prepared by a fork server, and made by its clones.

A clone copies each page that it writes to, and Python writes to whatever it looks at: reference counts are in the
objects. A call that goes through functions and classes of its own copies pages of all of them. So what can be
worked out before the clone is, and what is left is one loop over calls of the C library, whose parts lie together.
"""

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from shoal_executor.drivers import kernel

_SIOCSIFFLAGS: Final = 0x8914
_UP: Final = struct.pack("16sh22x", b"lo", 0x1 | 0x40)  # IFF_UP | IFF_RUNNING
_AF_INET: Final = 2
_SOCK_DGRAM_CLOEXEC: Final = 2 | os.O_CLOEXEC
_CAPABILITIES: Final = 64  # more than any kernel knows

_libc = ctypes.PyDLL(None, use_errno=True)  # keeps the interpreter's lock, which nobody else wants
_ulong, _text = ctypes.c_ulong, ctypes.c_char_p
_libc.mount.argtypes = (_text, _text, _text, _ulong, _text)
_libc.prctl.argtypes = (ctypes.c_int, _ulong, _ulong, _ulong, _ulong)
_libc.ioctl.argtypes = (ctypes.c_int, _ulong, _text)
_libc.write.argtypes = (ctypes.c_int, _text, ctypes.c_size_t)
_libc.mkdir.argtypes = (_text, ctypes.c_uint)


class _Program(ctypes.Structure):
    """A compiled filter, as the kernel takes it."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


class Step(NamedTuple):
    """One call, which fails with a negative result; `what` is for the error."""

    what: str
    call: Callable[..., int]
    arguments: tuple[Any, ...]


def take(steps: Iterable[Step]) -> None:
    """Make the calls in their order. Raises OSError, which says what the one that failed was for."""
    for what, call, arguments in steps:
        if call(*arguments) < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{what}: {os.strerror(number)}")


def prctl(option: int, value: int = 0) -> Step:
    """Set an attribute of this process."""
    return Step(f"prctl {option}", _libc.prctl, (option, value, 0, 0, 0))


def write(fd: int, data: bytes, what: str) -> Step:
    """Write something short."""
    return Step(what, _libc.write, (fd, data, len(data)))


def told(path: str, data: bytes) -> Step:
    """Write something short to a file, where it is there and may be written."""
    return Step(f"write to {path}", _told, (path.encode(), data))


def unshare(flags: int) -> Step:
    """Leave namespaces for new ones."""
    return Step(f"unshare {flags:#x}", _libc.unshare, (flags,))


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> Step:
    """Mount."""
    arguments = source.encode(), target.encode(), kind.encode() or None, flags, data.encode() or None
    return Step(f"mount {kind or 'bind'} at {target}", _libc.mount, arguments)


def bind(source: str, target: str, *, recursive: bool = False) -> Step:
    """Make source appear at target, too."""
    return mount(source, target, flags=kernel.MS_BIND | (kernel.MS_REC if recursive else 0))


def read_only(path: str, flags: int) -> Step:
    """Make what is there, if anything is, read-only."""
    return Step(f"make {path} read-only", _read_only, (path.encode(), flags))


def masked(path: str) -> Step:
    """Have nothing in this file, if it is there."""
    return Step(f"mask {path}", _masked, (path.encode(),))


def attach_mount(tree: int, target: str) -> Step:
    """Put a detached mount at a place, where it stays."""
    arguments = kernel.MOVE_MOUNT, tree, b"", kernel.AT_FDCWD, target.encode(), kernel.MOVE_MOUNT_F_EMPTY_PATH
    return Step(f"move_mount {target}", _libc.syscall, arguments)


def mkdir(path: str, mode: int) -> Step:
    """Make a directory."""
    return Step(f"mkdir {path}", _libc.mkdir, (path.encode(), mode))


def be_directory(name: str, mode: int) -> Step:
    """See to it that the template has this directory in its root, where we are."""
    return Step(f"mkdir {name}", _be_directory, (name.encode(), mode))


def chdir(path: str) -> Step:
    """Go there."""
    return Step(f"chdir {path}", _libc.chdir, (path.encode(),))


def pivot_here() -> list[Step]:
    """Make the current directory the root, and let go of the old one. The directory must be a mount point."""
    return [
        Step("pivot_root", _libc.syscall, (kernel.PIVOT_ROOT, b".", b".")),
        Step("unmount the old root", _libc.umount2, (b".", kernel.MNT_DETACH)),
        chdir("/"),
    ]


def sethostname(name: str) -> Step:
    """Name the host."""
    return Step("sethostname", _libc.sethostname, (name.encode(), len(name)))


def loopback_up() -> Step:
    """Bring the network's own interface up."""
    return Step("bring lo up", _loopback_up, ())


def place(fd: int, number: int) -> Step:
    """Have a descriptor at this number."""
    return Step(f"dup {fd}", _libc.dup3, (fd, number, os.O_CLOEXEC))


def drop_bounding(keep: frozenset[int]) -> list[Step]:
    """Take all capabilities but these out of reach for ever."""
    known = [each for each in range(_CAPABILITIES) if _libc.prctl(kernel.PR_CAPBSET_READ, each, 0, 0, 0) >= 0]
    return [prctl(kernel.PR_CAPBSET_DROP, each) for each in known if each not in keep]


def set_capabilities(keep: frozenset[int]) -> Step:
    """Have exactly these capabilities, none inheritable."""
    return Step("capset", _libc.capset, kernel.capabilities(keep))


def load_filter(program: bytes) -> Step:
    """Install a compiled seccomp filter on this process and all it starts."""
    return Step("seccomp", _load_filter, (_Program(len(program) // 8, program),))


# --- what takes more than one call


def _be_directory(name: bytes, mode: int) -> int:
    if _libc.mkdir(name, mode) == 0:
        os.chmod(name, mode)  # whatever the umask takes away
    elif ctypes.get_errno() != errno.EEXIST:
        return -1
    found = os.lstat(name).st_mode
    if not stat.S_ISDIR(found):
        it = "a symbolic link" if stat.S_ISLNK(found) else "no directory"  # a mount would follow a link
        raise OSError(0, f"the template's /{name.decode()} is {it}; it must be a directory, or not there")
    return 0


def _told(path: bytes, data: bytes) -> int:
    fd = _libc.open(path, os.O_WRONLY | os.O_CLOEXEC)
    if fd >= 0:
        _libc.write(fd, data, len(data))
        _libc.close(fd)
    return 0


def _read_only(path: bytes, flags: int) -> int:
    if _libc.mount(path, path, None, kernel.MS_BIND | kernel.MS_REC, None) < 0:
        return 0 if ctypes.get_errno() == errno.ENOENT else -1
    flags |= kernel.MS_BIND | kernel.MS_REMOUNT | kernel.MS_RDONLY
    return int(_libc.mount(b"none", path, None, flags, None))


def _masked(path: bytes) -> int:
    if _libc.mount(b"/dev/null", path, None, kernel.MS_BIND, None) < 0:
        return 0 if ctypes.get_errno() == errno.ENOENT else -1
    return 0


def _loopback_up() -> int:
    probe = _libc.socket(_AF_INET, _SOCK_DGRAM_CLOEXEC, 0)
    return probe if probe < 0 else int(_libc.ioctl(probe, _SIOCSIFFLAGS, _UP))  # closed with all others


def _load_filter(program: _Program) -> int:
    return int(_libc.prctl(kernel.PR_SET_SECCOMP, 2, ctypes.addressof(program), 0, 0))
