"""Checkpoints in a key-value bucket: pieces under keys of their own, named by one manifest that is replaced last.

`<name>` holds the manifest: the newest checkpoint and the one before it. `<name>.<generation>.<piece>` hold the bytes.
A manifest is only replaced by a newer one and by whoever saw it, so a process that was paused cannot put an old state
in the place of a new one.
"""

import asyncio
import gc
import zlib
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import structlog

from shoal.bus.protocol import Bus
from shoal.machine.checkpoint import (
    Checkpoint,
    Generation,
    Manifest,
    UnusableCheckpointError,
    piece_keys,
    seal,
    unpack,
    unseal,
)
from shoal.machine.core import Core
from shoal.machine.versions import Upgrade
from shoal.wire.streams import CHECKPOINT_BUCKET

_PIECE: Final = 512 * 1024
_NONE: Final[Mapping[int, Upgrade]] = {}

log = structlog.get_logger()


def dump(core: Core) -> bytes:
    """Return a core's state. It is built of many objects without cycles: looking for some takes as long again."""
    collects = gc.isenabled()
    gc.disable()
    try:
        return core.dump()
    finally:
        if collects:
            gc.enable()


class StateGoneError(Exception):
    """A partition's state cannot be had: no checkpoint can be loaded, and the beginning of its log is not kept."""

    def __init__(self, name: str, stream: str, first: int) -> None:
        super().__init__(
            f"{name} cannot be served: {stream} is kept from message {first} on, and no checkpoint of what came before "
            f"can be loaded; start the version of Shoal that saved the last one, or bring the bucket "
            f"{CHECKPOINT_BUCKET} back; --begin-with-what-is-left serves without what is lost, such as tenants, limits "
            f"and the names of templates and snapshots: say those again then"
        )


class Checkpoints:
    """The checkpoints of one partition."""

    def __init__(self, bus: Bus, name: str) -> None:
        self._bus = bus
        self._name = name

    async def manifest(self) -> tuple[Manifest, int]:
        """Return what is stored, and the manifest's revision."""
        entry = await self._bus.get(CHECKPOINT_BUCKET, self._name)
        if entry is None:
            return Manifest(), 0
        try:
            return msgspec.json.decode(entry.value, type=Manifest), entry.revision
        except msgspec.DecodeError as error:
            log.error("a checkpoint's manifest is unusable", partition=self._name, error=str(error))
            return Manifest(), entry.revision

    async def save(self, checkpoint: Checkpoint, epoch: int) -> bool:
        """Store a checkpoint; returns False where a newer one is stored already. `epoch`: that of our lease."""
        known, revision = await self.manifest()
        if known.generations and known.generations[0].sequence >= checkpoint.sequence:
            return False
        sealed = await asyncio.to_thread(seal, checkpoint)
        packed = await asyncio.to_thread(zlib.compress, sealed, 1)
        id = f"{epoch}-{checkpoint.sequence}"
        pieces = [packed[at : at + _PIECE] for at in range(0, len(packed), _PIECE)]
        newest = Generation(id, checkpoint.sequence, checkpoint.time_ms, len(pieces), len(sealed))
        for key, piece in zip(piece_keys(self._name, newest), pieces, strict=True):
            await self._bus.put(CHECKPOINT_BUCKET, key, piece)
        kept = (newest, *known.generations[:1])
        value = msgspec.json.encode(Manifest(kept))
        if await self._bus.replace(CHECKPOINT_BUCKET, self._name, value, revision) is None:
            return False
        await self._sweep(kept)
        return True

    async def cut(self, last: int) -> bool:
        """Forget the checkpoints of a log's lost end, which another end will follow: they are of what is no more.

        Returns False where others were saved meanwhile.
        """
        known, revision = await self.manifest()
        kept = tuple(each for each in known.generations if each.sequence <= last)
        if kept == known.generations:
            return True
        lost = [each.sequence for each in known.generations if each.sequence > last]
        log.error("forgetting checkpoints of what the log has lost", partition=self._name, last=last, sequences=lost)
        value = msgspec.json.encode(Manifest(kept))
        return await self._bus.replace(CHECKPOINT_BUCKET, self._name, value, revision) is not None

    async def _sweep(self, kept: Sequence[Generation]) -> None:
        """Delete the pieces of every older generation that is not kept.

        Those of a newer one are a successor's: it may be writing them now, or have had them named in a manifest while
        this process was slow, or about to end.
        """
        newest = kept[0].sequence
        keys = await self._bus.keys(CHECKPOINT_BUCKET, self._name)
        named = {each.id for each in (*kept, *(await self.manifest())[0].generations)}
        for key in keys:
            id = key.removeprefix(f"{self._name}.").partition(".")[0]
            sequence = id.rpartition("-")[2]
            if id not in named and sequence.isdecimal() and int(sequence) <= newest:
                await self._bus.delete(CHECKPOINT_BUCKET, key)

    async def load(
        self, *, core: str, version: int, stream: str, upgrades: Mapping[int, Upgrade] = _NONE
    ) -> list[Checkpoint]:
        """Return the checkpoints this core can go on from, the newest first; an unusable one is named in the log.

        Those of earlier versions are brought to this one by `upgrades`.
        """
        found: list[Checkpoint] = []
        for generation in (await self.manifest())[0].generations:
            try:
                data = await self._fetch(generation)
                found.append(await asyncio.to_thread(_open, data, core, version, stream, upgrades))
            except UnusableCheckpointError as error:
                log.error("a checkpoint is unusable", partition=self._name, id=generation.id, error=str(error))
        return found

    async def _fetch(self, generation: Generation) -> bytes:
        keys = piece_keys(self._name, generation)
        entries = await asyncio.gather(*(self._bus.get(CHECKPOINT_BUCKET, key) for key in keys))
        if missing := [key for key, entry in zip(keys, entries, strict=True) if entry is None]:
            raise UnusableCheckpointError(f"{len(missing)} of its {len(keys)} pieces are missing")
        return b"".join(entry.value for entry in entries if entry is not None)


def _open(packed: bytes, core: str, version: int, stream: str, upgrades: Mapping[int, Upgrade]) -> Checkpoint:
    return unseal(unpack(packed), core=core, version=version, stream=stream, upgrades=upgrades)
