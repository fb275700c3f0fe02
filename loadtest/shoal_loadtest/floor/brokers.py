"""The broker's floor and a whole Shoal in turn, for each way to run brokers."""

import statistics
from collections.abc import Callable, Sequence
from typing import Final

from shoal_loadtest.floor import chain, whole
from shoal_loadtest.floor.channels import CHANNELS
from shoal_loadtest.floor.fabric import Brokers
from shoal_loadtest.floor.figures import Row
from shoal_loadtest.floor.work import Work

PART: Final = "broker"
RATE: Final = "sandboxes a second"
CPU: Final = "cpu for a sandbox"
WHOLE: Final = {"Shoal, the chain's trainer": "nats-py", "Shoal, its own client": ""}
"""Shoal's services, asked by the same trainer as the chain's, and asked as users do: the channel of each."""


async def measure(
    brokers: Brokers, work: Work, nodes: int, rounds: int, *, vs: bool, say: Callable[[str], None]
) -> list[Row]:
    """Take turns; returns the rows. All is compared with the faster of the bare chains. Raises Failure."""
    found: dict[str, list[chain.Through]] = {}
    for number in range(rounds):
        for channel in CHANNELS:
            say(f"{brokers.name}: bare chain with {channel}, round {number + 1} of {rounds}")
            found.setdefault(f"bare chain, {channel}", []).append(await chain.bare(brokers, work, channel))
        for side, channel in WHOLE.items() if vs else ():
            say(f"{brokers.name}: {side}, round {number + 1} of {rounds}")
            found.setdefault(side, []).append(await whole.through(brokers, work, nodes, channel))
    return rows(f"{brokers.name}; {work.lifecycle}", found)


def rows(case: str, found: dict[str, list[chain.Through]]) -> list[Row]:
    """Return the rows of one case; all are compared with the fastest bare chain."""
    bare = [side for side in found if side not in WHOLE]
    fastest = max(bare, key=lambda side: statistics.median(each.a_second for each in found[side]))
    made = []
    for side, turns in found.items():
        against = "" if side == fastest else fastest
        made.append(Row(PART, case, side, RATE, "1/s", tuple(each.a_second for each in turns), against))
        made.append(
            Row(PART, case, side, CPU, "us", tuple(each.total_us for each in turns), against, note=_parts(turns))
        )
    return made


def _parts(turns: Sequence[chain.Through]) -> str:
    """Return whose processor time it was, in the last turn."""
    return ", ".join(f"{name} {us:.1f}" for name, us in turns[-1].cpu_us.items())
