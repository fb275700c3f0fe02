"""What an image costs that many sandboxes share, against copies of it. Needs root, erofs-utils and 1 GB of disk.

    python loadtest/images.py [--mib 150] [--sandboxes 64] [--copies 4] [--json]

Makes an image of that size into a disk, puts it into a blob store, and starts sandboxes from it that read all of it:
the first with nothing at hand on the node, the second and the last with the disk mounted. What a copy for each sandbox
would take is measured on a few copies, read in the same way.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import tempfile
import time
from pathlib import Path

import uvloop

from shoal.blobs.cache import Cache
from shoal.blobs.files import FileStore
from shoal.machine.lineage import identified
from shoal.wire.messages import Snapshot
from shoal_executor.drivers.disks import CachedDisks
from shoal_executor.drivers.each import start_one
from shoal_executor.drivers.protocol import StartSpec
from shoal_executor.drivers.zygote.driver import ZygoteDriver
from shoal_snapshot.images.disk import make_disk

MIB = 1024**2


def image(place: Path, mib: int) -> None:
    """Write a tree of files of a mebibyte each, half of which can be packed."""
    draw = random.Random(7)
    for number in range(mib):
        directory = place / f"{number // 10}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{number}").write_bytes(draw.randbytes(MIB // 2) + bytes(MIB // 2))


def cached_mib() -> float:
    """Return how much of the machine's memory holds files' contents."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["Cached"].split()[0]) / 1024 + int(fields["Buffers"].split()[0]) / 1024


def forget_caches() -> None:
    """Write back and drop what the page cache can do without."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")


async def read_all(driver: ZygoteDriver, name: str, mib: int) -> None:
    """Have a sandbox read each file of the image."""
    for number in range(mib):
        piece = await driver.read_file(name, f"/{number // 10}/{number}", limit=MIB)
        if len(piece.data) != MIB:
            raise SystemExit(f"file {number} has {len(piece.data)} bytes")


async def started(driver: ZygoteDriver, name: str, snapshot: Snapshot) -> float:
    """Start a sandbox; returns ms."""
    began = time.perf_counter()
    await driver.prepare(snapshot)
    await start_one(driver, name, StartSpec(snapshot))
    return (time.perf_counter() - began) * 1000


async def shared(place: Path, source: Path, mib: int, sandboxes: int) -> dict[str, float]:
    """Measure the shared disk."""
    figures: dict[str, float] = {}
    made = place / "made"
    made.mkdir()
    began = time.perf_counter()
    disk = (await asyncio.to_thread(make_disk, f"dir:{source}", made, lambda _: None)).disk
    figures["make_disk_s"] = time.perf_counter() - began
    store = FileStore(place / "blobs")
    blob = await store.put(disk)
    disk.unlink()
    snapshot = identified(Snapshot("", "disk", disks=(blob,)))
    cache = Cache(store, place / "cache", 10 * 1024**3)
    driver = ZygoteDriver(place / "state", CachedDisks(cache))
    await driver.open(lambda *_: None)
    try:
        forget_caches()
        figures["first_start_ms"] = await started(driver, "s-0", snapshot)
        figures["second_start_ms"] = await started(driver, "s-1", snapshot)
        forget_caches()
        before = cached_mib()
        await read_all(driver, "s-0", mib)
        figures["page_cache_mib_after_one"] = cached_mib() - before
        for number in range(2, sandboxes):
            await started(driver, f"s-{number}", snapshot)
        for number in range(1, sandboxes):
            await read_all(driver, f"s-{number}", mib)
        figures[f"page_cache_mib_after_{sandboxes}"] = cached_mib() - before
        figures["disk_mib_on_the_node"] = sum(path.stat().st_size for path in (place / "cache").iterdir()) / MIB
    finally:
        await driver.close()
        await cache.close()
    return figures


def copied(place: Path, source: Path, copies: int, sandboxes: int) -> dict[str, float]:
    """Measure a few copies; all of them are as many times that."""
    made = [place / f"copy-{number}" for number in range(copies)]
    for path in made:
        shutil.copytree(source, path)
    forget_caches()
    before = cached_mib()
    size = 0
    for path in made:
        for file in path.rglob("*"):
            size += len(file.read_bytes()) if file.is_file() else 0
    cached = cached_mib() - before
    times = sandboxes / copies
    return {
        f"{sandboxes}_copies_disk_mib": size / MIB * times,
        f"{sandboxes}_copies_page_cache_mib": cached * times,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=150)
    parser.add_argument("--sandboxes", type=int, default=64)
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("disks are mounted by root: run this as root")
    with tempfile.TemporaryDirectory(prefix="shoal-images-") as directory:
        place = Path(directory)
        image(place / "image", options.mib)
        figures = uvloop.run(shared(place, place / "image", options.mib, options.sandboxes))
        figures |= copied(place, place / "image", options.copies, options.sandboxes)
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:>32} {value:12.2f}")


if __name__ == "__main__":
    main()
