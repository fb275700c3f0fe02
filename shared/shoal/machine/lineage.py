"""What a snapshot is called: by its content, so that whoever makes the same has the same."""

import hashlib

import msgspec

from shoal.wire.messages import Blob, Snapshot


def identified(snapshot: Snapshot) -> Snapshot:
    """Return the snapshot under the digest of everything it says, and without a seal: nobody has seen it yet."""
    *says, _seal = msgspec.structs.astuple(msgspec.structs.replace(snapshot, digest=""))
    digest = hashlib.sha256(msgspec.msgpack.encode(says)).hexdigest()
    return msgspec.structs.replace(snapshot, digest=digest, seal="")


def grown(origin: Snapshot, layer: Blob, memory: Blob | None, isolation: str) -> Snapshot:
    """Return the snapshot of a sandbox that started from `origin` and has written `layer` since."""
    return identified(
        msgspec.structs.replace(
            origin,
            layers=(*origin.layers, layer),
            memory=memory,
            isolation=isolation if memory else origin.isolation,
            parent=origin.digest,
            template=origin.template or origin.digest,
        )
    )


def warmed(snapshot: Snapshot, code: str) -> Snapshot:
    """Return the snapshot with this code run by its template's interpreter, once, before anything starts from it.

    Such an interpreter is one isolation's: what starts from it needs that.
    """
    if not code or code == snapshot.warm:
        return snapshot
    template = hashlib.sha256(f"{snapshot.template}\0{code}".encode()).hexdigest() if snapshot.template else ""
    return identified(msgspec.structs.replace(snapshot, warm=code, template=template, isolation="zygote"))
