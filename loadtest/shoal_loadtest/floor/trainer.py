"""A trainer with Shoal's own client that does a piece of work: `python -m shoal_loadtest.floor.trainer`, for `whole`.

Like a station: the order is one JSON line on standard input, what it has to say are JSON lines on standard output.
"""

import asyncio
import sys
import time

import msgspec
import uvloop

import shoal
from shoal_loadtest.floor.station import Done, Order, tell, used_s
from shoal_loadtest.floor.work import Lifecycle, Work


async def group(cluster: shoal.Cluster, work: Work) -> float:
    """Have one group through; returns ms until all of it was ready, or had run."""
    began = time.perf_counter()
    command = "true" if work.lifecycle is Lifecycle.JOB else None
    rollout = await cluster.rollout("host", work.group, command=command)
    if command is None:
        count = 0
        async for _ in rollout.ready():
            count += 1
        took = time.perf_counter() - began
        await rollout.release()
        await rollout.wait()
    else:
        summary = await rollout.wait()
        count, took = summary.succeeded, time.perf_counter() - began
    if count != work.group:
        raise SystemExit(f"of {work.group} sandboxes {count} were ready")
    return took * 1000


async def main() -> None:
    """Follow the order."""
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    work, ready_ms = order.work, list[float]()
    async with shoal.connect(order.url) as cluster:
        await group(cluster, Work(1, 1, lifecycle=work.lifecycle))  # the template is known, the reader is there
        tell({"ready": True})
        await asyncio.to_thread(sys.stdin.buffer.readline)
        before = used_s()
        if order.idle_ms:
            for _ in range(work.groups):
                await asyncio.sleep(order.idle_ms / 1000)
                ready_ms.append(await group(cluster, work))
        else:
            left = iter(range(work.groups))

            async def one_by_one() -> None:
                for _ in left:
                    await group(cluster, work)

            await asyncio.gather(*(one_by_one() for _ in range(work.under_way)))
        tell(Done(used_s() - before, tuple(ready_ms)))


if __name__ == "__main__":
    uvloop.run(main())
