"""`shoal loadtest` with everything behind it: a real broker, the real services, load generators as processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.cli.exits import Exit
from shoal.runtime.lease import start_time
from shoal_loadtest.report import record

pytestmark = pytest.mark.broker

SHOAL = [sys.executable, "-m", "shoal.cli"]
HOLD = """
[fleet]
nodes = 10
[[phase]]
name = "hold"
seconds = "10m"
live = 100
arrival = { process = "poisson", rate = 50 }
rollout = { size = 10, until = "replaced", first_command = "true" }
commands = { arrival = { process = "constant", rate = 50 } }
"""


def environment(tmp: Path) -> dict[str, str]:
    """What is brought up keeps its state below `tmp`, by which it is found."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")} | {"TMPDIR": str(tmp)}


def shoal(tmp: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SHOAL, *arguments], capture_output=True, text=True, timeout=110, env=environment(tmp), cwd=tmp,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def processes(tmp: Path) -> list[str]:
    """Return the command lines of all processes that name something below `tmp`, or work there."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid() and start_time(int(entry.name)) is not None:
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                place = str((entry / "cwd").readlink())
            except OSError:
                continue
            if str(tmp) in line or place.startswith(str(tmp)):
                found.append(line)
    return found


def eventually(holds: Callable[[], object], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.1)


def begun(tmp: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*SHOAL, "loadtest", "run", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment(tmp), cwd=tmp, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def interrupted(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Interrupt it as soon as something was measured; returns its status and what it printed."""
    assert process.stderr is not None
    heard = ""
    for line in process.stderr:
        heard += line
        if " through, " in line and not line.startswith("0 s"):
            break
    process.send_signal(signal.SIGINT)
    out, rest = process.communicate(timeout=90)
    return process.returncode, out, heard + rest


@pytest.fixture
def hold(tmp_path: Path) -> Path:
    path = tmp_path / "hold.toml"
    path.write_text(HOLD)
    return path


def test_smoke_from_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    objectives = ["--objective", "commands.command_max_ms<110000", "--objective", "throughput>=1e9"]
    done = shoal(
        tmp_path, "loadtest", "run", "smoke", "--out", str(out), "--json", "--set", "generators=2", *objectives
    )
    assert done.returncode == Exit.OBJECTIVE, done.stderr  # nothing makes a billion a second
    run, summary = (json.loads(line) for line in done.stdout.splitlines())
    assert [verdict["met"] for verdict in summary["objectives"]] == [True, True, True, False]
    assert run["metrics"]["lost"] == run["metrics"]["doubled"] == run["metrics"]["disagreed"] == 0

    report = record.read(out)
    assert report.right
    assert not report.met
    assert not report.interrupted
    (record_of_run,) = report.runs
    phases = {phase.name: phase for phase in record_of_run.phases}
    assert list(phases) == ["through", "rate", "stay", "commands"]
    assert phases["through"].counts["through"] == phases["through"].reasons["succeeded"] == 2000
    assert phases["rate"].rate == pytest.approx(0.2 * record_of_run.metrics["maximum"])
    assert phases["stay"].counts["ready"] == 200
    assert phases["stay"].latencies["first_command"].count == 200
    assert phases["commands"].latencies["command"].count == 200
    asked = sum(phase.counts.get("asked", 0) for phase in record_of_run.phases)
    assert record_of_run.audit["asked"] == record_of_run.audit["concluded"] == asked
    for phase in record_of_run.phases:
        for name, latency in phase.latencies.items():
            assert 0 <= latency.min <= latency.p50 <= latency.p99 <= latency.max, name
    ready, broker = phases["through"].latencies["ready"], phases["through"].latencies["ready_broker"]
    assert ready.count == broker.count == 2000
    assert {"broker", "scheduler", "placement", "snapshot", "executor", "generator-1", "generator-2"} <= set(
        record_of_run.cpu_s
    )
    assert record_of_run.messages["rollout"] > 0
    columns = record_of_run.series
    assert {len(column) for column in columns.values()} == {len(columns["t"])}
    assert columns["through"][-1] is not None
    assert "<svg" in (out / "report.html").read_text()

    side = shoal(tmp_path, "loadtest", "compare", str(out), str(out / "report.json"), "--json")
    rows = {row["metric"]: row for row in map(json.loads, side.stdout.splitlines())}
    assert side.returncode == Exit.OK
    assert rows["throughput"]["ratio"] == 1
    assert rows["ready_p99_ms"]["better"] is None
    assert processes(tmp_path) == []


def test_a_run_that_is_interrupted_reports_and_leaves_nothing(tmp_path: Path, hold: Path) -> None:
    out = tmp_path / "out"
    state = tmp_path / "tmp"
    state.mkdir()
    status, _, heard = interrupted(begun(state, str(hold), "--out", str(out)))
    assert status == Exit.INTERRUPTED, heard
    report = record.read(out)
    assert report.interrupted
    assert report.right
    (run,) = report.runs
    assert [phase.name for phase in run.phases] == ["hold"]
    assert run.audit["asked"] == run.audit["concluded"] > 0
    assert (out / "report.html").exists()
    assert processes(state) == []
    assert list(state.iterdir()) == []


@pytest.fixture
def simulated(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A system that is up: its state directory and URL."""
    state = tmp_path / "system"
    options = ["--state", str(state), "--port", "0", "--detach", "--json", "--driver", "simulated", "--nodes", "10"]
    up = shoal(tmp_path, "up", *options)
    assert up.returncode == Exit.OK, up.stderr
    try:
        yield state, json.loads(up.stdout)["url"]
    finally:
        shoal(tmp_path, "down", "--state", str(state))
        assert processes(state) == []


def test_a_cluster_that_is_up_is_used_and_everything_given_back(
    tmp_path: Path, hold: Path, simulated: tuple[Path, str]
) -> None:
    state, url = simulated

    def live() -> int:
        found: dict[str, Any] = json.loads(shoal(tmp_path, "status", "--state", str(state), "--json").stdout)
        return int(found["sandboxes"])

    out = tmp_path / "out"
    options = ["--url", url, "--state", str(state), "--out", str(out), "--set", "fault=[{kill=['scheduler'], every=1}]"]
    status, _, heard = interrupted(begun(tmp_path, str(hold), *options))
    assert status == Exit.INTERRUPTED, heard
    report = record.read(out)
    assert report.right
    assert not report.own
    (run,) = report.runs
    assert run.audit["asked"] == run.audit["concluded"] > 0
    assert run.cpu_s["executor"] > 0
    eventually(lambda: live() == 0)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["nothing"], Exit.USAGE, "scenario: cannot read nothing"),
        (["smoke", "--set", "fleet.nods=1"], Exit.USAGE, "fleet.nods: there is no such key"),
        (["smoke", "--objective", "speed>1"], Exit.USAGE, "objective: "),
        (["smoke", "--scale", "0"], Exit.USAGE, "'--scale': "),
        (["smoke", "--url", "nats://127.0.0.1:1"], Exit.UNREACHABLE, "nats://127.0.0.1:1"),
        (["smoke", "--url", "nats://127.0.0.1:1", "--faults"], Exit.USAGE, "state: "),
        (["smoke", "--state", "."], Exit.USAGE, "state: "),
        (["smoke", "--out", "/proc/no"], Exit.STATE_DIRECTORY, "--out"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_before_anything_starts(
    tmp_path: Path, arguments: list[str], status: Exit, words: str
) -> None:
    done = shoal(tmp_path, "loadtest", "run", *arguments)
    assert done.returncode == status, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("shoal: ")
    assert words in line


def test_the_group_lists_shows_and_explains(tmp_path: Path) -> None:
    listed = shoal(tmp_path, "loadtest", "list", "--json")
    names = [json.loads(line)["name"] for line in listed.stdout.splitlines()]
    assert {"million", "smoke"} <= set(names)
    shown = shoal(tmp_path, "loadtest", "show", "million")
    assert "1_000_000" in shown.stdout
    assert "ready_p99_ms" in shown.stdout
    everything = json.loads(shoal(tmp_path, "loadtest", "show", "--json").stdout)
    assert "nodes" in everything["keys"]["fleet"][1]
    assert "loadtest" in shoal(tmp_path, "--help").stdout
