"""Bare loops with real sandboxes: each has some through, leaves nothing, or says what is missing."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import shoal
from shoal.bus.jetstream import JetStreamBus
from shoal.machine import ranges
from shoal.wire.codec import decode
from shoal.wire.messages import SlotsReleased
from shoal_loadtest.floor import whole
from shoal_loadtest.floor.bare import Bubblewrap, Program, Runc, Runsc
from shoal_loadtest.floor.channels import CHANNELS
from shoal_loadtest.floor.commands import ISOLATIONS, Commands
from shoal_loadtest.floor.ends import ends
from shoal_loadtest.floor.fabric import mark
from shoal_loadtest.floor.forks import ForkLoop
from shoal_loadtest.floor.loops import Loop, ProgramLoop, RestoredLoop, ShoalLoop, turn, zygote
from shoal_loadtest.floor.roles import PLACEMENT_LOG

pytestmark = [pytest.mark.sandbox, pytest.mark.skipif(os.geteuid() != 0, reason="the loops are compared as root")]

PROGRAMS: dict[str, Callable[[], Program]] = {"bwrap": Bubblewrap, "runc": Runc, "runsc": lambda: Runsc(restored=True)}


async def through(loop: Loop, place: Path, count: int) -> None:
    try:
        await loop.open(place)
        found = await turn(loop.unit, "x", count, 2)
        assert len(found.first_ms) == count
        assert all(ms > 0 for ms in found.first_ms)
    finally:
        await loop.close()
    assert f"{place}/" not in Path("/proc/self/mounts").read_text()


@pytest.mark.parametrize("make", [zygote, ForkLoop], ids=["driver", "fork server"])
async def test_the_zygote_by_itself(tmp_path: Path, make: Callable[[], Loop]) -> None:
    await through(make(), tmp_path, 6)


async def test_a_kept_gvisor_sandbox_by_the_driver(tmp_path: Path) -> None:
    if shutil.which("runsc") is None or shutil.which("mkfs.erofs") is None:
        pytest.skip("needs runsc and erofs-utils")
    await through(RestoredLoop(), tmp_path, 2)


@pytest.mark.parametrize("program", PROGRAMS)
async def test_programs_that_start_sandboxes(tmp_path: Path, program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}")
    await through(ProgramLoop(PROGRAMS[program]()), tmp_path, 3)


@pytest.mark.broker
async def test_a_unit_of_shoals_is_over_when_its_sandboxes_have_ended() -> None:
    async with (
        whole.up("simulated") as system,
        shoal.connect(system.url) as cluster,
        ends(system.url) as ended,
    ):
        loop = ShoalLoop(cluster, "host", "simulated", ended)
        before = await mark(system.url)
        assert await loop.unit("one") > 0
        assert len(await loop.burst(40)) == 40
        bus = await JetStreamBus.connect(system.url)
        try:
            last = await bus.last_sequence(PLACEMENT_LOG)
            reader = await bus.reader(PLACEMENT_LOG, after=before.placement)
            found = [message for message in await reader.batch() if message.sequence <= last]
        finally:
            await bus.close()
    freed = [m for m in (decode(each.payload) for each in found) if isinstance(m, SlotsReleased)]
    assert sum(ranges.count(message.indices) for message in freed) == 41


@pytest.mark.broker
@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_commands_are_timed_by_the_driver_by_a_bare_process_and_through_shoal(
    tmp_path: Path, isolation: str
) -> None:
    if isolation == "gvisor" and shutil.which("runsc") is None:
        pytest.skip("needs runsc: apt install runsc")  # it is what is timed; `make test` installs it only as root
    commands = Commands(isolation, 3)
    await commands.round(tmp_path)
    rows = commands.rows()
    sides = ("driver", *(f"bare process, {channel}" for channel in CHANNELS), "Shoal")
    kinds = ("a program", "a line in its shell session")
    assert {(row.side, row.case) for row in rows} == {
        (side, f"{kind}, {isolation}") for side in sides for kind in kinds
    }
    assert all(len(row.values) == 1 and row.values[0] > 0 and not row.note for row in rows)
    assert f"{tmp_path}/" not in Path("/proc/self/mounts").read_text()
