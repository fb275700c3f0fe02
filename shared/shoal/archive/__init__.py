"""The log as something to keep: archives of it, and one way to read it wherever it is.

    import shoal
    from shoal.wire.codec import decode

    async with shoal.archive.open("june.shoal") as history:
        for stream in await history.streams():
            async for delivery in history.read(stream):
                print(stream, delivery.sequence, decode(delivery.payload))

`open` takes a file, a directory or `s3://bucket/prefix`; `History` says what can be asked. Needs `pip install
'shoal[archive]'`, and no broker.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.archive.source import (
    ArchiveError as ArchiveError,
    Bounds as Bounds,
    DamagedError as DamagedError,
    GapError as GapError,
    History as History,
    merged as merged,
)

if TYPE_CHECKING:
    from shoal.archive.archived import ArchiveHistory


@asynccontextmanager
async def open(path: str | Path, *, damaged: bool = False) -> "AsyncIterator[ArchiveHistory]":
    """Open an archive: a file, a directory of them, or `s3://bucket/prefix`.

    One that is damaged, or has no end, is refused unless it may be `damaged`: it is then read up to where it is good,
    and its `trouble()` says why not further. Raises DamagedError, ArchiveError, BadValueError.
    """
    from shoal.archive.archived import ArchiveHistory  # here: reading live history takes no Zstandard

    history = await ArchiveHistory.open(path, damaged=damaged)
    try:
        yield history
    finally:
        await history.close()
