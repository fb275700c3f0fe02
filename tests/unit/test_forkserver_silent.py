"""A fork server that does nothing of what it is told: whoever waited is told which, and for how long."""

import os

import pytest

from shoal_executor.drivers.protocol import NotEndedError
from shoal_executor.drivers.zygote import sandbox as module
from shoal_executor.drivers.zygote.forkserver import ForkServer
from shoal_executor.drivers.zygote.sandbox import Sandbox


async def test_a_sandbox_that_it_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UP_S", 0.05)
    stopped = ForkServer(lambda *_: None, lambda *_: None)
    stopped.pid = os.getpid()
    sandbox = Sandbox("r-0", None, None, zygote=stopped)  # type: ignore[arg-type]  # its end asks neither
    with pytest.raises(TimeoutError) as told:
        await sandbox.killed()
    why = f"the fork server, process {os.getpid()}, did not answer within 0.05 s; is it stopped?"
    assert str(NotEndedError(["r-0"], told.value)) == f"1 could not be ended, r-0 for one: {why}"
