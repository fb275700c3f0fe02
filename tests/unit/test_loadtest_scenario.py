"""Scenarios of load tests: what files and options come to, and one sentence for everything that cannot be right."""

import contextlib
import random
import statistics
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest

from shoal.bus.protocol import Delivery
from shoal.wire.codec import encode
from shoal.wire.messages import RolloutReleased, RolloutSpec, RolloutSubmitted
from shoal.wire.quantities import BadValueError
from shoal_loadtest.describing import keys, metrics
from shoal_loadtest.load import trace
from shoal_loadtest.load.arrivals import Split
from shoal_loadtest.scenario import reading
from shoal_loadtest.scenario.draw import Draw
from shoal_loadtest.scenario.model import Closed, Poisson, Trace

MINE = """
description = "mine"
[fleet]
nodes = 10
[[phase]]
name = "first"
sandboxes = 1000
measures_maximum = true
[phase.arrival]
process = "closed"
outstanding = 100
[phase.rollout]
size = { distribution = "lognormal", median = 64, spread = 0.5, least = 1, most = 256 }
command = "true"
[[phase]]
name = "second"
seconds = "30s"
arrival = { process = "poisson", of_maximum = 0.5 }
rollout = { size = [1, 2, 3], life = "2s" }
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    return str(path)


@pytest.mark.parametrize("name", reading.shipped())
def test_every_shipped_scenario_is_right_and_scalable(name: str) -> None:
    document = reading.document(name)
    whole, tenth = reading.scenario(document), reading.scenario(document, 0.1)
    assert whole.description
    for large, small in zip(whole.phases, tenth.phases, strict=True):
        assert small.rollout == large.rollout
        if large.sandboxes is not None:
            assert small.sandboxes == max(round(large.sandboxes / 10), 1)
        if large.seconds is not None:
            assert small.seconds == pytest.approx(max(large.seconds / 10, min(large.seconds, 1.0)))


def test_the_scenarios_that_are_asked_for_exist() -> None:
    wanted = {"million", "concurrent", "queries", "steady", "commands", "real", "chaos", "full", "smoke"}
    assert wanted <= set(reading.shipped())


def test_a_file_is_read(mine: str) -> None:
    scenario = reading.scenario(reading.document(mine))
    first, second = scenario.phases
    assert isinstance(first.arrival, Closed)
    assert first.arrival.outstanding == 100
    assert isinstance(second.arrival, Poisson)
    assert float(second.seconds or 0) == 30
    assert second.rollout.life.one(random.Random(0)) == 2
    assert second.rollout.size.mean == 2


def test_settings_reach_tables_and_named_entries(mine: str) -> None:
    settings = [
        "fleet.nodes=7",
        "phase.second.seconds=5",
        "phase.first.rollout.command='false'",
        "seed=9",
        "phase.0.sandboxes=3",
    ]
    scenario = reading.scenario(reading.document(mine, settings))
    assert (scenario.fleet.nodes, scenario.seed) == (7, 9)
    assert float(scenario.phases[1].seconds or 0) == 5
    assert scenario.phases[0].sandboxes == 3


def test_a_scenario_stands_on_another() -> None:
    document = reading.document("chaos", ["base=queries"])
    scenario = reading.scenario(document)
    assert [phase.name for phase in scenario.phases] == ["queries"]
    assert scenario.faults


def test_scenarios_that_stand_on_each_other_are_noticed(tmp_path: Path) -> None:
    one, other = tmp_path / "one.toml", tmp_path / "other.toml"
    one.write_text(f'base = "{other}"')
    other.write_text(f'base = "{one}"')
    with pytest.raises(BadValueError, match="circle"):
        reading.document(str(one))


@pytest.mark.parametrize(
    ("setting", "field", "words"),
    [
        ("fleet.nods=3", "fleet.nods", "did you mean nodes"),
        ("fleet.nodes=0", "fleet.nodes", ">= 1"),
        ("fleet.nodes=many", "fleet.nodes", "expected int"),
        ("fleet.driver=docker", "fleet.driver", "zygote"),
        ("fleet.driver=zygote", "fleet.nodes", "simulated"),
        ("fleet.sync=never", "fleet.sync", "show"),
        ("phase.second.seconds=soon", "phase.second.seconds", "30s"),
        ("phase.second.arrival.process=sometimes", "phase.second.arrival.process", "show"),
        ("phase.second.arrival.rate=3", "phase.second.arrival", "either rate or of_maximum"),
        ("phase.first.measures_maximum=false", "phase.second.arrival.of_maximum", "measures_maximum"),
        ("phase.first.rollout.size=[]", "phase.first.rollout.size", "empty"),
        ("phase.first.rollout.size={distribution='uniform'}", "phase.first.rollout.size", "most"),
        ("phase.first.rollout.size={distribution='normal'}", "phase.first.rollout.size", "lognormal"),
        ("phase.first.rollout.size=0", "phase.first.rollout.size", "at least one sandbox"),
        ("phase.first.rollout.size=200_000", "phase.first.rollout.size", "100000"),
        ("phase.first.rollout.life=3", "phase.first.rollout.command", "leave out"),
        ("phase.first.rollout.memory=lots", "phase.first.rollout.memory", "256MiB"),
        ("phase.first.rollout.isolation=gvisor", "phase.first.rollout.isolation", "simulated"),
        ("phase.first.live=3", "phase.first.live", "replaced"),
        ("phase.first.name=second", "phase.second", "several"),
        ("phase.first.name='a b'", "phase.name", "letters"),
        ("phase=[]", "phase", "at least one"),
        ("phase=[{}]", "phase.0.name", "missing"),
        ("phase.second.commands={arrival={process='closed'}}", "phase.second.commands", "stay"),
        ("phase.second.commands={arrival={process='bursts'}}", "phase.second.commands.arrival.process", "show"),
        ("fault=[{kill=[], every=1}]", "fault.0.kill", "names nothing"),
        ("fault=[{kill=['cat'], every=1}]", "fault.0.kill.0", "show"),
        ("fault=[{kill=['broker'], every=1, phases=['third']}]", "fault.0.phases", "first, second"),
        ("objectives=['fast']", "objective", "ready_p99_ms<200"),
        ("objectives=['third.ready_p99_ms<1']", "objective", "first, second"),
        ("objectives=['ready_p99_ms<nan']", "objective", "number"),
        ("objectives=['ready_p99_ms<1e999']", "objective", "number"),
        ("objectives=['ready_p99_ms<nan*idle.ready_p99_ms']", "objective", "ready_p99_ms<200"),
        ("objectives=['speed<1']", "objective", "show"),
        ("nothing", "set", "key=value"),
        ("phase.third.seconds=1", "set", "first, second"),
        ("base=elsewhere", "scenario", "million"),
    ],
)
def test_what_cannot_be_right_is_one_sentence_that_names_the_field(
    mine: str, setting: str, field: str, words: str
) -> None:
    with pytest.raises(BadValueError) as caught:
        reading.scenario(reading.document(mine, [setting]))
    assert caught.value.field == field
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_toml_and_a_scale_that_is_none(tmp_path: Path, mine: str) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("phase =")
    with pytest.raises(BadValueError, match="no TOML"):
        reading.document(str(path))
    with pytest.raises(BadValueError, match=r"scale: 0 is not"):
        reading.scenario(reading.document(mine), 0.0)


async def test_a_trace_that_cannot_be_read_says_clearly_why() -> None:
    with pytest.raises(BadValueError, match=r"phase\.arrival\.archive: .*nowhere\.shoal"):
        await trace.requests(Trace(archive="nowhere.shoal"))


class Archived:
    """What is asked of `shoal.archive` and its histories, with two logs in it."""

    class ArchiveError(Exception):
        """As the real one."""

    def __init__(self) -> None:
        def asked(ms: int, n: int) -> Delivery:
            message = RolloutSubmitted(f"r{ms}", "t", "run", RolloutSpec("host", n))
            return Delivery("s", encode(message), 1, ms, "")

        released = encode(RolloutReleased("r1", ((0, 1),)))
        noise = [Delivery("s", b"?", 1, 4_000, ""), Delivery("s", released, 2, 1, "")]
        self.logs = {
            "SHOAL_ROLLOUT_0": [asked(5_000, 8), *noise, asked(9_000, 2)],
            "SHOAL_ROLLOUT_1": [asked(6_500, 4)],
            "SHOAL_PLACEMENT_0": [asked(1, 1)],
        }

    @contextlib.asynccontextmanager
    async def open(self, path: str) -> AsyncIterator["Archived"]:
        yield self

    async def streams(self) -> list[str]:
        return list(self.logs)

    async def read(self, stream: str) -> AsyncGenerator[Delivery, None]:
        for delivery in self.logs[stream]:
            yield delivery


async def test_a_trace_asks_again_for_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    archived = Archived()
    monkeypatch.setitem(sys.modules, "shoal.archive", archived)
    found = await trace.requests(Trace(archive="june.shoal"))
    assert found == [(0.0, 8), (1.5, 4), (4.0, 2)]
    offsets, sizes = trace.replayed(found, 2.0, Split(0, 2))
    assert (list(offsets), list(sizes)) == ([0.0, 2.0], [8, 2])
    archived.logs.clear()
    with pytest.raises(BadValueError, match="no rollout"):
        await trace.requests(Trace(archive="june.shoal"))


@pytest.mark.parametrize(
    ("said", "mean", "least", "most"),
    [
        (7, 7, 7, 7),
        ("90s", 90, 90, 90),
        ([1, 3], 2, 1, 3),
        ({"distribution": "uniform", "least": 10, "most": 20}, 15, 10, 20),
        ({"distribution": "exponential", "mean": 5}, 5, 0, 1000),
        ({"distribution": "lognormal", "median": 8, "spread": 0.5, "most": 100}, 8 * 2.718281828**0.125, 0, 100),
    ],
)
def test_what_is_drawn_follows_its_law(said: object, mean: float, least: float, most: float) -> None:
    draw, rng = Draw(said), random.Random(1)
    drawn = [draw.one(rng) for _ in range(20_000)]
    assert statistics.fmean(drawn) == pytest.approx(mean, rel=0.03)
    assert draw.mean == pytest.approx(mean, rel=0.03)
    assert min(drawn) >= least
    assert max(drawn) <= most


def test_every_key_and_every_metric_is_described() -> None:
    assert {"nodes", "driver", "sync"} <= keys()["fleet"][1].keys()
    assert all(about for about, _ in keys().values())
    assert {"ready_p99_ms", "throughput", "lost", "gpu_seconds"} <= metrics().keys()
    assert all(metrics().values())
