"""Where commands read history: from the cluster's broker, from an archive, or from both as one."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import click

from shoal.cli.exits import Exit, Failure
from shoal.cli.options import url_option
from shoal.cli.output import say

if TYPE_CHECKING:
    from shoal.archive.source import DamagedError, History
    from shoal.bus.protocol import Bus


def history_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--from`, `--live` and `--url`; the command gets them as `source: Source`."""
    from functools import wraps

    @click.option(
        "--from",
        "archives",
        multiple=True,
        metavar="ARCHIVE",
        help="Read this file, directory or s3://bucket/prefix, and no broker; as often as you like, the oldest first.",
    )
    @click.option("--live", is_flag=True, help="After what is --from an archive, go on with what the broker keeps.")
    @url_option
    @wraps(command)
    def with_source(*args: Any, archives: tuple[str, ...], live: bool, url: str | None, **kwargs: Any) -> Any:
        if live and not archives:
            raise Failure(Exit.USAGE, "--live is for what goes on behind an archive; name one with --from")
        return command(*args, source=Source(archives, live or not archives, url), **kwargs)  # fmt: skip

    return with_source


class Source:
    """Where history is to be read. `trouble`: what is wrong with an archive that is read all the same."""

    def __init__(self, archives: tuple[str, ...], live: bool, url: str | None) -> None:
        self.archives = archives
        self._live = live
        self._url = url
        self.trouble: DamagedError | None = None

    @asynccontextmanager
    async def open(self) -> "AsyncIterator[History]":
        """Open it. What is damaged is read up to where it is good, of which people are told.

        Raises DamagedError for what cannot be done with the good part: that it is damaged is why.
        """
        from shoal.archive.source import ArchiveError, ConflictError, DamagedError

        try:
            async with self._opened() as history:
                yield history
        except (DamagedError, ConflictError):
            raise
        except ArchiveError as error:
            if self.trouble is None:
                raise
            raise DamagedError(f"{self.trouble}; of what is good: {error}") from error

    @asynccontextmanager
    async def _opened(self) -> "AsyncIterator[History]":
        from shoal.archive.archived import ArchiveHistory
        from shoal.archive.joined import Joined
        from shoal.archive.live import LiveHistory

        parts: list[History] = []
        for path in self.archives:
            archive = await ArchiveHistory.open(path, damaged=True)
            trouble = await archive.trouble()
            if trouble is not None and not (archive.series.several and trouble.unfinished):
                self.trouble = trouble
                say(f"shoal: {trouble}; what follows is of what is good")
            parts.append(archive)
        if not self._live:
            yield parts[0] if len(parts) == 1 else Joined(*parts)
            return
        async with broker(self._url) as bus:
            parts.append(LiveHistory(bus))
            yield parts[0] if len(parts) == 1 else Joined(*parts)

    @property
    def status(self) -> int:
        """The exit status of a command that did what was asked."""
        return Exit.OK if self.trouble is None else Exit.DAMAGED


@asynccontextmanager
async def broker(url: str | None) -> "AsyncIterator[Bus]":
    """Connect to a cluster's broker. Raises Unreachable, NotAllowed, BadRequest."""
    from shoal.bus.jetstream import JetStreamBus
    from shoal.bus.protocol import BusError
    from shoal.client.cluster import DEFAULT_URL
    from shoal.client.errors import Unreachable, without_answer
    from shoal.wire.streams import CELLS_KEY, CLUSTER_BUCKET

    address = url or os.environ.get("SHOAL_URL") or DEFAULT_URL
    try:
        bus = await JetStreamBus.connect(address, name="shoal-history", connect_timeout=5.0)
    except BusError as error:
        raise without_answer(address, error) from error
    try:
        if await bus.get(CLUSTER_BUCKET, CELLS_KEY) is None:
            raise Unreachable(address, "a broker does, but no cluster was ever set up there")
        yield bus
    finally:
        await bus.close()
