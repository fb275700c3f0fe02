"""Floors: the figures, the roles of the bare chain, the command's errors."""

import asyncio
from collections import Counter, deque
from pathlib import Path

import pytest
from click.testing import CliRunner

from shoal.machine import ranges
from shoal.wire import messages as m
from shoal_loadtest.floor import bare, brokers
from shoal_loadtest.floor.chain import Through, through
from shoal_loadtest.floor.command import floor
from shoal_loadtest.floor.fabric import Span
from shoal_loadtest.floor.figures import Row, as_object, compared, percentile, ranged, short, written
from shoal_loadtest.floor.loops import turn
from shoal_loadtest.floor.roles import ROLES, Said, released, request
from shoal_loadtest.floor.work import Lifecycle, Work
from shoal_placement.core.nodes import CHUNK


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [5.0, 1.0, 3.0, 2.0, 4.0]
    assert [percentile(values, share) for share in (0.2, 0.5, 0.99, 1)] == [1.0, 3.0, 5.0, 5.0]
    assert percentile(list(range(1, 101)), 0.99) == 99


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 0), ([1.0], 1.1)])
def test_there_is_no_percentile_of_nothing(values: list[float], share: float) -> None:
    with pytest.raises(ValueError, match="no percentile"):
        percentile(values, share)


def row(side: str, *values: float, against: str = "", figure: str = "rate") -> Row:
    return Row("broker", "one", side, figure, "1/s", values, against)


def test_sides_are_compared_round_by_round() -> None:
    # The machine was slow in the third round, for both.
    _, ours = compared([row("floor", 100, 200, 20), row("Shoal", 50, 90, 11, against="floor")])
    assert ours.ratio == pytest.approx(0.5)


def test_sides_with_different_rounds_are_compared_by_their_medians() -> None:
    _, ours = compared([row("floor", 100, 200, 300), row("Shoal", 50, against="floor")])
    assert ours.ratio == pytest.approx(0.25)


def test_what_was_not_measured_is_compared_with_nothing() -> None:
    rows = compared([row("floor"), row("Shoal", 1.0, against="floor"), row("other", against="Shoal")])
    assert [each.ratio for each in rows] == [None, None, None]
    assert rows[0].median is None
    assert as_object(rows[0])["lowest"] is None


def test_a_row_for_programs_has_all_of_it() -> None:
    found = as_object(compared([row("floor", 4.0), row("Shoal", 1.23456789, against="floor")])[1])
    assert found["median"] == found["lowest"] == found["highest"] == 1.235
    assert found["values"] == [1.235]
    assert found["ratio"] == 0.3086
    assert (found["part"], found["case"], found["side"], found["against"]) == ("broker", "one", "Shoal", "floor")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, ""), (0.0, "0"), (0.012345, "0.0123"), (3.14159, "3.14"), (123.456, "123"), (12345.6, "12,300"),
        (1e6, "1,000,000"),
    ],
)  # fmt: skip
def test_numbers_are_written_with_three_digits(number: float | None, text: str) -> None:
    assert written(number) == text


def test_a_range_is_the_lowest_and_the_highest() -> None:
    assert ranged(row("x", 3.0, 1.0, 2.0)) == "1 to 3"
    assert ranged(row("x")) == ""
    assert short(123456.0) == 123500.0


# --- the bare chain


def played(work: Work) -> tuple[Counter[str], dict[str, list[m.AnyMessage]]]:
    """Have the roles speak with each other in this process; returns how often what was said, and all of it by kind."""
    hear = {name: make(work) for name, make in ROLES.items()}
    inbox = {"rollout": "scheduler", "placement": "placement", "executor": "executor"}
    said: deque[Said] = deque(request(f"r{number}", work) for number in range(work.groups))
    counts: Counter[str] = Counter()
    kinds: dict[str, list[m.AnyMessage]] = {}
    ready: Counter[str] = Counter()
    while said:
        subject, message = said.popleft()
        counts[type(message).__name__] += 1
        kinds.setdefault(type(message).__name__, []).append(message)
        said.extend(hear[inbox[subject.split(".")[1]]](message))
        if isinstance(message, m.SandboxesReady) and work.lifecycle is Lifecycle.HELD:
            ready[message.rollout] += ranges.count(message.indices)
            if ready[message.rollout] == work.group:
                said.append(released(message.rollout, work))
    return counts, kinds


@pytest.mark.parametrize(
    ("lifecycle", "expected"),
    [
        (
            Lifecycle.HELD,
            {"RolloutSubmitted": 1, "PlaceRequested": 1, "RolloutDispatched": 1, "StartSandboxes": 2,
             "SandboxesReady": 2, "RolloutReleased": 1, "ReleaseRequested": 1, "RolloutConcluded": 1,
             "DestroySandboxes": 1, "SlotsReleased": 2},
        ),
        (
            Lifecycle.JOB,
            {"RolloutSubmitted": 1, "PlaceRequested": 1, "RolloutDispatched": 1, "StartSandboxes": 2,
             "SandboxesReady": 2, "SandboxesFinished": 2, "RolloutConcluded": 1, "SlotsReleased": 2},
        ),
    ],
)  # fmt: skip
def test_a_group_of_256_costs_as_many_messages_as_with_shoal(lifecycle: Lifecycle, expected: dict[str, int]) -> None:
    counts, kinds = played(Work(512, lifecycle=lifecycle))
    assert counts == {name: 2 * count for name, count in expected.items()}
    slots = [ranges.count(each.indices) for each in kinds["SlotsReleased"] if isinstance(each, m.SlotsReleased)]
    assert sum(slots) == 512


def test_a_last_batch_that_is_not_full_is_all_the_same_destroyed() -> None:
    counts, kinds = played(Work(400, 400))
    assert counts["StartSandboxes"] == counts["SlotsReleased"] == 4
    assert [each.indices for each in kinds["StartSandboxes"] if isinstance(each, m.StartSandboxes)] == [
        ((0, 128),), ((128, 128),), ((256, 128),), ((384, 16),),
    ]  # fmt: skip


def test_a_node_gets_as_many_of_a_group_as_placement_gives_it() -> None:
    assert Work(1).batch == CHUNK


def test_work_is_whole_groups() -> None:
    assert (Work(1000).groups, Work(1000).total, Work(10).total) == (3, 768, 256)


def test_what_work_took_is_said_for_a_sandbox() -> None:
    took = through(Span(1000, 3000, 400), {"broker": 1.0}, {"broker": 1.2, "trainer": 0.1})
    assert took.a_second == 200
    assert took.cpu_us == pytest.approx({"broker": 500, "trainer": 250})
    assert took.total_us == pytest.approx(750)
    assert Span(1000, 1000, 1).seconds == 0.001


SHOAL = next(iter(brokers.WHOLE))


def test_all_is_compared_with_the_faster_chain() -> None:
    found = {name: [Through(rate, {"broker": 1.0})] for name, rate in (("a", 10.0), ("b", 20.0), (SHOAL, 5.0))}
    rows = compared(brokers.rows("case", found))
    ratios = {(each.side, each.figure): each.ratio for each in rows}
    assert ratios[SHOAL, brokers.RATE] == 0.25
    assert ratios["a", brokers.RATE] == 0.5
    assert ratios["b", brokers.RATE] is None
    assert "broker 1.0" in rows[1].note


# --- loops


async def test_a_turn_has_so_many_through_and_so_many_at_a_time() -> None:
    now: set[str] = set()
    most, names = 0, []

    async def unit(name: str) -> float:
        nonlocal most
        now.add(name)
        names.append(name)
        most = max(most, len(now))
        await asyncio.sleep(0.001)
        now.remove(name)
        return 0.002

    found = await turn(unit, "x", 20, 4)
    assert most == 4
    assert sorted(names) == sorted(f"x-{number}" for number in range(20))
    assert found.first_ms == (2.0,) * 20
    assert found.a_second > 0


async def test_a_turn_in_which_one_fails_leaves_none_behind() -> None:
    ended = 0

    async def unit(name: str) -> float:
        nonlocal ended
        try:
            if name == "x-2":
                raise bare.Missing("a start failed")
            await asyncio.sleep(60)
        finally:
            ended += 1
        return 0.0

    with pytest.raises(bare.Missing, match="a start failed"):
        await turn(unit, "x", 3, 3)
    assert ended == 3


def test_a_program_that_is_missing_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(bare.Missing, match="apt install some-package"):
        bare.needed("no-such-program", "some-package")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(bare.Missing, match="run this as root"):
        bare.needed("sh", "dash")


def test_a_program_that_fails_says_why() -> None:
    bare.called(["/bin/sh", "-c", "true"])
    with pytest.raises(bare.Missing, match="sh failed: no room"):
        bare.called(["/bin/sh", "-c", "echo no room >&2; exit 3"])


def test_one_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bare, "PATIENCE_S", 0.2)
    with pytest.raises(bare.Missing, match="did not end within"):
        bare.called(["/bin/sleep", "30"])


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--sandboxes", "10"], "--group"),
        (["--rounds", "0"], "--rounds"),
        (["--only", "nothing"], "--only"),
        (["--brokers", "five"], "--brokers"),
        (["--samples", "1"], "--samples"),
    ],
)
def test_bad_input_is_a_sentence_before_anything_starts(arguments: list[str], word: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(floor, arguments)
    assert done.exit_code == 2
    assert word in done.output
