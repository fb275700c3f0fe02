"""What `shoal archive info` says."""

from typing import Any

from shoal.cli.output import moment, say, table
from shoal.cli.passed import passed_over, tell


async def described(path: str) -> dict[str, Any]:
    """Return what there is to say of an archive. Raises ArchiveError."""
    from shoal.archive.archived import ArchiveHistory
    from shoal.archive.planning import in_order
    from shoal.archive.records import Part
    from shoal.wire.streams import CLUSTER_BUCKET

    archive = await ArchiveHistory.open(path, damaged=True)
    series = archive.series
    files = [await series.file(number) for number in range(len(series))]
    totals: dict[str, Part] = {}
    for file in files:
        for part in file.account.totals.values():
            totals[part.stream] = totals[part.stream].joined(part) if part.stream in totals else part
    header, last = files[0].header, files[-1]
    trouble = next((file.trouble for file in files if file.trouble is not None), None)
    growing = series.several and trouble is last.trouble and trouble is not None and trouble.unfinished
    return {
        "path": path,
        "trouble": str(trouble) if trouble is not None and not growing else None,
        "growing": growing,
        "files": len(files),
        "bytes": sum(file.size for file in files),
        "payload_bytes": sum(part.bytes for part in totals.values()),
        "messages": sum(part.count for part in totals.values()),
        "blocks": sum(file.account.blocks for file in files),
        "from_ms": min((part.first_ms for part in totals.values()), default=None),
        "to_ms": max((part.last_ms for part in totals.values()), default=None),
        "cluster": header.cluster,
        "made_by": header.made_by,
        "made_ms": header.made_ms,
        "format": header.format,
        "wire": header.wire,
        "partial": header.partial,
        "asked": {name: getattr(header.request, name) for name in header.request.__struct_fields__
                  if getattr(header.request, name) not in ("", None)},
        "digest": last.digest.hex(),
        "streams": {
            name: {
                "first": totals[name].first, "last": totals[name].last, "messages": totals[name].count,
                "payload_bytes": totals[name].bytes, "first_ms": totals[name].first_ms, "last_ms": totals[name].last_ms,
            }
            for name in in_order(list(totals))
        },
        "states": [
            {"partition": saved.partition, "version": saved.version, "sequence": saved.sequence,
             "time_ms": saved.time_ms, "bytes": saved.bytes}
            for file in files for saved, _ in file.saved()
        ],
        "missing": [{"stream": gap.stream, "first": gap.first, "last": gap.last}
                    for file in files for gap in file.account.missing],
        "passed_over": passed_over(await archive.values(CLUSTER_BUCKET)),
    }  # fmt: skip


def show(found: dict[str, Any]) -> None:
    """Print it for people."""
    from shoal.wire.quantities import format_bytes

    asked = ", ".join(f"{name} {value}" for name, value in found["asked"].items()) or "everything"
    times = f"{moment(found['from_ms'])} to {moment(found['to_ms'])}" if found["from_ms"] is not None else "-"
    partial = "; partial: it tells what happened, and cannot be replayed" if found["partial"] else ""
    size = f"{format_bytes(found['bytes'])} in {found['files']} file{'s' if found['files'] > 1 else ''}"
    facts = [
        ("of", f"cluster {found['cluster'] or '-'}, {asked}{partial}"),
        ("from", times),
        ("made", f"{moment(found['made_ms'])} by {found['made_by']}, format {found['format']}, wire {found['wire']}"),
        ("size", f"{size}, for {found['messages']:,} messages with {format_bytes(found['payload_bytes'])}"),
        ("states", _states(found["states"])),
        ("digest", found["digest"] + (", so far: its last file is still being written" if found["growing"] else "")),
    ]
    print("\n".join(f"{name:<8}{value}" for name, value in facts))
    rows = [
        (name, each["first"], each["last"], each["messages"], format_bytes(each["payload_bytes"]),
         moment(each["first_ms"]), moment(each["last_ms"]))
        for name, each in found["streams"].items()
    ]  # fmt: skip
    table(("stream", "from", "to", "messages", "payload", "first stored", "last stored"), rows, empty="it is empty")
    for gap in found["missing"]:
        say(f"messages {gap['first']} to {gap['last']} of {gap['stream']} are missing: they were not kept any more")
    tell(found["passed_over"])
    if found["trouble"]:
        say(f"shoal: {found['trouble']}; what is shown is of what is good")


def _states(states: list[dict[str, Any]]) -> str:
    counts: dict[str, int] = {}
    for each in states:
        counts[each["partition"]] = counts.get(each["partition"], 0) + 1
    return ", ".join(f"{count} of {partition}" for partition, count in sorted(counts.items())) or "none"
