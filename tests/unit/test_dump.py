"""Nobody looks for cycles while a core's state is dumped, and whoever did before does so again after it."""

import gc
from collections.abc import Iterator
from typing import cast

import pytest

from shoal.machine.core import Core
from shoal.runtime.checkpoints import dump


class Dumped:
    """A core that notes whether there is looking for cycles."""

    def __init__(self, error: Exception | None = None) -> None:
        self.collected: list[bool] = []
        self._error = error

    def dump(self) -> bytes:
        self.collected.append(gc.isenabled())
        if self._error is not None:
            raise self._error
        return b"state"


@pytest.fixture(autouse=True)
def collecting() -> Iterator[None]:
    gc.enable()
    yield
    gc.enable()


@pytest.mark.parametrize("before", [True, False])
def test_a_dump_is_not_interrupted(before: bool) -> None:
    core = Dumped()
    if not before:
        gc.disable()
    assert dump(cast(Core, core)) == b"state"
    assert core.collected == [False]
    assert gc.isenabled() is before


def test_one_that_fails_leaves_it_as_it_was() -> None:
    core = Dumped(MemoryError())
    with pytest.raises(MemoryError):
        dump(cast(Core, core))
    assert core.collected == [False]
    assert gc.isenabled()
