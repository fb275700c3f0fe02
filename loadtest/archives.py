"""What an archive of a large history takes: megabytes, seconds, memory; and whether any change of it is seen.

    python loadtest/archives.py [--sandboxes 1000000] [--flips 1000] [--keep FILE.shoal] [--json]

Brings a system with 1,000 simulated nodes up, runs rollouts of 256 until so many sandboxes are through, and exports
everything with `shoal export`, whose peak memory is what the kernel says of that process. Then the file is verified, a
rollout's story is told from it, and bits are flipped at random places, one at a time: each must be found, and never
before where it is.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

import shoal
import shoal.archive
from recovery import fill, say
from shoal.archive.archived import series_of
from shoal.archive.looking import look
from shoal.archive.stories import tell_rollout
from shoal.archive.verifying import verify
from shoal.cli.system import LocalSystem
from shoal.wire.codec import decode
from shoal.wire.messages import RolloutSubmitted


class InMemory:
    """A file's bytes, some of them changed."""

    def __init__(self, data: bytearray) -> None:
        self.name = "flipped"
        self._data = data

    async def size(self) -> int:
        """Return how many there are."""
        return len(self._data)

    async def read(self, offset: int, length: int) -> bytes:
        """Return a part."""
        return bytes(self._data[offset : offset + length])


def measured(*arguments: str) -> dict[str, float]:
    """Run a command of `shoal`; returns its seconds and its peak memory in MB."""
    began = time.perf_counter()
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    command = [sys.executable, "-m", "shoal.cli", *arguments]
    pid = os.posix_spawn(sys.executable, command, os.environ, file_actions=quiet)
    _, status, usage = os.wait4(pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"shoal {' '.join(arguments)} failed")
    return {"seconds": round(time.perf_counter() - began, 2), "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
            "peak_mb": round(usage.ru_maxrss / 1024, 1)}  # fmt: skip


async def flips(path: Path, count: int) -> dict[str, int]:
    """Flip bits at random places, one at a time; returns how many were found, and how many not before their place."""
    data = bytearray(path.read_bytes())
    source = random.Random(1)
    found = exact = 0
    for _ in range(count):
        place, bit = source.randrange(len(data)), 1 << source.randrange(8)
        data[place] ^= bit
        seen = await look(InMemory(data))
        data[place] ^= bit
        found += seen.trouble is not None
        exact += seen.end <= place
    assert (await look(InMemory(data))).trouble is None
    return {"flips": count, "found": found, "good_up_to_there": exact}


async def story(path: Path) -> dict[str, float]:
    """Tell the story of the rollout in the middle; returns how long that takes, and how many messages it has."""
    async with shoal.archive.open(path) as history:
        stream = "SHOAL_ROLLOUT_0"
        _, last = await history.bounds(stream)
        name = ""
        async for delivery in history.read(stream, after=last // 2):
            message = decode(delivery.payload)
            if isinstance(message, RolloutSubmitted):
                name = message.rollout
                break
        began = time.perf_counter()
        told = await tell_rollout(history, name)
        assert told is not None
        return {"seconds": round(time.perf_counter() - began, 2), "messages": len(told.told)}


async def run(sandboxes: int, count: int, keep: Path | None) -> dict[str, Any]:
    """Make a history, and measure."""
    with tempfile.TemporaryDirectory(prefix="shoal-archives-") as directory:
        path = keep or Path(directory) / "all.shoal"
        path.unlink(missing_ok=True)
        async with LocalSystem(Path(directory) / "state", port=0, driver="simulated", nodes=1000, tell=say) as system:
            async with shoal.connect(system.url) as cluster:
                rate = await fill(cluster, sandboxes)
            say("exporting")
            exported = await asyncio.to_thread(measured, "export", "--url", system.url, "-o", str(path), "--json")
        began = time.perf_counter()
        verdict = await verify(series_of(path))
        verified = time.perf_counter() - began
        assert verdict.whole, verdict.trouble
        payload = sum(part.bytes for part in verdict.totals.values())
        say(f"flipping bits at {count} places")
        return {
            "sandboxes": sandboxes, "sandboxes_per_s": round(rate), "messages": verdict.messages,
            "payload_mb": round(payload / 1e6, 2), "archive_mb": round(verdict.size / 1e6, 3),
            "mb_per_million": round(verdict.size / 1e6 * 1e6 / sandboxes, 2), "states": verdict.states,
            "export": exported, "messages_per_s": round(verdict.messages / exported["seconds"]),
            "verify_s": round(verified, 2), "story": await story(path), **await flips(path, count),
        }  # fmt: skip


def main() -> None:
    """Measure and print; not zero when a flip was not found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sandboxes", type=int, default=1_000_000)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--keep", type=Path, metavar="FILE.shoal", help="keep the archive")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = uvloop.run(run(options.sandboxes, options.flips, options.keep))
    if options.json:
        print(json.dumps(found))
    else:
        export, told = found["export"], found["story"]
        print(f"{found['sandboxes']:,} sandboxes, {found['messages']:,} messages with {found['payload_mb']} MB")
        print(f"archive   {found['archive_mb']} MB, {found['mb_per_million']} MB for a million sandboxes")
        print(f"export    {export['seconds']} s, {found['messages_per_s']:,} messages/s, peak {export['peak_mb']} MB")
        print(f"verify    {found['verify_s']} s")
        print(f"one story {told['seconds']} s for {told['messages']} messages")
        print(f"flips     {found['found']} of {found['flips']} found, {found['good_up_to_there']} at their place")
    sys.exit(0 if found["found"] == found["flips"] == found["good_up_to_there"] else 1)


if __name__ == "__main__":
    main()
