"""A program of its own that stacks archives: `python -I -m ... DIRECTORY ARCHIVE...`, the lowest layer first.

It takes the directory for its root before it reads a name of any archive, so nothing in one (a path that climbs, a link
that points elsewhere) reaches outside; whoever starts it leaves it no privilege but to give files their owners. With
`--layers` names beginning with `.wh.` are deletions, as in the layers of an OCI image. Devices are left out, and named
on standard output.
"""

import bz2
import contextlib
import gzip
import lzma
import os
import shutil
import stat
import sys
import tarfile
from collections.abc import Sequence
from typing import IO, Final

_LOADED: Final = (bz2, gzip, lzma)
"""tarfile imports these when it meets such an archive: too late, once its root is the new directory."""
_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"


def main() -> None:
    """Unpack; exit 1 with one line on standard error when an archive is not whole."""
    layers = sys.argv[1] == "--layers"
    directory, *archives = sys.argv[1 + layers :]
    with contextlib.ExitStack() as stack:
        streams = [(path, stack.enter_context(open(path, "rb"))) for path in archives]
        os.chroot(directory)
        os.chdir("/")
        os.umask(0)
        left_out: list[str] = []
        times: dict[str, float] = {}
        for path, stream in streams:
            try:
                left_out += _unpack(stream, layers, times)
            except (tarfile.TarError, OSError, EOFError, lzma.LZMAError, ValueError) as error:
                kind = " (zstd, which is not read: convert it to gzip)" if _zstd(stream) else ""
                sys.exit(f"{os.path.basename(path)}{kind}: {error or repr(error)}")
    for directory, _, _ in os.walk("/", topdown=False):  # what is put into a directory changes its time
        moment = times.get(directory.strip("/"), 0.0)
        os.utime(directory, (moment, moment))
    print("\n".join(left_out))  # noqa: T201 - whoever started it reads it


def _unpack(stream: IO[bytes], layers: bool, times: dict[str, float]) -> list[str]:
    with tarfile.open(fileobj=stream) as tar:
        if hasattr(tarfile, "fully_trusted_filter"):  # newer Pythons want to be told; the root is the filter
            tar.extraction_filter = tarfile.fully_trusted_filter
        members = tar.getmembers()
        if layers:
            members = _without_deletions(members)
        left_out = [member.name for member in members if member.isdev() and not member.isfifo()]
        for member in members:
            if member.isdev() and not member.isfifo():
                continue
            _make_room(member)
            if member.isdir():
                times[os.path.normpath(f"/{member.name}").strip("/")] = member.mtime
            tar.extract(member, ".", numeric_owner=True)
            if member.issym():  # which tarfile leaves as it is
                os.utime(member.name, (member.mtime, member.mtime), follow_symlinks=False)
    return left_out


def _without_deletions(members: Sequence[tarfile.TarInfo]) -> list[tarfile.TarInfo]:
    """Delete what a layer deletes of those below, and return the rest of it.

    What a layer puts a directory in the place of goes first: where that is a link, it would be looked through.
    """
    for member in members:
        if member.isdir():
            _make_room(member)
    kept: list[tarfile.TarInfo] = []
    for member in members:
        directory, _, name = member.name.rpartition("/")
        if name == _OPAQUE:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                for entry in os.listdir(directory or "."):
                    _remove(os.path.join(directory, entry))
        elif name.startswith(_WHITEOUT):
            if name.removeprefix(_WHITEOUT) in ("", ".", ".."):
                raise ValueError(f"{member.name!r} deletes nothing that can be deleted")
            _remove(os.path.join(directory, name.removeprefix(_WHITEOUT)))
        else:
            kept.append(member)
    return kept


def _make_room(member: tarfile.TarInfo) -> None:
    """Remove what stands in a member's place: it would be written through a link, or not at all."""
    try:
        mode = os.lstat(member.name).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not (member.isdir() and stat.S_ISDIR(mode)) and os.path.normpath(member.name) != ".":
        _remove(member.name)


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            os.unlink(path)


def _zstd(stream: IO[bytes]) -> bool:
    with contextlib.suppress(OSError):
        stream.seek(0)
        return stream.read(4) == b"\x28\xb5\x2f\xfd"
    return False


if __name__ == "__main__":
    main()
