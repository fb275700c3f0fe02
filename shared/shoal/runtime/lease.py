"""Who serves a partition, and how far it is done: one record of a key-value bucket for each partition.

The record is replaced only by whoever has seen its newest revision, so at any time one process holds it. Nobody
compares clocks: a standby takes a record over that it has seen unchanged for `ttl_s` of its own time, or whose holder
it knows to be dead. The holder's position stands in the same record, so a process that lost its lease cannot move it,
and whoever takes over knows exactly which effects are stored. A split brain does no harm (both sides publish the same
ids); the lease is there so that the work is done once.
"""

import asyncio
import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from shoal.bus.protocol import Bus, Entry
from shoal.wire.streams import LEASE_BUCKET

TTL_S: Final = 2.0
"""A holder renews four times in this; kill -9 to takeover takes at most this and an eighth of it."""


class Owner(msgspec.Struct, frozen=True):
    """A process, so that others on the same machine can tell whether it lives. `start` in clock ticks since boot."""

    id: str
    place: str = ""
    pid: int = 0
    start: int = 0

    @staticmethod
    def local() -> "Owner":
        """Return this process's identity, a new one at each call."""
        pid = os.getpid()
        name = "".join(c if c.isalnum() else "-" for c in socket.gethostname())[:32]
        return Owner(f"{name}-{pid}-{secrets.token_hex(4)}", _place(), pid, start_time(pid) or 0)

    def known_dead(self) -> bool:
        """Return whether it surely no longer runs: only a process of the same machine and pid namespace can tell,

        and only where /proc shows the processes of others.
        """
        if not self.place or self.place != _place() or start_time(1) is None:
            return False
        return start_time(self.pid) != self.start


NOBODY: Final = Owner("")


class Record(msgspec.Struct, frozen=True):
    """A partition's record. `epoch` counts its holders; `position` is the last sequence whose effects are all stored,

    a message that the broker stored at `time_ms` (0 where that is not known); `beat` changes with every renewal.
    """

    owner: Owner = NOBODY
    epoch: int = 0
    position: int = 0
    beat: int = 0
    time_ms: int = 0

    def moved(self, position: int, time_ms: int) -> "Record":
        """Return the record with the position moved there, if that is further."""
        further = position > self.position
        return msgspec.structs.replace(self, position=position, time_ms=time_ms) if further else self


class Turns:
    """Which partitions this process should lead; this one leads whatever is free (`shoal.runtime.spread` shares)."""

    def may_take(self, name: str) -> bool:
        """Return whether to take a partition that nobody serves."""
        return True

    def should_yield(self, name: str) -> bool:
        """Return whether to hand a partition we lead to another process."""
        return False

    def leads(self, name: str, leading: bool) -> None:
        """Note that we lead a partition, or no longer do."""


class LeaseLostError(Exception):
    """Another process holds the lease now."""


class Lease:
    """One process's view of one partition's record."""

    def __init__(
        self,
        bus: Bus,
        name: str,
        owner: Owner,
        *,
        ttl_s: float = TTL_S,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._bus = bus
        self._name = name
        self._owner = owner
        self._clock = clock or asyncio.get_running_loop().time
        self._revision = 0
        self._seen_at: float | None = None
        self.ttl_s = ttl_s
        self.record = Record()
        self.limit: int | None = None
        """The next taker's position is not beyond this: set where the log turned out to be another one."""

    @property
    def held(self) -> bool:
        """Whether this process holds it, as far as it knows."""
        return self.record.owner.id == self._owner.id

    @property
    def position(self) -> int:
        """The last sequence whose effects are all stored."""
        return self.record.position if self.limit is None else min(self.record.position, self.limit)

    async def look(self) -> bool:
        """Read the record; returns whether it may be taken."""
        self._see(await self._bus.get(LEASE_BUCKET, self._name))
        owner = self.record.owner
        if not owner.id or owner.known_dead():
            return True
        return self._seen_at is not None and self._clock() - self._seen_at >= self.ttl_s

    def _see(self, entry: Entry | None) -> None:
        revision = entry.revision if entry else 0
        if revision != self._revision or self._seen_at is None:
            self._revision, self._seen_at = revision, self._clock()
            self.record = msgspec.json.decode(entry.value, type=Record) if entry else Record()

    async def take(self) -> bool:
        """Make it ours if it still is as it was last seen; returns whether it is."""
        known = self.position == self.record.position
        time_ms = self.record.time_ms if known else 0
        taken = await self._replace(Record(self._owner, self.record.epoch + 1, self.position, time_ms=time_ms))
        if taken:
            self.limit = None
        return taken

    async def renew(self, position: int, time_ms: int = 0) -> None:
        """Say that we live and how far we are: to which message, stored at `time_ms`. Raises LeaseLostError."""
        record = self.record.moved(position, time_ms)
        renewed = msgspec.structs.replace(record, owner=self._owner, beat=record.beat + 1)
        if not await self._replace(renewed):
            raise LeaseLostError(f"{self._name} is served by {self.record.owner.id or 'nobody'} now")

    async def release(self, position: int, time_ms: int = 0) -> None:
        """Let another take it at once."""
        await self._replace(msgspec.structs.replace(self.record.moved(position, time_ms), owner=NOBODY, beat=0))

    async def set_back(self) -> None:
        """Let another take it at once and store every effect: the log has lost its end, so they may have been, too."""
        if self.held:
            await self._replace(Record(NOBODY, self.record.epoch, 0))

    async def _replace(self, record: Record) -> bool:
        value = msgspec.json.encode(record)
        while True:
            revision = await self._bus.replace(LEASE_BUCKET, self._name, value, self._revision)
            if revision is not None:
                self._revision, self._seen_at, self.record = revision, self._clock(), record
                return True
            self._see(await self._bus.get(LEASE_BUCKET, self._name))
            if self.record.owner.id != self._owner.id or self.record.epoch != record.epoch:
                return False
            # Else it holds words of our own whose confirmation was lost: they are replaced as well.


async def position_of(bus: Bus, name: str) -> int:
    """Return how far a partition is done: the last sequence whose effects are all stored, 0 for none."""
    entry = await bus.get(LEASE_BUCKET, name)
    return msgspec.json.decode(entry.value, type=Record).position if entry else 0


def start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None where there is none, or only a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _place() -> str:
    """Return what processes share whose pids mean the same; empty where that cannot be told."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
