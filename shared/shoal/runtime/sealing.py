"""The cluster's word that it made a snapshot for a tenant: a seal, with a key that only services can read.

A client's message carries a whole snapshot, and a digest says only what that is made of. Whoever makes a snapshot seals
it; an executor that is given one by a client looks at the seal, and has to ask nobody. A seal is of one tenant's: it is
in logs and archives that others may read, and is worth nothing to them.
"""

import hashlib
import hmac
import secrets
from typing import Final

import msgspec

from shoal.bus.protocol import Bus
from shoal.wire import streams
from shoal.wire.messages import Snapshot

_BYTES: Final = 32


class Seals:
    """Seals with this key, and knows its seals."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, tenant: str, digest: str) -> str:
        """Return the seal of a tenant's snapshot."""
        return hmac.digest(self._key, f"{tenant}\0{digest}".encode(), hashlib.sha256).hex()

    def sealed(self, tenant: str, snapshot: Snapshot) -> Snapshot:
        """Return the snapshot with its seal."""
        return msgspec.structs.replace(snapshot, seal=self.of(tenant, snapshot.digest))

    def right(self, tenant: str, snapshot: Snapshot) -> bool:
        """Return whether this cluster sealed what has this digest for this tenant."""
        return hmac.compare_digest(self.of(tenant, snapshot.digest).encode(), snapshot.seal.encode())


async def seals_of(bus: Bus) -> Seals:
    """Return the cluster's seals; whoever asks first makes the key. Raises BusError."""
    found = await bus.get(streams.SECRET_BUCKET, streams.SEAL_KEY)
    if found is None:
        await bus.replace(streams.SECRET_BUCKET, streams.SEAL_KEY, secrets.token_bytes(_BYTES), 0)
        found = await bus.get(streams.SECRET_BUCKET, streams.SEAL_KEY)
    assert found is not None  # it was just stored, by this process or another
    return Seals(found.value)
