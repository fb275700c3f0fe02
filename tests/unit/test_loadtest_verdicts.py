"""Objectives, comparisons and the page of load tests."""

import random
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from hdrh.histogram import HdrHistogram

from shoal.wire.quantities import BadValueError
from shoal_loadtest.comparing import chance, compare, differences
from shoal_loadtest.conducting import judged
from shoal_loadtest.load.words import PhaseEnded
from shoal_loadtest.measure.latency import Latencies
from shoal_loadtest.measure.summing import added, phase_record, run_metrics, sustained
from shoal_loadtest.objectives import parse
from shoal_loadtest.report import page, record
from shoal_loadtest.report.record import FORMAT, Report, RunRecord
from shoal_loadtest.scenario import reading
from shoal_loadtest.scenario.model import Trainer

SMOKE = reading.document("smoke", ["objectives=['through.ready_p99_ms<1000', 'throughput>=100']"])


def ended(counts: dict[str, int], ms: float, seconds: float) -> PhaseEnded:
    latencies = Latencies()
    for name in ("ready", "ready_broker", "first_ready", "group_ready", "first_command", "lateness"):
        latencies.add(name, ms * 1000, counts["through"])
    moments = dict.fromkeys(range(0, int(seconds * 10), max(int(seconds), 1)), counts["through"] // 10)
    return PhaseEnded(0, counts, {"succeeded": counts["through"]}, latencies.encoded(), 10**9,
                      10**9 + int(seconds * 1e9), 0, 0, moments, 0, 2.0)  # fmt: skip


def run(ms: float = 20.0, seconds: float = 2.0) -> RunRecord:
    scenario = reading.scenario(SMOKE)
    staying = msgspec.structs.replace(scenario.phases[0], rollout=scenario.phases[2].rollout)
    rows: list[dict[str, float | None]] = [
        {"t": float(t), "phase": 0, "ready": t * 500.0, "through": t * 500.0, "commands": 0, "live": 10 * t,
         "in_flight": 5, "waiting": 0, "gpu_seconds": t, "cpu_executor": 0.5, "memory_executor": 50 * 2**20,
         "memory_services": 100 * 2**20, "memory_broker": 20 * 2**20, "ready_p99_ms": ms, "backlog_scheduler": 1}
        for t in range(5)
    ]  # fmt: skip
    found = phase_record(
        staying, [ended({"asked": 1000, "through": 1000, "ready": 1000}, ms, seconds)], rate=0, begin_s=0,
        end_s=seconds, cpu_s={"executor": 0.1, "broker": 0.1, "generator": 9}, rows=rows, trainer=Trainer(),
        memory_before=90 * 2**20,
    )  # fmt: skip
    audit = {"asked": 1000, "concluded": 1000, "lost": 0}
    series = {name: [row.get(name) for row in rows] for name in rows[0]}
    return RunRecord(
        phases=[found], series=series, metrics=run_metrics([found], audit, 500.0), audit=audit, cpu_s={}, faults=[],
        messages={"rollout": 10}, stored_bytes={"rollout": 1000}, killed={}, refusals={}, troubles=["<b>&"],
    )  # fmt: skip


def report(*runs: RunRecord) -> Report:
    scenario = reading.scenario(SMOKE)
    return Report(
        format=FORMAT, scenario="smoke", document=SMOKE, text="seed = 1 # <&>", scale=1.0, seed=1, began="now",
        own=True,
        machine={"cpu": "x", "cores": "2"}, versions={"shoal": "0"}, gpus=8, price_per_gpu_hour=2.5, runs=list(runs),
        objectives=judged(scenario, list(runs)),
    )  # fmt: skip


# --- objectives


@pytest.mark.parametrize(
    ("text", "metrics", "met"),
    [
        ("ready_p99_ms<200", {"ready_p99_ms": 199.9}, True),
        ("ready_p99_ms < 200", {"ready_p99_ms": 200.0}, False),
        ("throughput>=1e4", {"throughput": 10_000.0}, True),
        ("lost==0", {"lost": 0.0}, True),
        ("lost==0", {"lost": 1.0}, False),
        ("a.ready_p99_ms<=5*b.ready_p99_ms", {"a.ready_p99_ms": 50.0, "b.ready_p99_ms": 10.0}, True),
        ("a.ready_p99_ms<=5*b.ready_p99_ms", {"a.ready_p99_ms": 51.0, "b.ready_p99_ms": 10.0}, False),
        ("a.throughput>b.throughput", {"a.throughput": 2.0, "b.throughput": 1.0}, True),
        ("ready_p99_ms<200", {}, False),
        ("a.ready_p99_ms<=5*b.ready_p99_ms", {"a.ready_p99_ms": 1.0}, False),
    ],
)
def test_an_objective_is_met_or_not(text: str, metrics: dict[str, float], met: bool) -> None:
    verdict = parse(text, ["a", "b"]).judge(metrics)
    assert verdict.met is met
    assert verdict.objective == text


@pytest.mark.parametrize(
    "text", ["", "ready_p99_ms", "ready_p99_ms=<3", "ready_p99_ms<x", "c.ready_p99_ms<1", "a.lost==0"]
)
def test_an_objective_that_cannot_be_judged_is_refused(text: str) -> None:
    with pytest.raises(BadValueError, match="objective"):
        parse(text, ["a", "b"])


# --- latencies


def test_quantiles_are_those_of_the_library() -> None:
    latencies, rng = Latencies(), random.Random(1)
    histogram = HdrHistogram(1, 3_600_000_000, 3)
    for _ in range(2_000):
        us, count = int(rng.lognormvariate(9, 2)) + 1, rng.randrange(1, 5)
        latencies.add("x", us, count)
        histogram.record_value(us, count)
    summary = latencies.summary("x")
    for percent, ms in summary["curve"]:
        assert ms == histogram.get_value_at_percentile(percent) / 1000
    assert summary["mean"] == pytest.approx(histogram.get_mean_value() / 1000, rel=1e-3)
    assert summary["count"] == histogram.get_total_count()
    assert latencies.quantile_ms("y", 50) is None


def test_what_takes_longer_than_an_hour_is_not_missing() -> None:
    latencies = Latencies()
    latencies.add("x", 1e12)
    assert latencies.summary("x")["count"] == 1


# --- sums


def test_what_generators_say_is_added_up() -> None:
    one, other = ended({"through": 10}, 10, 1), ended({"through": 30}, 30, 3)
    sums = added([one, other])
    assert sums.counts == {"through": 40}
    assert (sums.first_ns, sums.last_ns) == (10**9, 4 * 10**9)
    assert sums.latencies.summary("ready")["count"] == 40
    assert sums.latencies.quantile_ms("ready", 25) == pytest.approx(10, rel=0.01)
    assert sums.latencies.quantile_ms("ready", 99) == pytest.approx(30, rel=0.01)


def test_a_sustained_rate_leaves_beginning_and_end_out() -> None:
    even = dict.fromkeys(range(0, 100), 50)
    assert sustained(even) == pytest.approx(500)
    assert sustained({**even, -300: 1, 400: 1}) == pytest.approx(500, rel=0.01)
    assert sustained({5: 100}) is None


def test_a_phases_metrics() -> None:
    metrics = run().metrics
    assert metrics["throughput"] == pytest.approx(500)
    assert metrics["through.ready_p99_ms"] == pytest.approx(20, rel=0.01)
    assert metrics["ready_p99_broker_ms"] == pytest.approx(20, rel=0.01)
    assert metrics["cpu_us_per_sandbox"] == pytest.approx(200)  # the generator's is not the system's
    assert metrics["services_mib"] == 100
    assert metrics["service_bytes_per_live"] == pytest.approx(100 * 2**20 / 40)
    assert metrics["service_growth_per_live"] == pytest.approx(10 * 2**20 / 40)
    assert metrics["gpu_seconds"] == 16
    assert metrics["gpu_cost"] == pytest.approx(16 / 3600 * 2.5)
    assert metrics["maximum"] == 500


def test_memory_for_each_live_sandbox_is_of_phases_that_keep_them() -> None:
    (found,) = run().phases
    assert "service_bytes_per_live" in found.metrics
    scenario = reading.scenario(SMOKE)
    rows = [{"t": 0.0, "live": 5.0, "memory_services": 100.0, "memory_broker": 1.0}]
    ends = [ended({"asked": 10, "through": 10, "ready": 10}, 10, 1)]
    through = phase_record(scenario.phases[0], ends, rate=0, begin_s=0, end_s=1, cpu_s={}, rows=rows,
                           trainer=Trainer(), memory_before=0)  # fmt: skip
    assert "service_bytes_per_live" not in through.metrics
    assert through.metrics["live_max"] == 5


# --- comparisons


def test_chance_is_what_the_permutations_say() -> None:
    assert chance([1, 2, 3], [10, 11, 12]) == pytest.approx(2 / 20)
    assert chance([1, 2, 3, 4, 5], [10, 11, 12, 13, 14]) == pytest.approx(2 / 252)
    assert chance([1, 5, 3], [2, 4, 3]) == pytest.approx(1)
    assert chance([1, 2], [10, 11, 12]) is None
    many = chance([1.0] * 12 + [2.0], [9.0] * 12 + [8.0])
    assert many is not None
    assert many < 0.01


def test_reports_side_by_side() -> None:
    before = report(run(20), run(21), run(22))
    after = report(run(10, 1), run(11, 1), run(12, 1))
    rows = {row.metric: row for row in compare(before, after)}
    assert rows["ready_p99_ms"].ratio == pytest.approx(11 / 21, rel=0.01)
    assert rows["ready_p99_ms"].better is True
    assert rows["ready_p99_ms"].cue == "better, likely"
    assert rows["throughput"].better is True
    assert rows["throughput"].ratio == pytest.approx(2)
    assert rows["lost"].cue == "same"
    assert rows["lost"].ratio is None
    alone = {row.metric: row for row in compare(report(run(20)), report(run(10)))}
    assert alone["ready_p99_ms"].cue == "better? (too few runs)"
    assert len(compare(before, after, all_metrics=True)) > len(rows)


def test_what_else_differs_is_said() -> None:
    one = report(run())
    other = msgspec.structs.replace(one, scale=0.5, machine={"cpu": "y", "cores": "2"})
    assert len(differences(one, other)) == 2
    assert differences(one, one) == []


# --- the record and the page


def test_a_report_is_kept_and_read(tmp_path: Path) -> None:
    made = report(run(), run())
    record.write(made, tmp_path / "report.json")
    assert record.read(tmp_path) == record.read(tmp_path / "report.json") == made
    assert made.met
    assert made.right


@pytest.mark.parametrize("text", [None, "", "{}", '{"format": 1}'])
def test_what_is_no_report_is_one_sentence(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "report.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadValueError, match="report: "):
        record.read(path)


class Tags(HTMLParser):
    """Collects what a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data") and not (value or "").startswith("#"):
                self.fetched.append(f"{tag} {name}={value}")


def test_the_page_stands_alone_in_light_and_dark() -> None:
    text = page.page(report(run(), run(30), run(40)))
    tags = Tags()
    tags.feed(text)
    assert tags.fetched == []
    assert not re.search(r"@import|url\((?!#)", text)
    assert tags.tags.count("svg") >= 6
    assert not {"script", "link", "img", "iframe"} & set(tags.tags)
    assert "prefers-color-scheme: dark" in text
    assert "seed = 1 # &lt;&amp;&gt;" in text
    assert "<li>&lt;b&gt;&amp;</li>" in text
    for stand_in in ("#010203", "#040506", "#01ab01"):
        assert stand_in not in text
    assert len(text) < 1_000_000
