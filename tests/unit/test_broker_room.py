"""A broker whose disk was full and is freed: it is told, and that it has to be started again."""

import asyncio
from collections import namedtuple
from pathlib import Path

import pytest

from shoal.broker import EmbeddedBroker, room
from shoal.broker.room import room_again
from shoal.cli.system import LocalSystem

Usage = namedtuple("Usage", "free")
COMPLAINT = "[1] [ERR] JetStream failed to store a msg: write 1.blk: no space left on device"


class Disk:
    """One of a size, with so much free."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, state: Path) -> None:
        self.free = 2**30
        self.log = state / "nats.log"
        self.log.write_text(f"{COMPLAINT} of an earlier server\n")
        monkeypatch.setattr("shoal.broker.room.shutil.disk_usage", lambda _: Usage(self.free))

    def complain(self) -> None:
        with self.log.open("a") as log:
            log.write(f"[1] [INF] ready\n{COMPLAINT}\n[1] [INF] done\n")


async def until(told: list[str], count: int) -> None:
    async with asyncio.timeout(10):
        while len(told) < count:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("heard", [True, False], ids=["its log has room", "its log has none"])
async def test_full_then_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: bool) -> None:
    disk, told = Disk(monkeypatch, tmp_path), list[str]()
    waiting = asyncio.create_task(room_again("broker", tmp_path, told.append, 0.001))
    await asyncio.sleep(0.05)
    assert not told
    assert not waiting.done()  # what an earlier server said is nothing to this one
    disk.free = 0
    if heard:
        disk.complain()
    await until(told, 1)
    assert f"the disk of broker, {tmp_path}, is full" in told[0]
    assert not waiting.done()
    disk.free = 2**30
    if not heard:
        await asyncio.sleep(0.05)
        assert not waiting.done()  # a server that did not fail goes on
        disk.complain()
    assert await asyncio.wait_for(waiting, 10) == COMPLAINT


@pytest.mark.parametrize("dead", [False, True])
async def test_whoever_keeps_it_up_hears_that_it_is_of_no_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dead: bool
) -> None:
    async def again(*_: object) -> str:
        if dead:
            await asyncio.Event().wait()
        return COMPLAINT

    monkeypatch.setattr(room, "room_again", again)
    process = await asyncio.create_subprocess_exec("sleep", "0" if dead else "60")
    system, server = LocalSystem(tmp_path), EmbeddedBroker(tmp_path)
    why = await asyncio.wait_for(system._until_useless("broker", server, process.pid), 10)
    assert why == ("died" if dead else f"stores nothing though its disk has room again: {COMPLAINT}")
    if not dead:
        process.kill()
    await process.wait()
