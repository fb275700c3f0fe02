"""What `shoal template` and `shoal snapshot` have in common."""

from typing import TYPE_CHECKING, Any

from shoal.cli.output import emit, moment, say

if TYPE_CHECKING:
    from shoal.client.catalogue import SnapshotInfo


async def listed(url: str | None, tenant: str) -> "list[SnapshotInfo]":
    """Return a tenant's templates and snapshots."""
    from shoal.cli.connecting import connect

    async with connect(url, tenant=tenant) as cluster:
        return await cluster.snapshots()


def row(info: "SnapshotInfo") -> dict[str, Any]:
    """Return a snapshot as JSON has it."""
    wire = info.snapshot.wire
    return {
        "digest": info.digest,
        "names": list(info.names),
        "parent": info.parent,
        "kind": wire.kind,
        "source": wire.path,
        "disks": len(wire.disks),
        "layers": len(wire.layers),
        "memory": wire.memory is not None,
        "isolation": wire.isolation,
        "warm": wire.warm,
        "env": dict(wire.env),
        "bytes": info.size,
        "size": size(info.size),
        "pinned": info.pinned,
        "origin": info.origin,
        "added": moment(info.added_ms),
        "used": moment(info.used_ms),
        "held": info.held,
    }


def size(number: int) -> str:
    """Return bytes as people write them."""
    value = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def pick(found: "list[SnapshotInfo]", reference: str) -> "SnapshotInfo":
    """Return what a name or the beginning of a digest stands for. Raises NoSuchSnapshot."""
    from shoal.client.errors import NoSuchSnapshot

    digest = reference.removeprefix("snapshot:")
    for info in found:
        if reference in info.names:
            return info
    matching = [info for info in found if info.digest.startswith(digest)]
    if len(matching) == 1:
        return matching[0]
    several = "could be several: write more of its digest" if matching else "is none of this tenant's"
    raise NoSuchSnapshot(f"{reference!r} {several}; `shoal snapshot ls` lists those there are")


async def show_one(reference: str, url: str | None, tenant: str, as_json: bool) -> int:
    """Show all that is known of a template or snapshot."""
    shown = row(pick(await listed(url, tenant), reference))
    if as_json:
        emit(shown)
        return 0
    for name, value in shown.items():
        text = ", ".join(value) if isinstance(value, list) else value
        if isinstance(value, dict):
            text = " ".join(f"{key}={each}" for key, each in value.items())
        if text not in ("", None, False):
            print(f"{name:<10} {text}")
    return 0


async def remove(references: tuple[str, ...], url: str | None, tenant: str, as_json: bool) -> int:
    """Take the names of templates or snapshots away."""
    from shoal.cli.connecting import connect

    async with connect(url, tenant=tenant) as cluster:
        found = await cluster.snapshots()
        for reference in references:
            info = pick(found, reference)
            needed = await cluster.remove_snapshot(info.snapshot)
            if as_json:
                emit({"digest": info.digest, "names": list(info.names), "removed": not needed, "needed": needed})
            else:
                say(f"{reference} is removed" + (f"; its bytes stay for now: {needed}" if needed else ""))
    return 0
