"""Placement: every event in, exactly these effects out."""

from collections.abc import Sequence

import msgspec
import pytest

from shoal.machine import ranges
from shoal.machine.core import Cause, Effect, LawBrokenError, Publish
from shoal.wire.messages import (
    AnyMessage,
    Blob,
    CellCapacity,
    Command,
    DestroySandboxes,
    EndReason,
    ExecutorBeat,
    ExecutorHolds,
    ExecutorJoined,
    ExecutorLeft,
    ExecutorReplaced,
    NodeSpec,
    PlaceRequested,
    Pool,
    PrefetchSnapshot,
    Ranges,
    ReleaseRequested,
    Resources,
    RolloutSpec,
    Room,
    SandboxesEnded,
    SlotsReleased,
    Snapshot,
    StartSandboxes,
    Tick,
)
from shoal_placement.core.nodes import CHUNK
from shoal_placement.core.placement import LAST_MS, PlacementCore
from shoal_placement.core.roster import SILENCE_MS

HOST = Snapshot("host", "host")
MEMORY = 100


class Driven:
    """A core, driven message by message, checked after each."""

    def __init__(self) -> None:
        self.core = PlacementCore(0)
        self.now = 1_000
        self.sequence = 0

    def __call__(self, message: AnyMessage) -> list[AnyMessage]:
        self.sequence += 1
        effects: Sequence[Effect] = self.core.handle(message, Cause("SHOAL_PLACEMENT_0", self.sequence, self.now))
        self.core.check()
        return [effect.message for effect in effects if isinstance(effect, Publish)]

    def starts(self, message: AnyMessage) -> list[StartSandboxes]:
        return [said for said in self(message) if isinstance(said, StartSandboxes)]


def joined(
    executor: str = "e1", boot: str = "b1", nodes: int = 1, slots: int = 8, memory: int = 10_000, rate: float = 100
) -> ExecutorJoined:
    specs = tuple(NodeSpec(f"{executor}-n{number}", slots, memory) for number in range(nodes))
    return ExecutorJoined(executor, boot, "zygote", specs, rate)


def place(
    rollout: str = "r1", n: int = 4, indices: Ranges = (), commands: tuple[Command, ...] = (), **options: object
) -> PlaceRequested:
    spec = RolloutSpec("host", n, commands, Resources(memory=MEMORY))
    wanted = indices or ranges.whole(n)
    return PlaceRequested(rollout, "acme", "run", 0, 0, wanted, spec, HOST, 10**12, **options)  # type: ignore[arg-type]


def released(start: StartSandboxes, executor: str = "e1") -> SlotsReleased:
    return SlotsReleased(executor, start.boot, start.node, start.rollout, start.attempt, start.indices)


def test_a_group_goes_to_one_node_with_room_in_one_message() -> None:
    drive = Driven()
    room = Room(8, 10_000)
    assert drive(joined()) == [CellCapacity(8, 1, ("zygote",), (Pool("zygote", (), 1, room, room),))]
    (start,) = drive.starts(place(n=6))
    assert (start.node, start.boot, start.indices) == ("e1-n0", "b1", ((0, 6),))


def test_what_does_not_fit_waits_and_is_placed_as_room_comes() -> None:
    drive = Driven()
    drive(joined(slots=4))
    (first,) = drive.starts(place("r1", 4))
    assert drive(place("r2", 3)) == []
    assert drive(place("r3", 1)) == []
    (second,) = drive.starts(released(first))[:1]
    assert (second.rollout, second.indices) == ("r2", ((0, 3),))
    assert drive.core.handle(place("r3", 1), Cause("SHOAL_PLACEMENT_0", 99, drive.now)) == []  # a repeat is nothing


def ending(drive: Driven, rollout: str, n: int, in_ms: int) -> PlaceRequested:
    return msgspec.structs.replace(place(rollout, n), deadline_ms=drive.now + in_ms)


def test_what_waits_goes_back_shortly_before_its_rollouts_time_is_up() -> None:
    drive = Driven()
    drive(joined(slots=100, rate=1))  # there is room; its start queue is what is waited for
    drive(ending(drive, "r1", 40, 5_000))
    drive(ending(drive, "r2", 1, 4_000))
    drive.now += 4_000 - LAST_MS - 1
    drive(ExecutorBeat("e1", "b1"))
    wake = drive.core.wake_at_ms()
    assert wake is not None
    assert wake <= drive.now + 1
    assert not [each for each in drive(Tick(drive.now)) if isinstance(each, SandboxesEnded)]
    restarted = PlacementCore(0)
    restarted.load(drive.core.dump())
    drive.core = restarted
    drive.now += 1
    why = "no node had room for it before its rollout's time was up"
    assert drive(Tick(drive.now)) == [SandboxesEnded("r2", 0, ((0, 1),), "", EndReason.PREEMPTED, why)]
    drive.now += 1_000
    (back,) = (each for each in drive(Tick(drive.now)) if not isinstance(each, StartSandboxes))
    assert isinstance(back, SandboxesEnded)
    assert (back.rollout, back.node, back.reason) == ("r1", "", EndReason.PREEMPTED)
    assert not list(drive.core._waiting)
    assert drive(Tick(drive.now + 1)) == []  # once


def test_what_finds_no_room_and_is_asked_for_when_time_is_nearly_up_goes_back_at_once() -> None:
    drive = Driven()
    drive(joined(slots=1))
    started, back = drive(ending(drive, "r1", 3, LAST_MS))
    assert isinstance(started, StartSandboxes)
    assert isinstance(back, SandboxesEnded)
    assert back.indices == ranges.without(ranges.whole(3), started.indices)


def test_executors_share_a_group_by_how_fast_they_start() -> None:
    drive = Driven()
    drive(joined("slow", rate=10, slots=100))
    drive(joined("fast", rate=40, slots=100))
    shares = {start.node: ranges.count(start.indices) for start in drive.starts(place(n=50))}
    assert shares == {"slow-n0": 10, "fast-n0": 40}


def test_sandboxes_go_where_their_bytes_are_until_that_queue_is_longer_than_fetching_them() -> None:
    drive = Driven()
    for name in ("a", "b"):
        drive(joined(name, slots=100))  # each starts 100 a second
    large = Blob("c0ffee", 20_000_000)  # 200 ms to fetch: as long as 20 starts take
    image = Snapshot("d", "disk", disks=(large,))
    drive(ExecutorHolds("b", "b1", (large.digest,)))
    drive(ExecutorHolds("a", "of another boot", (large.digest,)))
    copy = PlacementCore(0)
    copy.load(drive.core.dump())
    drive.core = copy
    few = drive.starts(msgspec.structs.replace(place("few", 10), snapshot=image))
    assert {start.node for start in few} == {"b-n0"}
    drive.now += 10_000
    many = drive.starts(msgspec.structs.replace(place("many", 40), snapshot=image))
    assert {start.node: ranges.count(start.indices) for start in many} == {"a-n0": 10, "b-n0": 30}
    drive.now += 10_000
    again = drive.starts(msgspec.structs.replace(place("again", 40), snapshot=image))  # by now it has fetched them
    assert {start.node: ranges.count(start.indices) for start in again} == {"a-n0": 20, "b-n0": 20}


def test_what_is_to_be_prefetched_every_executor_hears_that_can_use_it() -> None:
    drive = Driven()
    drive(joined("a"))
    drive(joined("b"))
    blob = Blob("c0ffee", 10**9)
    wish = PrefetchSnapshot(Snapshot("d", "disk", disks=(blob,), isolation="zygote"))
    assert drive(wish) == [wish, wish]
    assert drive(PrefetchSnapshot(Snapshot("d", "disk", disks=(blob,), isolation="gvisor"))) == []
    drive(ExecutorLeft("a", "b1"))
    assert drive(wish) == [wish]


def test_nodes_of_one_executor_are_filled_by_chunks_most_room_first() -> None:
    drive = Driven()
    drive(joined(nodes=10, slots=512, memory=10**9))
    starts = drive.starts(place(n=3 * CHUNK))
    assert [ranges.count(start.indices) for start in starts] == [CHUNK] * 3
    again = drive.starts(place("r2", CHUNK))
    assert again[0].node not in {start.node for start in starts}


def test_memory_is_exact() -> None:
    drive = Driven()
    drive(joined(slots=100, memory=3 * MEMORY))
    assert ranges.count(drive.starts(place(n=5))[0].indices) == 3


def test_each_sandbox_keeps_its_command_wherever_it_goes() -> None:
    drive = Driven()
    drive(joined("e1", slots=3))
    commands = tuple(Command((f"c{index}",)) for index in range(2, 7))
    drive(joined("e2", slots=1))
    starts = drive.starts(place(n=10, indices=((2, 5),), commands=commands))
    given = {index: c.argv for s in starts for index, c in zip(ranges.indices(s.indices), s.commands, strict=True)}
    later = drive.starts(released(starts[0], "e1" if starts[0].node.startswith("e1") else "e2"))
    given |= {index: c.argv for s in later for index, c in zip(ranges.indices(s.indices), s.commands, strict=True)}
    assert given == {index: (f"c{index}",) for index in range(2, 7)}


def test_a_node_that_failed_is_avoided_while_there_is_another() -> None:
    drive = Driven()
    drive(joined("e1"))
    drive(joined("e2"))
    assert {start.node for start in drive.starts(place(n=4, avoid=("e1-n0",)))} == {"e2-n0"}
    alone = Driven()
    alone(joined("e1"))
    assert {start.node for start in alone.starts(place(n=4, avoid=("e1-n0",)))} == {"e1-n0"}


def test_too_much_memory_for_any_node_is_said() -> None:
    drive = Driven()
    drive(joined(memory=MEMORY - 1))
    (ended,) = drive(place(n=2))
    assert isinstance(ended, SandboxesEnded)
    assert (ended.reason, ended.indices) == (EndReason.START_FAILED, ((0, 2),))
    assert "99" in ended.detail


def test_release_ends_what_runs_and_forgets_what_waits() -> None:
    drive = Driven()
    drive(joined(slots=2))
    (start,) = drive.starts(place(n=4))
    (destroy,) = drive(ReleaseRequested("r1", (), EndReason.CANCELLED))
    assert destroy == DestroySandboxes("b1", "r1", (), EndReason.CANCELLED)
    assert drive(ReleaseRequested("r1", (), EndReason.CANCELLED)) == []
    assert drive(released(start)) == []


def test_a_release_before_its_request_holds() -> None:
    drive = Driven()
    drive(joined())
    drive(ReleaseRequested("r1", ((1, 1),), EndReason.RELEASED))
    assert drive.starts(place(n=3))[0].indices == ((0, 1), (2, 1))


def test_what_is_given_up_as_a_whole_is_remembered_by_its_name_until_its_time_is_up() -> None:
    drive = Driven()
    drive(joined())
    (start,) = drive.starts(place())
    assert b"acme" in drive.core.dump()
    drive(ReleaseRequested("r1", (), EndReason.RELEASED))
    drive(released(start))
    drive(ReleaseRequested("r2", (), EndReason.RELEASED))
    assert b"acme" not in drive.core.dump()
    again = PlacementCore(0)
    again.load(drive.core.dump())
    drive.core = again
    assert drive(place()) == drive(place(indices=((1, 2),))) == drive(place("r2")) == []  # all comes too late
    drive.now = 10**12
    drive(ExecutorBeat("e1", "b1", 0, 0))
    drive(Tick(drive.now))
    assert b"r1" not in drive.core.dump()
    assert b"r2" not in drive.core.dump()


@pytest.mark.parametrize("how", ["left", "restarted", "silent"])
def test_a_lost_executor_s_sandboxes_are_reported_once(how: str) -> None:
    drive = Driven()
    drive(joined())
    drive(place(n=3))
    if how == "left":
        said = drive(ExecutorLeft("e1", "b1"))
    elif how == "restarted":
        said = drive(joined(boot="b2"))
    else:
        wake = drive.core.wake_at_ms()
        assert wake is not None
        drive.now = wake
        said = drive(Tick(wake))
    ended = [message for message in said if isinstance(message, SandboxesEnded)]
    assert [(message.indices, message.reason) for message in ended] == [(((0, 3),), EndReason.NODE_LOST)]
    drive.now += 10 * SILENCE_MS
    assert not [message for message in drive(Tick(drive.now)) if isinstance(message, SandboxesEnded)]


def test_a_beat_keeps_an_executor_alive() -> None:
    drive = Driven()
    drive(joined())
    drive.now += SILENCE_MS
    drive(ExecutorBeat("e1", "b1"))
    drive.now += SILENCE_MS
    assert drive(Tick(drive.now)) == []
    assert drive.core.wake_at_ms() == drive.now + 1


def test_an_executor_is_waited_for_once_more_when_the_log_took_nothing_for_a_while() -> None:
    drive = Driven()
    drive(joined())
    drive(place(n=2))
    due = drive.now + SILENCE_MS + 1
    drive.now = due + 30_000  # the log was full: neither the Tick nor the executor's beats were stored in time
    assert drive(Tick(due)) == []
    wake = drive.core.wake_at_ms()
    assert wake == drive.now + SILENCE_MS + 1
    drive(ExecutorBeat("e1", "b1"))
    again = PlacementCore(0)
    again.load(drive.core.dump())
    assert again.dump() == drive.core.dump()
    drive.now = wake + 30_000
    assert drive(Tick(wake)) == [], "it was heard since, so this is a new silence"
    third = drive.core.wake_at_ms()
    assert third is not None
    drive.now = third + 30_000
    assert [type(said) for said in drive(Tick(third))] == [CellCapacity, SandboxesEnded], "late again, and never heard"


def test_a_silent_executor_that_comes_back_ends_its_orphans_before_their_room_is_used_again() -> None:
    drive = Driven()
    drive(joined(slots=4))
    (start,) = drive.starts(place(n=4))
    drive.now += SILENCE_MS + 1
    said = drive(Tick(drive.now))
    assert CellCapacity(0, 0, ()) in said
    back = drive(joined(slots=4))
    assert DestroySandboxes("b1", "r1", ((0, 4),), EndReason.NODE_LOST) in back
    assert drive(place("r2", 2)) == []  # the orphans still hold the room
    assert drive.starts(released(start))[0].rollout == "r2"


def test_what_makes_no_sense_changes_nothing() -> None:
    drive = Driven()
    drive(joined())
    for nonsense in (
        place(n=4, indices=((3, 2),)),
        place(n=4, commands=(Command(("a",)), Command(("b",)))),
        ReleaseRequested("r1", ((2, 1), (0, 1)), EndReason.RELEASED),
        StartSandboxes("b", "n", "r", "t", "u", 0, 0, (), HOST, Resources(), (), (), (), "", 0),
    ):
        with pytest.raises(LawBrokenError):
            drive(nonsense)
    assert drive.starts(place(n=8))[0].indices == ((0, 8),)


def test_a_boot_whose_name_another_has_taken_is_told_so_whenever_it_speaks() -> None:
    drive = Driven()

    def said(message: AnyMessage) -> list[str]:
        return [each.boot for each in drive(message) if isinstance(each, ExecutorReplaced)]

    assert said(joined()) == said(joined()) == []
    drive.now += 5 * SILENCE_MS
    drive(Tick(drive.now))
    assert said(joined()) == [], "it was only slow"
    assert said(joined(boot="b2")) == ["b1"]
    assert said(joined(boot="b2")) == said(ExecutorBeat("e1", "b2", 0, 0)) == []
    assert said(joined()) == said(ExecutorBeat("e1", "b1", 0, 0)) == ["b1"]
    copy = PlacementCore(0)
    copy.load(drive.core.dump())
    drive.core = copy
    assert said(ExecutorLeft("e1", "b2")) == []
    assert said(joined()) == said(ExecutorBeat("e1", "b1", 0, 0)) == ["b1"], "the second has left: it is nobody's still"
    assert drive.starts(place(n=1)) == []
    assert said(ExecutorBeat("e9", "b1", 0, 0)) == [], "nobody ever heard of it"
