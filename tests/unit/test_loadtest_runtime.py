"""The runtime's floor, with loops that only pretend: who is best at what, and what cannot be had."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from shoal.cli.exits import Exit, Failure
from shoal_loadtest.floor.bare import Missing
from shoal_loadtest.floor.figures import Row, compared
from shoal_loadtest.floor.runtime import RATE, Kind, Runtime


class Pretended:
    """Takes a moment for each, and cannot have more than so many at a time."""

    def __init__(self, name: str, most: int = 64, trouble: str = "") -> None:
        self.name = name
        self._most = most
        self._trouble = trouble
        self._now = 0
        self.closed = 0

    async def open(self, place: Path) -> None:
        assert place.is_dir()
        if self._trouble:
            raise Missing(self._trouble)

    async def unit(self, name: str) -> float:
        self._now += 1
        try:
            if self._now > self._most:
                raise Missing("too many at a time")
            await asyncio.sleep(0.002)
        finally:
            self._now -= 1
        return 0.002

    async def close(self) -> None:
        self.closed += 1


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., asyncio.Future[dict[str, Row]]]:
    """Measure with these loops, and a Shoal that does not come up."""

    async def whole(self: Runtime, number: int) -> None:
        raise Failure(Exit.START_FAILED, "the executor cannot start")

    monkeypatch.setattr(Runtime, "_whole", whole)

    async def run(*loops: Pretended) -> dict[str, Row]:
        kind = Kind("pretended", "zygote", ("driver", "other"), lambda: loops)
        rows = compared(await Runtime(kind, 64, lambda _: None).run(tmp_path, 2))
        assert [loop.closed for loop in loops] == [1] * len(loops)
        return {row.side: row for row in rows if row.figure == RATE}

    return run  # type: ignore[return-value]


async def test_more_at_a_time_than_start_are_not_tried(
    measured: Callable[..., asyncio.Future[dict[str, Row]]],
) -> None:
    found = await measured(Pretended("driver"), Pretended("other", most=4))
    assert len(found["driver"].values) == 2
    assert found["other"].note.startswith(("best with 2", "best with 4"))
    # It is timed at 32 at a time, too, and that fails: the other rounds and the other sides go on.
    assert "too many at a time" in found["other"].note
    assert found["Shoal"].note == "the executor cannot start"
    assert found["Shoal"].values == ()


async def test_what_is_missing_says_why_and_the_next_is_compared_with(
    measured: Callable[..., asyncio.Future[dict[str, Row]]],
) -> None:
    found = await measured(Pretended("driver", trouble="runsc is not installed"), Pretended("other"))
    assert (found["driver"].values, found["driver"].note) == ((), "runsc is not installed")
    assert (found["other"].against, found["Shoal"].against) == ("", "other")


async def test_where_nothing_can_be_had_shoal_is_not_brought_up(
    measured: Callable[..., asyncio.Future[dict[str, Row]]],
) -> None:
    found = await measured(Pretended("driver", trouble="no"), Pretended("other", trouble="no"))
    assert found["Shoal"].note == "there is nothing to compare it with"
