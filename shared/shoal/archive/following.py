"""Archiving without end: round after round, what came is added; when a file is large or old enough, the next begins.

Where it was, the archive itself says. So a process that is killed, or loses its broker, goes on without a gap and
without a copy; and before it adds to a stream, it makes sure that the log is still the one that was archived.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from importlib.metadata import version
from pathlib import Path
from typing import Final

from shoal.archive.live import LiveHistory
from shoal.archive.looking import Found
from shoal.archive.places import LocalFile
from shoal.archive.planning import in_order, partitions
from shoal.archive.reader import ArchiveFile
from shoal.archive.records import FORMAT, Header
from shoal.archive.series import name_of
from shoal.archive.shelves import Shelf, files_in
from shoal.archive.source import NOTHING, ArchiveError, Bounds, ConflictError
from shoal.archive.thinning import due
from shoal.archive.writer import Writer
from shoal.bus.protocol import Bus, BusError, Delivery
from shoal.wire import VERSION, streams

EVERY_S: Final = 5.0
_LONGEST_PAUSE_S: Final = 30.0
_VALUES_S: Final = 60.0
Tell = Callable[[str], None]
_Mark = tuple[int, int, str, int]


class Follower:
    """Archives a cluster's streams onto a shelf. `roll_bytes`, `roll_s`: how large or old a file becomes.

    `tell` gets a sentence for each file that has its end, and for all that goes wrong.
    """

    def __init__(
        self, bus: Bus, shelf: Shelf, *, roll_bytes: int, roll_s: float, every_s: float = EVERY_S, tell: Tell
    ) -> None:
        self._history = LiveHistory(bus)
        self._shelf = shelf
        self._roll_bytes = roll_bytes
        self._roll_s = roll_s
        self._every_s = every_s
        self._tell = tell
        self._writer: Writer | None = None
        self._before: ArchiveFile | None = None  # the file before the one that is written
        self._last: dict[str, _Mark] = {}
        self._values: Mapping[str, bytes] = {}
        self._values_at = 0.0
        self._cluster = ""
        self._begun = False  # an earlier round, or process, archived something
        self._messages = 0  # in files that are let go of

    @property
    def messages(self) -> int:
        """How many this process has written; what is read, but not written yet, is not among them."""
        return self._messages + (self._writer.messages if self._writer is not None else 0)

    async def run(self, stop: asyncio.Event) -> None:
        """Archive until told to stop; then what came is written, and, for a bucket, sent.

        Trouble with the broker, the disk or the bucket is told, and tried again. Raises ConflictError where going on
        would make the archive wrong.
        """
        pause = 0.0
        try:
            while not stop.is_set():
                try:
                    await self.round()
                    pause = 0.0
                except ConflictError:
                    raise
                except (BusError, ArchiveError) as error:
                    self.close()
                    if stop.is_set():
                        self._tell_left(error)
                        return
                    pause = min(pause * 2 or 1.0, _LONGEST_PAUSE_S)
                    self._tell(f"{error}; trying again in {pause:g} s")
                    if await _wait(stop, pause):
                        self._tell_left(error)
                        return  # who did not answer a moment ago is not asked again by somebody in a hurry
                    continue
                await _wait(stop, self._every_s)
            await self._leave()
        finally:
            self.close()

    async def round(self) -> None:
        """Add what came since the last one. Raises ConflictError, ArchiveError, BusError."""
        if self._writer is None:
            await self._begin()
        await self._look_at_values()
        there = await self._history.all_bounds()
        for name in in_order(list(there)):
            await self._add(name, there[name])
        await self._add_states()
        writer = self._writer
        self._begun |= writer is not None
        if writer is not None:
            writer.flush()
            age_s = time.time() - writer.header.made_ms / 1000
            if writer.account.blocks and age_s >= self._roll_s:
                await self._roll(writer)

    def close(self) -> None:
        """Let go of the file that is written, as it is; the next round goes on with it."""
        if self._writer is not None:
            self._messages += self._writer.messages
            self._writer.close()
            self._writer = None

    # --- files

    async def _begin(self) -> None:
        """Go on with what there is: keep what has its end, and open the one that has none."""
        before = await self._shelf.last()
        files = await asyncio.to_thread(files_in, self._shelf.directory)
        for path in files if self._shelf.sends else files[-2:]:
            found = await self._opened(path, before, newest=path == files[-1])
            if isinstance(found, Writer):
                self._writer = found
            else:
                before = found or before
        self._before = before
        header = self._writer.header if self._writer is not None else before.header if before is not None else None
        self._cluster = header.cluster if header is not None else ""
        self._begun = header is not None
        self._values, self._values_at = {}, 0.0
        self._last.clear()

    async def _opened(self, path: Path, before: ArchiveFile | None, *, newest: bool) -> Writer | ArchiveFile | None:
        """Return a file to go on with, or one that is whole and kept now; None for one that is of no use any more."""

        async def may_cut(found: Found) -> bool:
            if found.trouble is not None and not newest:
                raise ConflictError(
                    f"{found.trouble}; another file follows it, so it is left as it is: put it back as it was, or name"
                    f" another directory than {self._shelf.name}"
                )
            return not found.altered or await self._nothing_lost(found)

        found = await Writer.resume(path, may_cut)
        if isinstance(found, Found):
            if found.header is None:
                await asyncio.to_thread(path.unlink)
                return None
            whole = await ArchiveFile.open(LocalFile(path))
            if before is None or whole.header.segment > before.header.segment:
                _check_follows(whole.name, whole.header, before)
                return await self._shelf.keep(path)
            await self._shelf.keep(path)
            return None
        if before is not None and found.header.segment <= before.header.segment:
            found.close()
            self._tell(f"{path} is left from before what is in {self._shelf.name}: removed")
            await asyncio.to_thread(path.unlink)
            return None
        try:
            _check_follows(str(path), found.header, before)
        except ConflictError:
            found.close()
            raise
        return found

    async def _nothing_lost(self, found: Found) -> bool:
        """Return whether the broker still has all that is behind the good part of an altered file."""
        assert found.header is not None
        await self._values_of(found.header.cluster)
        there = await self._history.all_bounds()
        here = found.account.positions
        ends = found.footer.positions if found.footer is not None else {name: here.get(name, 0) for name in there}
        for name, last in {**here, **ends}.items():
            at, kept = here.get(name, 0), there.get(name, NOTHING)
            if (at < last or found.footer is None) and not (kept.first <= at + 1 and last <= kept.last):
                return False
        return not found.lost_states

    def _new(self) -> Writer:
        """Return the next file."""
        before = self._before
        segment = before.header.segment + 1 if before is not None else 1
        header = Header(
            format=FORMAT,
            wire=VERSION,
            made_by=f"shoal {version('shoal')}",
            made_ms=time.time_ns() // 1_000_000,
            cluster=self._cluster,
            values={streams.CLUSTER_BUCKET: self._values},
            series=before.header.series if before is not None else secrets.token_hex(8),
            segment=segment,
            previous=before.digest if before is not None else b"",
            positions=before.account.positions if before is not None else {},
            newest_ms=before.account.newest_ms if before is not None else 0,
        )
        return Writer.create(self._shelf.directory / name_of(segment), header)

    async def _roll(self, writer: Writer) -> None:
        writer.finish()
        self._messages += writer.messages
        self._writer = None
        messages = sum(total.count for total in writer.account.totals.values())
        self._before = await self._shelf.keep(writer.path)
        self._tell(f"{writer.path.name}: {messages:,} messages, {writer.written:,} bytes, {writer.digest.hex()}")

    async def _leave(self) -> None:
        """Write what came; a bucket gets it now, as nobody knows when this machine goes on."""
        try:
            await self.round()
            if self._writer is not None and self._writer.account.blocks and self._shelf.sends:
                await self._roll(self._writer)
        except (BusError, ArchiveError) as error:
            self._tell_left(error)

    def _tell_left(self, error: Exception) -> None:
        self._tell(f"{error}; what is not archived yet will be by the next process")

    # --- what is added

    async def _look_at_values(self) -> None:
        """See that it is still the same cluster, and note how it is set up, where that changed."""
        now = time.monotonic()
        if self._values and now - self._values_at < _VALUES_S:
            return
        values = await self._values_of(self._cluster)
        if streams.CELLS_KEY not in values:
            raise ArchiveError("no cluster was ever set up there")
        self._cluster = values.get(streams.ID_KEY, b"").decode()
        changed = self._writer is not None and values != (self._values or await self._archived_values())
        self._values, self._values_at = values, now
        if self._writer is not None and changed:
            self._writer.values({streams.CLUSTER_BUCKET: values})

    async def _values_of(self, cluster: str) -> Mapping[str, bytes]:
        """Return how the cluster is set up. Raises ConflictError where it is another than this one."""
        values = await self._history.values(streams.CLUSTER_BUCKET)
        if cluster and values.get(streams.ID_KEY, b"").decode() != cluster:
            raise ConflictError(f"{self._shelf.name} is the archive of another cluster; name another directory")
        return values

    async def _archived_values(self) -> Mapping[str, bytes]:
        assert self._writer is not None
        file = await ArchiveFile.open(LocalFile(self._writer.path), damaged=True)
        return await file.values(streams.CLUSTER_BUCKET)

    async def _add(self, stream: str, there: Bounds) -> None:
        """Add what came in one stream."""
        at = self._position(stream)
        if there.last < at:
            raise ConflictError(
                f"{stream} ends at {there.last}, and is archived up to {at} already: the broker lost a part of its log;"
                f" name another directory than {self._shelf.name}"
            )
        if there.last == at:
            return
        if (at or self._begun) and there.first > at + 1:
            self._open().miss(stream, at + 1, there.first - 1)
            self._tell(f"messages {at + 1} to {there.first - 1} of {stream} are not kept any more, and not archived")
            at = there.first - 1
        begin = max(at, there.first - 1)
        again = begin - 1 if at and there.first <= at else begin  # one more, to see that it is the one we have
        async with aclosing(self._history.read(stream, after=again, until=there.last)) as found:
            async for delivery in found:
                if delivery.sequence <= begin:
                    await self._check_known(stream, delivery)
                    continue
                if delivery.sequence > begin + 1:
                    self._open().miss(stream, begin + 1, delivery.sequence - 1)
                writer = self._open()
                writer.append(stream, delivery)
                self._last[stream] = _mark(delivery)
                begin = delivery.sequence
                if writer.written >= self._roll_bytes:
                    await self._roll(writer)

    def _position(self, stream: str) -> int:
        if self._writer is not None:
            return self._writer.position(stream)
        return self._before.account.positions.get(stream, 0) if self._before is not None else 0

    def _open(self) -> Writer:
        if self._writer is None:
            self._writer = self._new()
        return self._writer

    async def _check_known(self, stream: str, delivery: Delivery) -> None:
        """Raise ConflictError unless a message is the one that was archived under its sequence."""
        known = self._last.get(stream)
        if known is None:
            files = [self._before] if self._before is not None else []
            if self._writer is not None:
                files.append(await ArchiveFile.open(LocalFile(self._writer.path), damaged=True))
            for file in files:
                async with aclosing(file.read(stream, after=delivery.sequence - 1)) as found:
                    async for archived in found:
                        known = _mark(archived)
        if known is not None and known != _mark(delivery):
            raise ConflictError(
                f"message {delivery.sequence} of {stream} is another one than was archived: the broker lost a part of"
                f" its log; name another directory than {self._shelf.name}"
            )

    async def _add_states(self) -> None:
        """Add the states that services saved, thinned."""
        writer = self._writer
        if writer is None:
            return
        for partition in partitions(int(self._values[streams.CELLS_KEY])):
            for generation in reversed(await self._history.generations(partition)):
                if due(writer.account.saved, partition, generation):
                    state = await self._history.checkpoint(partition, generation)
                    if state is not None and state.sequence <= writer.position(state.stream):
                        writer.checkpoint(state)


def _mark(delivery: Delivery) -> _Mark:
    """Return what tells a message from others."""
    return delivery.sequence, delivery.time_ms, delivery.id, hash(delivery.payload)


def _check_follows(name: str, header: Header, before: ArchiveFile | None) -> None:
    if before is not None and (header.segment, header.previous) != (before.header.segment + 1, before.digest):
        raise ConflictError(f"{name} does not follow {before.name}; move one of them away")
    if before is None and header.segment > 1 and not header.previous:
        raise ConflictError(f"{name} has no beginning")


async def _wait(stop: asyncio.Event, seconds: float) -> bool:
    """Return whether to stop: at once, or after so long."""
    try:
        async with asyncio.timeout(seconds):
            return await stop.wait()
    except TimeoutError:
        return stop.is_set()
