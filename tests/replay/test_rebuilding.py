"""Any past state, from whichever checkpoint, is the state there was."""

import random

import pytest

from replay.recordings import Recording, recorded
from shoal.archive.source import ArchiveError
from shoal.machine.core import Cause, respond
from shoal.replay.comparing import differences
from shoal.replay.rebuilding import rebuild
from shoal.wire.codec import encode


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
                respond(core, encode(entry.message), Cause(partition.log.name, entry.sequence, entry.time_ms))
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


def test_differences_go_by_names_where_there_are_any() -> None:
    before = {"rollouts": [{"request": {"rollout": "a"}, "n": 1}, {"request": {"rollout": "b"}, "n": 2}], "x": []}
    after = {"rollouts": [{"request": {"rollout": "b"}, "n": 3}], "x": [["k", 1]]}
    assert sorted(differences(before, after), key=str) == [
        ("rollouts[a].n", 1, None), ("rollouts[a].request.rollout", "a", None), ("rollouts[b].n", 2, 3),
        ("x", [], None), ("x[k][0]", None, "k"), ("x[k][1]", None, 1),
    ]  # fmt: skip
