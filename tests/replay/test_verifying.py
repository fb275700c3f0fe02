"""Whatever happened to a cluster, its recording is verified; and whatever is different now is found, and named."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from replay.recordings import Recording, recorded
from shoal.archive.source import ArchiveError
from shoal.bus.protocol import Delivery
from shoal.machine.core import Cause, Core, Effect, Publish, cause_of
from shoal.replay.explaining import causes
from shoal.replay.services import services
from shoal.replay.verifying import verify
from shoal.wire import messages as m, subjects
from shoal.wire.codec import encode
from shoal_placement.core.placement import PlacementCore
from shoal_scheduler.core.scheduler import SchedulerCore

SEEDS = range(60)


@pytest.mark.parametrize("first", range(0, 60, 20))
async def test_every_effect_is_as_it_was_recorded(first: int) -> None:
    compared = 0
    for seed in range(first, first + 20):
        cluster, known = recorded(seed)
        found = await verify(Recording(cluster), known)
        assert found.divergence is None, f"seed {seed}: {found.divergence}"
        assert found.folded == {each.name: len(each.log.entries) for each in cluster.partitions}
        compared += sum(found.compared.values())
    assert compared > 500


async def test_a_log_whose_beginning_is_gone_is_verified_from_a_state_on() -> None:
    begun = 0
    for seed in SEEDS:
        cluster, known = recorded(seed)
        first = {}
        for each in cluster.partitions:
            later = [sequence for sequence, _ in each.checkpoints if sequence > 3]
            if later:
                first[each.log.name] = min(later) - 2
        found = await verify(Recording(cluster, first), known)
        assert found.divergence is None, f"seed {seed}: {found.divergence}"
        begun += len(first)
    assert begun > 10


async def test_without_any_state_it_says_so() -> None:
    cluster, known = recorded(1)
    cluster.partitions[0].checkpoints.clear()
    name = cluster.partitions[0].log.name
    with pytest.raises(ArchiveError, match=f"{name} begins with message 5, and no state"):
        await verify(Recording(cluster, {name: 5}), known)


async def test_what_was_never_recorded_is_found_and_so_is_what_nobody_says_now() -> None:
    cluster, known = recorded(4)
    assert cluster.shape.cells == 1
    recording = Recording(cluster)
    lost = next(
        (stream, each)
        for stream, messages in recording.messages.items()
        for each in messages
        if stream.startswith("SHOAL_EXECUTOR") and each.id.startswith("SHOAL_PLACEMENT_0:")
    )
    recording.messages[lost[0]].remove(lost[1])
    inbox = recording.messages["SHOAL_PLACEMENT_0"]
    late = Delivery(
        subjects.placement_tick(0), encode(m.Tick(0)), len(inbox) + 1, inbox[-1].time_ms + 200_000, "tick"
    )  # fmt: skip
    found = await verify(recording, known)
    assert (found.divergence, found.unfinished) == (None, 1)  # it may be on its way still
    inbox.append(late)
    found = await verify(recording, known)
    assert found.divergence is not None
    assert found.divergence.recorded is None
    assert cause_of(lost[1].id) == ("SHOAL_PLACEMENT_0", found.divergence.sequence, found.divergence.number)
    assert "was never recorded" in found.divergence.what

    recording = Recording(cluster)
    (last,) = recording.messages["SHOAL_ROLLOUT_0"][-1:]
    invented = msgspec.structs.replace(last, sequence=last.sequence + 1, id="SHOAL_ROLLOUT_0:2:77")
    recording.messages["SHOAL_ROLLOUT_0"].append(invented)
    found = await verify(recording, known)
    assert found.divergence is not None
    assert "nothing of the kind follows now" in found.divergence.what
    assert found.divergence.cause.sequence == 2
    assert found.divergence.cause.subject  # it is looked up


class PlacesElsewhere(PlacementCore):
    """Placement that puts every fifth start on another attempt."""

    def handle(self, message: m.AnyMessage, cause: Cause) -> Sequence[Effect]:
        return [
            Publish(e.subject, msgspec.structs.replace(e.message, deadline_ms=e.message.deadline_ms + 1))
            if isinstance(e, Publish) and isinstance(e.message, m.StartSandboxes) and not cause.sequence % 5 else e
            for e in super().handle(message, cause)
        ]  # fmt: skip


class SaysLess(SchedulerCore):
    """A scheduler that concludes nothing."""

    def handle(self, message: m.AnyMessage, cause: Cause) -> Sequence[Effect]:
        return [
            e for e in super().handle(message, cause)
            if not (isinstance(e, Publish) and isinstance(e.message, m.RolloutConcluded))
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("service", "make"),
    [
        ("placement", lambda cell, _: PlacesElsewhere(cell)),
        ("scheduler", lambda cell, cells: SaysLess(cell, cells=cells)),
    ],
)
async def test_a_planted_change_is_found_at_its_first_place_with_its_cause(
    service: str, make: Callable[[int, int], Core]
) -> None:
    for seed in SEEDS:
        cluster, known = recorded(seed)
        if cluster.shape.quota < 100:
            continue
        known[service] = dataclasses.replace(known[service], make=make)
        recording = Recording(cluster)
        found = (await verify(recording, known)).divergence
        if found is None:
            continue
        assert found.partition.startswith(service)
        cause = next(
            e for p in cluster.partitions if p.name == found.partition for e in p.log.entries[found.sequence - 1 :]
        )
        assert (found.cause.sequence, found.cause.id) == (cause.sequence, cause.id)
        if service == "placement":
            assert not found.sequence % 5
            before, now = found.recorded, found.computed
            assert before is not None
            assert now is not None
            assert isinstance(before.message, m.StartSandboxes)
            assert isinstance(now.message, m.StartSandboxes)
            assert now.message.deadline_ms == before.message.deadline_ms + 1
        chain = await causes(
            recording, next(p.log.name for p in cluster.partitions if p.name == found.partition), found.cause
        )
        assert not chain[-1][1].id.startswith("SHOAL_")  # back to what somebody asked, or an executor said
        return
    raise AssertionError("no seed shows it")


async def test_another_policy_shows_where_it_first_matters() -> None:
    for seed in range(200):
        cluster, known = recorded(seed)
        if cluster.shape.cells > 1 or cluster.shape.tenants < 2:
            continue
        found = await verify(Recording(cluster), known, overrides={"scheduler": {"order": "fifo"}})
        if found.divergence is not None:
            assert found.divergence.partition == "scheduler.0"
            assert (await verify(Recording(cluster), known)).divergence is None
            return
    raise AssertionError("no seed shows it")


async def test_a_setting_that_is_none_is_refused() -> None:
    cluster, known = recorded(1)
    with pytest.raises(ArchiveError, match="no settings of a scheduler"):
        await verify(Recording(cluster), known, overrides={"scheduler": {"order": "alphabetical"}})


def test_services_are_found_where_they_are_installed() -> None:
    assert list(services()) == ["placement", "scheduler", "snapshot"]
    for known in services().values():
        core: Any = known.make(0, 1)
        assert known.summary(known.decoded(core.dump()))
