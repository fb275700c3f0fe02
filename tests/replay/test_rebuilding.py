"""Any past state, from whichever checkpoint, is the state there was."""

import dataclasses
import random
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import MappingProxyType

import pytest

from replay.recordings import Recording, recorded
from shoal.archive.source import ArchiveError
from shoal.machine.checkpoint import Checkpoint
from shoal.machine.core import Cause, respond
from shoal.machine.versions import Upgrade
from shoal.replay.comparing import differences
from shoal.replay.rebuilding import rebuild
from shoal.replay.verifying import verify
from shoal.wire.codec import encode
from shoal_placement.core.placement import PlacementCore


async def test_a_state_is_what_was_live_then_with_and_without_checkpoints() -> None:
    source, begun = random.Random(5), 0
    for seed in range(30):
        cluster, known = recorded(seed)
        recording = Recording(cluster)
        for partition in cluster.partitions:
            name, _, cell = partition.name.partition(".")
            entries = partition.log.entries
            if not entries:
                continue
            at = source.randint(1, len(entries))
            core = known[name].make(int(cell or 0), cluster.shape.cells)
            for entry in entries[:at]:
                respond(
                    core, entry.subject, encode(entry.message), Cause(partition.log.name, entry.sequence, entry.time_ms)
                )
            for checkpoints in (True, False):
                found = await rebuild(recording, known[name], int(cell or 0), sequence=at, checkpoints=checkpoints)
                assert (found.core.dump(), found.sequence) == (core.dump(), at)
                assert found.begun + found.folded == at
                begun += bool(found.begun)
            moment = entries[at - 1].time_ms
            last = max(entry.sequence for entry in entries if entry.time_ms <= moment)
            found = await rebuild(recording, known[name], int(cell or 0), at_ms=moment)
            assert found.sequence == last
    assert begun > 20


async def test_what_cannot_be_told_is_said() -> None:
    cluster, known = recorded(1)
    stream = cluster.partitions[0].log.name
    cluster.partitions[0].checkpoints.clear()
    with pytest.raises(ArchiveError, match="no checkpoint of before it is at hand"):
        await rebuild(Recording(cluster, {stream: 4}), known["placement"], 0)
    with pytest.raises(ArchiveError, match="there is no cell 99"):
        await rebuild(Recording(cluster), known["placement"], 99)


class NextPlacement(PlacementCore):
    """What a next version of it might be: its state is that of this one."""

    state_version = PlacementCore.state_version + 1
    upgrades: Mapping[int, Upgrade] = MappingProxyType({PlacementCore.state_version: lambda state: state})


async def test_a_checkpoint_of_an_earlier_version_is_brought_to_this_one() -> None:
    cluster, known = recorded(5)
    partition = next(each for each in cluster.partitions if each.name == "placement.0" and len(each.checkpoints) > 1)
    newer = dataclasses.replace(known["placement"], make=lambda cell, _: NextPlacement(cell))
    kept = Recording(cluster, {partition.log.name: 4})  # its beginning is gone, so only a checkpoint helps
    for sequence in (None, len(partition.log.entries)):
        found = await rebuild(kept, newer, 0, sequence=sequence)
        assert found.core.dump() == (await rebuild(kept, known["placement"], 0, sequence=sequence)).core.dump()
        assert (found.version, found.begun > 3) == (PlacementCore.state_version, True)
    with pytest.raises(ArchiveError, match=r"no state of placement\.0 is at hand"):
        await verify(kept, {**known, "placement": newer})  # what is made up is not what was decided on


class Counting(Recording):
    """One that counts the states that were loaded of it; `at_once`: how many there were at the same time, at most."""

    loaded = at_once = 0

    async def checkpoints(
        self, partition: str, *, version: int | None = None, until_ms: int | None = None, last: int | None = None
    ) -> Sequence[Checkpoint]:
        found = await super().checkpoints(partition, version=version, until_ms=until_ms, last=last)
        self.loaded += len(found)
        self.at_once = max(self.at_once, len(found))
        return found

    async def states(self, partition: str) -> AsyncGenerator[Checkpoint, None]:
        async for each in super().states(partition):
            self.loaded += 1
            yield each


async def test_of_many_states_one_is_in_memory() -> None:
    cluster, known = recorded(5)
    partition = next(each for each in cluster.partitions if len(each.checkpoints) > 2)
    name, _, cell = partition.name.partition(".")
    last = partition.log.entries[-1]
    for at_ms, sequence in ((None, None), (last.time_ms, None), (None, last.sequence)):
        history = Counting(cluster)
        found = await rebuild(history, known[name], int(cell or 0), at_ms=at_ms, sequence=sequence)
        assert found.begun == max(partition.checkpoints)[0]
        assert history.at_once <= 1
        assert history.loaded == (1 if sequence is None else len(partition.checkpoints))


async def test_verifying_begins_with_the_first_state_and_loads_no_other() -> None:
    cluster, known = recorded(5)
    partition = next(each for each in cluster.partitions if len(each.checkpoints) > 2)
    second = sorted(partition.checkpoints)[1][0]
    history = Counting(cluster, {partition.log.name: second - 1})
    found = await verify(history, known)
    assert found.divergence is None
    assert (history.loaded, history.at_once) == (2, 0)


def test_differences_go_by_names_where_there_are_any() -> None:
    before = {"rollouts": [{"request": {"rollout": "a"}, "n": 1}, {"request": {"rollout": "b"}, "n": 2}], "x": []}
    after = {"rollouts": [{"request": {"rollout": "b"}, "n": 3}], "x": [["k", 1]]}
    assert sorted(differences(before, after), key=str) == [
        ("rollouts[a].n", 1, None), ("rollouts[a].request.rollout", "a", None), ("rollouts[b].n", 2, 3),
        ("x", [], None), ("x[k][0]", None, "k"), ("x[k][1]", None, 1),
    ]  # fmt: skip
