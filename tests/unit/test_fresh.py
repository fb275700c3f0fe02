"""Which sandboxes start from one that was kept when it was fresh: those of a kind that is asked for often."""

import asyncio
from pathlib import Path

import pytest

from shoal.wire.messages import Blob, Resources, Snapshot
from shoal_executor.drivers.gvisor import fresh
from shoal_executor.drivers.gvisor.fresh import WORTH, Fresh
from shoal_executor.drivers.protocol import DriverError, StartSpec

MANY = 8
HOST = StartSpec(Snapshot("host", "host"))


class Keeping:
    """Keeps what it is asked to when the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[StartSpec, Path]] = []
        self.go = asyncio.Event()
        self.problem: Exception | None = None
        self.given_up = 0

    async def __call__(self, spec: StartSpec, image: Path) -> None:
        self.asked.append((spec, image))
        image.mkdir(parents=True)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        if self.problem is not None:
            raise self.problem


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def other(name: str) -> StartSpec:
    return StartSpec(Snapshot(name, "dir", f"/{name}"))


async def test_one_is_kept_when_it_is_worth_it_and_there_when_it_is_done(tmp_path: Path) -> None:
    keeping = Keeping()
    kinds = Fresh(tmp_path, keeping, MANY)
    kinds.asked(HOST, WORTH - 1)
    kinds.asked(other("another"), WORTH - 1)
    await settled()
    assert keeping.asked == []
    kinds.asked(HOST, 1)
    kinds.asked(HOST, 100)
    await settled()
    assert [spec for spec, _ in keeping.asked] == [HOST]
    assert kinds.image(HOST) is None
    keeping.go.set()
    await settled()
    assert kinds.image(HOST) == keeping.asked[0][1]
    assert kinds.image(other("another")) is None
    await kinds.close()
    assert kinds.image(HOST) is None
    assert keeping.given_up == 0


async def test_a_kind_is_what_is_on_the_disk_and_mounted_beside_it(tmp_path: Path) -> None:
    keeping = Keeping()
    keeping.go.set()
    kinds = Fresh(tmp_path, keeping, MANY)
    kinds.asked(HOST, WORTH)
    await settled()
    assert kinds.image(StartSpec(HOST.snapshot, env=(("A", "b"),), user="nobody")) is not None
    assert kinds.image(StartSpec(HOST.snapshot, Resources(cpu_milli=4000, memory=8 << 30))) is None, "a larger /dev/shm"
    with_memory = StartSpec(Snapshot("kept", "host", memory=Blob("d", 1)))
    kinds.asked(with_memory, 100)
    await settled()
    assert len(keeping.asked) == 1
    assert kinds.image(with_memory) is None
    await kinds.close()


@pytest.mark.parametrize("problem", [DriverError("runsc failed"), OSError("no room"), TimeoutError()])
async def test_what_cannot_be_kept_is_not_tried_again(tmp_path: Path, problem: Exception) -> None:
    keeping = Keeping()
    keeping.go.set()
    keeping.problem = problem
    kinds = Fresh(tmp_path, keeping, MANY)
    for _ in range(3):
        kinds.asked(HOST, WORTH)
        await settled()
        assert kinds.image(HOST) is None
    assert len(keeping.asked) == 1
    assert list(tmp_path.iterdir()) == [], "nothing of it stays"
    await kinds.close()


async def test_what_cannot_be_restored_is_used_no_more(tmp_path: Path) -> None:
    keeping = Keeping()
    keeping.go.set()
    kinds = Fresh(tmp_path, keeping, MANY)
    kinds.asked(HOST, WORTH)
    await settled()
    kinds.useless(HOST)
    kinds.useless(other("never-asked-for"))
    assert list(tmp_path.iterdir()) == []
    kinds.asked(HOST, WORTH)
    await settled()
    assert kinds.image(HOST) is None
    assert len(keeping.asked) == 1
    await kinds.close()


async def test_those_asked_for_longest_ago_are_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fresh, "KEPT", 2)
    keeping = Keeping()
    keeping.go.set()
    kinds = Fresh(tmp_path, keeping, MANY)
    for name in ("a", "b", "a", "c"):
        kinds.asked(other(name), WORTH)
        await settled()
    assert [kinds.image(other(name)) is not None for name in "abc"] == [True, False, True]
    assert len(list(tmp_path.iterdir())) == 2
    keeping.go.clear()
    for name in ("d", "e", "f"):
        kinds.asked(other(name), WORTH)
        await settled()
    assert keeping.given_up == 1
    assert len(list(tmp_path.iterdir())) == 2, "what was begun of it is gone, too"
    await kinds.close()
    assert keeping.given_up == 3


async def test_what_is_given_up_has_ended_when_all_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fresh, "KEPT", 1)
    ended = []

    async def keep(spec: StartSpec, image: Path) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            ended.append(spec.snapshot.digest)

    kinds = Fresh(tmp_path, keep, MANY)
    for name in ("a", "b"):
        kinds.asked(other(name), WORTH)
        await settled()
    await kinds.close()
    assert sorted(ended) == ["a", "b"]


async def test_one_let_go_that_is_asked_for_again_is_kept_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fresh, "KEPT", 1)
    keeping = Keeping()
    keeping.go.set()
    kinds = Fresh(tmp_path, keeping, MANY)
    for name in ("a", "b", "a"):
        kinds.asked(other(name), WORTH)
        await settled()
    assert kinds.image(other("a")) == keeping.asked[2][1]
    assert len({image for _, image in keeping.asked}) == 3
    assert [path.name for path in tmp_path.iterdir()] == [keeping.asked[2][1].name]
    await kinds.close()


@pytest.mark.parametrize(("sandboxes", "waits"), [(MANY - 1, False), (MANY, True)])
async def test_many_wait_until_one_is_kept_and_few_do_not(tmp_path: Path, sandboxes: int, waits: bool) -> None:
    keeping = Keeping()
    kinds = Fresh(tmp_path, keeping, MANY)
    kinds.asked(HOST, sandboxes)
    image = asyncio.create_task(kinds.awaited(HOST))
    await settled()
    assert image.done() is not waits
    keeping.go.set()
    assert await image == (keeping.asked[0][1] if waits else None)
    await settled()
    assert await kinds.awaited(HOST) == keeping.asked[0][1]
    assert await kinds.awaited(other("another")) is None
    await kinds.close()


@pytest.mark.parametrize("problem", [None, DriverError("runsc failed")])
async def test_nobody_waits_for_long_nor_for_what_cannot_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception | None
) -> None:
    monkeypatch.setattr(fresh, "_PATIENCE_S", 0.05 if problem is None else 60.0)
    keeping = Keeping()
    keeping.problem = problem
    if problem is not None:
        keeping.go.set()
    kinds = Fresh(tmp_path, keeping, MANY)
    kinds.asked(HOST, MANY)
    async with asyncio.timeout(10):
        assert await kinds.awaited(HOST) is None
    assert len(kinds._making) == (1 if problem is None else 0)
    await kinds.close()


async def test_who_waits_and_gives_up_leaves_it_being_kept(tmp_path: Path) -> None:
    keeping = Keeping()
    kinds = Fresh(tmp_path, keeping, MANY)
    kinds.asked(HOST, MANY)
    waiting = asyncio.create_task(kinds.awaited(HOST))
    await settled()
    waiting.cancel()
    await settled()
    keeping.go.set()
    await settled()
    assert kinds.image(HOST) is not None
    await kinds.close()


async def test_what_has_anothers_digest_is_not_of_its_kind(tmp_path: Path) -> None:
    keeping = Keeping()
    kinds = Fresh(tmp_path, keeping, MANY)
    keeping.go.set()
    liar = StartSpec(Snapshot("host", "dir", "/theirs"))
    kinds.asked(liar, WORTH)
    await settled()
    assert kinds.image(liar) is not None
    assert kinds.image(HOST) is None
    await kinds.close()
