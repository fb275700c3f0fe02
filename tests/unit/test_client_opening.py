"""What is to be awaited, and what a trainer who forgets it is told; addresses; outcomes that say nothing."""

import asyncio
import gc
import sys
import threading

import pytest

import shoal
from shoal.client.opening import Opening
from shoal.wire.messages import EndReason, RolloutSubmitted
from unit.client_fabric import Fabric, all_ready


@pytest.mark.filterwarnings("ignore:.*was never awaited:RuntimeWarning")
async def test_what_is_used_without_await_says_what_to_write() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        opening = cluster.rollout("host")
        with pytest.raises(AttributeError, match=r"rollout\(\) is not there yet, so it has no ready: await"):
            opening.ready()  # type: ignore[attr-defined]  # a trainer's slip
        with pytest.raises(TypeError, match="await it, or enter it with `async with`"):
            iter(opening)  # type: ignore[call-overload]  # a trainer's slip
        with pytest.raises(TypeError, match="await it, or enter it with `async with`"), opening:  # type: ignore[attr-defined]  # a trainer's slip
            pass
        with pytest.raises(TypeError, match="await it, or enter it with `async with`"):
            async for _ in opening:  # type: ignore[attr-defined]  # a trainer's slip
                pass
        with pytest.raises(AttributeError, match=r"connect\(\) is not there yet, so it has no map"):
            shoal.connect(bus=fabric.connect()).map("host", ["x"])  # type: ignore[attr-defined]  # a trainer's slip
        assert fabric.requests == {}
        rollout = await opening  # it can still be
        with pytest.raises(TypeError, match=r"rollout\.ready\(\)`, or outcomes\(\)"):
            async for _ in rollout:  # type: ignore[attr-defined]  # a trainer's slip
                pass


async def test_what_was_never_awaited_is_warned_of_and_nothing_else() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        forgotten = cluster.rollout("host", 64)
        with pytest.warns(RuntimeWarning, match=r"rollout\(\) was never awaited: nothing was asked for"):
            del forgotten
        await cluster.rollout("host")
        async with cluster.rollout("host"):
            pass
        with pytest.raises(shoal.BadRequest):
            await cluster.rollout("")
        gc.collect()  # a warning would be an error


@pytest.mark.parametrize(
    "url", [4222, ["nats://a"], "http://127.0.0.1:4222", "nats://127.0.0.1,https://b:4222", "NATS://a"]
)
async def test_an_address_that_is_none_is_refused_at_once(url: object) -> None:
    with pytest.raises(shoal.BadRequest, match="write nats://") as caught:
        await shoal.connect(url)  # type: ignore[arg-type]  # a trainer's slip
    assert caught.value.field == "url"


async def test_a_password_in_a_refused_address_is_not_shown() -> None:
    with pytest.raises(shoal.BadRequest) as caught:
        await shoal.connect("http://me:secret@broker")
    assert "secret" not in str(caught.value)


async def test_what_speaks_with_a_broker_is_imported_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def imported(name: str) -> object:
        threads.append(threading.current_thread())
        return sys.modules[name]

    monkeypatch.setattr("shoal.client.cluster.import_module", imported)
    with pytest.raises(shoal.Unreachable):
        await shoal.connect("nats://127.0.0.1:1", timeout=2)
    assert len(threads) == 1
    assert threads != [threading.main_thread()]


@pytest.mark.parametrize(
    ("reason", "verdict"),
    [
        (EndReason.TIMED_OUT, True),
        (EndReason.OUT_OF_MEMORY, True),
        (EndReason.BAD_INPUT, True),
        (EndReason.RELEASED, False),
        (EndReason.CANCELLED, False),
        (EndReason.NODE_LOST, False),
        (EndReason.NOT_STARTED, False),
    ],
)
async def test_an_outcome_that_says_nothing_of_what_ran_is_neither_good_nor_bad(
    reason: EndReason, verdict: bool
) -> None:
    def script(fabric: Fabric, request: RolloutSubmitted) -> None:
        fabric.ended(request.rollout, 0, reason=reason)
        fabric.concluded(request.rollout)

    async with Fabric(script) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        (outcome,) = await cluster.map("host", ["x"], on_lost="fail")
        if verdict:
            assert outcome.ok is False
        else:
            with pytest.raises((shoal.SandboxLost, shoal.SandboxEnded)):
                _ = outcome.ok
        with pytest.raises((shoal.SandboxLost, shoal.SandboxEnded)):
            _ = outcome.exit_code


async def test_waiting_for_it_elsewhere_counts_as_awaiting() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        first, second = await asyncio.gather(cluster.rollout("host"), cluster.rollout("host"))
        assert first.id != second.id


def test_what_was_never_made_has_nothing_and_says_nothing() -> None:
    made = Opening.__new__(Opening)
    with pytest.raises(AttributeError, match="_open"):
        made._open  # noqa: B018 - what Python asks when it copies
    del made
