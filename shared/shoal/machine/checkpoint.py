"""A core's state with the place in its log that it covers: versioned, checksummed, never misread."""

import hashlib
import zlib
from collections.abc import Mapping
from typing import Final

import msgspec

from shoal.machine.versions import Upgrade, upgraded

_MAGIC: Final = b"shoal-checkpoint-1\n"
_DIGEST: Final = 32


class UnusableCheckpointError(Exception):
    """These bytes are no checkpoint this core can go on from; the text says why."""


class Checkpoint(msgspec.Struct, frozen=True, array_like=True):
    """The state after the message `sequence` of `stream`, which the broker stored at `time_ms`.

    `core` names whose state it is, `version` its `state_version`: another version's state is another language, which
    `shoal.machine.versions` translates.
    """

    core: str
    version: int
    stream: str
    sequence: int
    time_ms: int
    state: bytes


class Generation(msgspec.Struct, frozen=True):
    """One stored checkpoint. `bytes` before compression."""

    id: str
    sequence: int
    time_ms: int
    pieces: int
    bytes: int


class Manifest(msgspec.Struct, frozen=True):
    """The checkpoints of a partition that can be loaded, the newest first."""

    generations: tuple[Generation, ...] = ()


def piece_keys(partition: str, generation: Generation) -> list[str]:
    """Return the keys of a stored checkpoint's pieces, in order; the manifest's key is the partition's name."""
    return [f"{partition}.{generation.id}.{number}" for number in range(generation.pieces)]


def unpack(pieces: bytes) -> bytes:
    """Return the sealed checkpoint that was stored in pieces. Raises UnusableCheckpointError."""
    try:
        return zlib.decompress(pieces)
    except zlib.error as error:
        raise UnusableCheckpointError(str(error)) from error


def seal(checkpoint: Checkpoint) -> bytes:
    """Return the checkpoint's bytes with their digest (BLAKE2b, 32 bytes) before them."""
    body = msgspec.msgpack.encode(checkpoint)
    return _MAGIC + hashlib.blake2b(body, digest_size=_DIGEST).digest() + body


def unseal(data: bytes, *, core: str, version: int, stream: str, upgrades: Mapping[int, Upgrade]) -> Checkpoint:
    """Return the checkpoint in these bytes if it is this core's, its state as of this version.

    Raises UnusableCheckpointError where it is another's, or of a version that leads nowhere.
    """
    found = unseal_any(data)
    if (found.core, found.stream) != (core, stream):
        raise UnusableCheckpointError(f"it is of {found.core} over {found.stream}")
    try:
        state = upgraded(found.state, found.version, version, upgrades)
    except ValueError as error:
        raise UnusableCheckpointError(str(error)) from error
    return msgspec.structs.replace(found, version=version, state=state)


def unseal_any(data: bytes) -> Checkpoint:
    """Return the checkpoint in these bytes, whosever it is. Raises UnusableCheckpointError."""
    head, body = data[: len(_MAGIC) + _DIGEST], data[len(_MAGIC) + _DIGEST :]
    if not head.startswith(_MAGIC):
        raise UnusableCheckpointError("it does not begin like a checkpoint")
    if hashlib.blake2b(body, digest_size=_DIGEST).digest() != head[len(_MAGIC) :]:
        raise UnusableCheckpointError("its checksum does not match")
    try:
        return msgspec.msgpack.decode(body, type=Checkpoint)
    except msgspec.DecodeError as error:
        raise UnusableCheckpointError(str(error)) from error
