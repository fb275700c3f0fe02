"""What a sandbox wrote, made into an EROFS file with mkfs.erofs."""

import os
import stat
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from shoal_executor.drivers.protocol import DriverError, UnsupportedError

_MAKE_S: Final = 300.0
_LOOK_S: Final = 0.25
_TIMES: Final = 2
_LEAST: Final = 1 << 30
"""mkfs.erofs reads the holes of files, too: a GiB of them takes it two seconds, and a sandbox stands still meanwhile.

A disk is kept whose files say that they are so many times its size together, or this many bytes.
"""
_SAID: Final = 200
"""Characters of a path that are told: it is as long as whoever wrote it liked."""
DEEPEST: Final = 180
"""Disks and layers that a sandbox may stand on for every driver to start it.

zygote hands its layers over as descriptors, of which a message holds 253, with up to four others. gvisor names all of
them in the page of a mount's options, 22 bytes each where descriptors have seven digits: with the two that it adds
itself and its upper directory, 180 fit.
"""
_NOBODY: Final = "00000000-0000-0000-0000-000000000000"  # a disk's UUID: equal content, equal bytes


def make_layer(
    directory: str,
    layer: Path,
    *,
    within: Sequence[str] = (),
    owner: int = 0,
    compress: bool = True,
    halt: threading.Event | None = None,
) -> None:
    """Write what is in a directory to a file that is not there yet.

    Where mkfs.erofs reads what a stranger wrote, `within` is a command that takes its privileges away, before it;
    `owner`, a uid of this host, is who it then is. `halt`: it is given up soon after this is set. Raises DriverError
    (no room on the node, for one), UnsupportedError (what a stranger wrote is mostly holes) and OSError; what was
    written by then is the caller's to remove.
    """
    if within:
        _look_for_holes(directory)
    target = os.open(layer, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.fchown(target, owner, owner)
        command = [*within, "mkfs.erofs", "-d1", *(("-zlz4",) if compress else ()), f"-U{_NOBODY}"]
        command += [f"/proc/self/fd/{target}", directory]
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        code, said = _run(command, env, target, halt)
        os.fchown(target, 0, 0)
        if code:
            lines = said.decode(errors="replace").strip().splitlines()
            room = os.fstatvfs(target)
            why = "there is no room left on the node" if room.f_bavail * room.f_frsize < 1 << 20 else ""
            raise DriverError(f"the disk could not be kept: {why or (lines[-1] if lines else 'mkfs.erofs failed')}")
    finally:
        os.close(target)


def _run(command: list[str], env: dict[str, str], target: int, halt: threading.Event | None) -> tuple[int, bytes]:
    """Return its status, and what it complained of. Raises DriverError where it was given up."""
    until = time.monotonic() + _MAKE_S
    with subprocess.Popen(
        command, pass_fds=(target,), env=env, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        while True:
            try:
                _, said = process.communicate(timeout=_LOOK_S)
            except subprocess.TimeoutExpired:
                halted = halt is not None and halt.is_set()
                if halted or time.monotonic() > until:
                    process.kill()
                    why = "its sandbox ended meanwhile" if halted else f"it took longer than {_MAKE_S:g} s"
                    raise DriverError(f"the disk was not kept: {why}") from None
            else:
                return process.returncode, said


def _look_for_holes(directory: str) -> None:
    """Raise UnsupportedError where files say that they are far larger than the filesystem that they are on."""
    room = os.statvfs(directory)
    most = max(_TIMES * room.f_blocks * room.f_frsize, _LEAST)
    total, largest, its_size = 0, "", 0
    seen: set[tuple[int, int]] = set()
    for path in _files(directory):
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode) or (found.st_dev, found.st_ino) in seen:
            continue
        if found.st_nlink > 1:
            seen.add((found.st_dev, found.st_ino))
        total += found.st_size
        if found.st_size > its_size:
            largest, its_size = path.removeprefix(directory), found.st_size
    if total > most:
        named = os.fsencode(largest).decode(errors="backslashreplace")[:_SAID]
        raise UnsupportedError(
            f"the disk cannot be kept: its files are {total} bytes with their holes, of at most {most}, and the largest"
            f" is {named} of {its_size}: remove sparse files, or make them smaller"
        )


def _files(directory: str) -> Iterator[str]:
    """Yield the paths of what is no directory below one, however deep; what cannot be listed is passed over.

    That is not for `os.walk`, which before Python 3.12 takes a frame of the stack for each directory within another.
    """
    places = [directory]
    while places:
        try:
            with os.scandir(places.pop()) as entries:
                found = [(entry.path, entry.is_dir(follow_symlinks=False)) for entry in entries]
        except OSError:
            continue
        places += [path for path, deeper in found if deeper]
        yield from (path for path, deeper in found if not deeper)
