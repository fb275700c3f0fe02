"""What a sandbox wrote, made into an EROFS file with mkfs.erofs."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from shoal_executor.drivers.protocol import DriverError

_MAKE_S: Final = 300.0
DEEPEST: Final = 180
"""Disks and layers that a sandbox may stand on for every driver to start it.

zygote hands its layers over as descriptors, of which a message holds 253, with up to four others. gvisor names all of
them in the page of a mount's options, 22 bytes each where descriptors have seven digits: with the two that it adds
itself and its upper directory, 180 fit.
"""
_NOBODY: Final = "00000000-0000-0000-0000-000000000000"  # a disk's UUID: equal content, equal bytes


def make_layer(
    directory: str, layer: Path, *, within: Sequence[str] = (), owner: int = 0, compress: bool = True
) -> None:
    """Write what is in a directory to a file that is not there yet.

    Where mkfs.erofs reads what a stranger wrote, `within` is a command that takes its privileges away, before it;
    `owner`, a uid of this host, is who it then is. Raises DriverError (no room on the node, for one) and OSError; what
    was written by then is the caller's to remove.
    """
    target = os.open(layer, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.fchown(target, owner, owner)
        command = [*within, "mkfs.erofs", "-d1", *(("-zlz4",) if compress else ()), f"-U{_NOBODY}"]
        command += [f"/proc/self/fd/{target}", directory]
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        done = subprocess.run(
            command, pass_fds=(target,), env=env, cwd="/", capture_output=True, timeout=_MAKE_S, check=False
        )
        os.fchown(target, 0, 0)
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            room = os.fstatvfs(target)
            why = "there is no room left on the node" if room.f_bavail * room.f_frsize < 1 << 20 else ""
            raise DriverError(f"the disk could not be kept: {why or (lines[-1] if lines else 'mkfs.erofs failed')}")
    except subprocess.TimeoutExpired:
        raise DriverError(f"the disk was not kept within {_MAKE_S:g} s") from None
    finally:
        os.close(target)
