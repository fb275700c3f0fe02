"""`shoal run` and `shoal watch` of a rollout that waits: why is said, once for each reason, beside the results."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from shoal.cli.results import cancelled_on_interrupt, follow
from shoal.client.results import CommandResult, RolloutStatus, SandboxOutcome
from shoal.wire.messages import EndReason

FULL, QUOTA = "waiting for 1 slot of 1 GiB", "the tenant's quota of 2 sandboxes is used up"


class Rollout:
    """One that waits for these reasons, one a look, and then has its outcome."""

    id, n = "rx", 1

    def __init__(self, *reasons: str) -> None:
        self._reasons = list(reasons)
        self._room = asyncio.Event()
        self.cancelled = False

    def status(self) -> RolloutStatus:
        reason = self._reasons.pop(0) if self._reasons else ""
        if not self._reasons:
            self._room.set()
        return RolloutStatus("rx", "t", "u", "host", 1, "queued", 1, 0, 0, {}, int(bool(reason)), 3, reason)

    async def outcomes(self) -> AsyncIterator[SandboxOutcome]:
        await self._room.wait()
        result = CommandResult(0, b"42\n", b"", 0.01)
        yield SandboxOutcome("rx-0", 0, 0, EndReason.SUCCEEDED, "n", "zygote", result, "", 1.0, 1.0)

    async def cancel(self) -> None:
        self.cancelled = True


async def test_each_reason_is_said_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("shoal.cli.results._LOOK_S", 0.0)
    rollout = Rollout(FULL, FULL, QUOTA, "", FULL, "")
    await follow(rollout, as_json=False)  # type: ignore[arg-type]  # as much of a rollout as is asked for
    out, err = capsys.readouterr()
    assert out == "42\n"
    assert [line for line in err.splitlines() if "behind" in line] == [
        f"rollout rx waits, behind 3 sandboxes: {FULL}",
        f"rollout rx waits, behind 3 sandboxes: {QUOTA}",
        f"rollout rx waits, behind 3 sandboxes: {FULL}",
    ]


async def test_that_it_was_cancelled_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    rollout = Rollout()
    with pytest.raises(asyncio.CancelledError):
        async with cancelled_on_interrupt(rollout):  # type: ignore[arg-type] # as much of a rollout as is asked for
            raise asyncio.CancelledError
    assert rollout.cancelled
    assert "rollout rx is cancelled" in capsys.readouterr().err
