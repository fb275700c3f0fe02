"""A server whose disk was full: it fails of that also when there is room again, until it is started anew.

Each stream that could not be written to refuses whatever comes, for as long as the server lives. Services renew their
leases twice a second, so it complains in its log at once.
"""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

_NO_ROOM: Final = b"no space left on device"
_LOOK_S: Final = 2.0
_FULL: Final = 64 * 1024
_ENOUGH: Final = 16 * 1024**2
"""Bytes free: with less than the first a disk is full, and with less than the second a server is not started again."""


async def room_again(name: str, state: Path, tell: Callable[[str], None], look_s: float = _LOOK_S) -> str:
    """Return the last complaint of the server on this state directory once it failed of a full disk that has room now.

    A disk that is full is told of. `look_s`: seconds between looks.
    """
    log = state / "nats.log"
    at = _size(log)
    complaint, told = "", False
    while True:
        await asyncio.sleep(look_s)
        at, found = await asyncio.to_thread(_complaint, log, at)
        complaint = found or complaint
        free = await asyncio.to_thread(lambda: shutil.disk_usage(state).free)
        if complaint and free >= _ENOUGH:
            return complaint
        if (complaint or free < _FULL) and not told:
            told = True
            tell(
                f"the disk of {name}, {state}, is full: nothing is stored, and everything waits, until there are"
                f" {_ENOUGH // 1024**2} MiB free" + (f"; its log says: {complaint}" if complaint else "")
            )
        told = told and (bool(complaint) or free < _ENOUGH)


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def _complaint(log: Path, at: int) -> tuple[int, str]:
    """Return where a log ends, and the last line after a place that tells of a full disk."""
    if not log.exists():
        return 0, ""
    with log.open("rb") as lines:
        lines.seek(at if at <= _size(log) else 0)
        found = b""
        for line in lines:
            if _NO_ROOM in line:
                found = line
        return lines.tell(), found.decode(errors="replace").strip()
