"""A core's state with the place in its log that it covers: versioned, checksummed, never misread."""

import hashlib
from typing import Final

import msgspec

_MAGIC: Final = b"shoal-checkpoint-1\n"
_DIGEST: Final = 32


class UnusableCheckpointError(Exception):
    """These bytes are no checkpoint this core can go on from; the text says why."""


class Checkpoint(msgspec.Struct, frozen=True, array_like=True):
    """The state after the message `sequence` of `stream`, which the broker stored at `time_ms`.

    `core` names whose state it is, `version` its `state_version`: another version's state is another language.
    """

    core: str
    version: int
    stream: str
    sequence: int
    time_ms: int
    state: bytes


def seal(checkpoint: Checkpoint) -> bytes:
    """Return the checkpoint's bytes with their digest (BLAKE2b, 32 bytes) before them."""
    body = msgspec.msgpack.encode(checkpoint)
    return _MAGIC + hashlib.blake2b(body, digest_size=_DIGEST).digest() + body


def unseal(data: bytes, *, core: str, version: int, stream: str) -> Checkpoint:
    """Return the checkpoint in these bytes if it is this core's. Raises UnusableCheckpointError otherwise."""
    head, body = data[: len(_MAGIC) + _DIGEST], data[len(_MAGIC) + _DIGEST :]
    if not head.startswith(_MAGIC):
        raise UnusableCheckpointError("it does not begin like a checkpoint")
    if hashlib.blake2b(body, digest_size=_DIGEST).digest() != head[len(_MAGIC) :]:
        raise UnusableCheckpointError("its checksum does not match")
    try:
        found = msgspec.msgpack.decode(body, type=Checkpoint)
    except msgspec.DecodeError as error:
        raise UnusableCheckpointError(str(error)) from error
    if (found.core, found.stream) != (core, stream):
        raise UnusableCheckpointError(f"it is of {found.core} over {found.stream}")
    if found.version != version:
        raise UnusableCheckpointError(f"its state is of version {found.version}, and this program's is {version}")
    return found
