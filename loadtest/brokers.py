"""What three brokers cost: publishing to one server, and to three that keep everything thrice, in one run.

    python loadtest/brokers.py [--messages 50000] [--rounds 3] [--sync 10s|always] [--json]

"Pipelined": messages of 200 bytes a second, from one connection that does not wait. "Idle": the median and the 99th
percentile of a single publication's confirmation in ms, one every 20 ms. Rounds alternate between the two, and the
ratios are of each side's best rate and of its median latencies. All servers share this machine, its cores and its disk.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from shoal.broker import EmbeddedBroker, EmbeddedCluster
from shoal.bus.jetstream import JetStreamBus
from shoal.wire.streams import Stream

PAYLOAD = bytes(200)
IDLE = 200
PAUSE_S = 0.02


async def measure(url: str, replicas: int, messages: int, round: int) -> tuple[float, list[float]]:
    """Return messages a second and single confirmations' ms."""
    bus = await JetStreamBus.connect(url, name="loadtest", replicas=replicas, deadline_s=300)
    try:
        await bus.ensure([Stream("LOAD", ("load.>",), 3600.0, 8 * 1024**3)])
        await bus.publish("load.a", PAYLOAD, f"warm-{round}")
        began = time.perf_counter()
        await asyncio.gather(*(bus.publish("load.a", PAYLOAD, f"{round}-{number}") for number in range(messages)))
        rate = messages / (time.perf_counter() - began)
        single = []
        for number in range(IDLE):
            await asyncio.sleep(PAUSE_S)
            began = time.perf_counter()
            await bus.publish("load.a", PAYLOAD, f"single-{round}-{number}")
            single.append((time.perf_counter() - began) * 1000)
        return rate, single
    finally:
        await bus.close()


async def run(messages: int, rounds: int, sync: str) -> dict[str, Any]:
    """Measure both sides in turn."""
    rates: dict[str, list[float]] = {"one": [], "three": []}
    single: dict[str, list[float]] = {"one": [], "three": []}
    with tempfile.TemporaryDirectory(prefix="shoal-brokers-") as base:
        async with (
            EmbeddedBroker(Path(base) / "one", port=0, sync_interval=sync) as one,
            EmbeddedCluster(Path(base) / "three", sync_interval=sync) as three,
        ):
            for round in range(rounds):
                for name, url, replicas in (("one", one.url, 1), ("three", three.url, 3)):
                    rate, latencies = await measure(url, replicas, messages, round)
                    rates[name].append(rate)
                    single[name] += latencies
    found: dict[str, Any] = {"messages": messages, "rounds": rounds, "sync_interval": sync}
    for name in rates:
        ordered = sorted(single[name])
        found[name] = {
            "pipelined_per_s": round_to(max(rates[name])),
            "idle_p50_ms": round_to(statistics.median(ordered)),
            "idle_p99_ms": round_to(ordered[int(len(ordered) * 0.99)]),
        }
    found["pipelined_three_to_one"] = round_to(max(rates["three"]) / max(rates["one"]))
    found["idle_three_to_one"] = round_to(statistics.median(single["three"]) / statistics.median(single["one"]))
    return found


def round_to(number: float) -> float:
    """Return three digits of it."""
    return float(f"{number:.3g}")


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sync", default="10s")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = uvloop.run(run(options.messages, options.rounds, options.sync))
    if options.json:
        print(json.dumps(found))
        return
    for name in ("one", "three"):
        side = found[name]
        print(
            f"{name:>5}: {side['pipelined_per_s']:>8,.0f} messages/s pipelined, "
            f"single: p50 {side['idle_p50_ms']:g} ms, p99 {side['idle_p99_ms']:g} ms"
        )
    print(
        f"three to one: {found['pipelined_three_to_one']:g} of the rate, {found['idle_three_to_one']:g} times the wait"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
