"""The `shoal` command with everything behind it: real broker, real services, and, where marked, real sandboxes."""

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

from shoal.cli import statefile
from shoal.cli.exits import Exit
from shoal.runtime.lease import start_time

pytestmark = pytest.mark.broker

SHOAL = [sys.executable, "-m", "shoal.cli"]


def shoal(*arguments: str, url: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    if url is not None:
        environment["SHOAL_URL"] = url
    return subprocess.run(
        [*SHOAL, *arguments], capture_output=True, text=True, timeout=90, env=environment, stdin=subprocess.DEVNULL
    )


def lines(found: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert found.returncode == 0, found.stderr
    return [json.loads(line) for line in found.stdout.splitlines()]


def of_state(state: Path) -> list[str]:
    """Return the command lines of all processes that name a state directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid() and start_time(int(entry.name)) is not None:
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(state) in line:
                found.append(line)
    return found


def eventually(holds: Callable[[], object], seconds: float = 40.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture
def simulated(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A detached system of simulated nodes: its state directory and URL."""
    state = tmp_path / "state"
    begun = shoal("up", "--state", str(state), "--port", "0", "--detach", "--json", "--driver", "simulated")
    try:
        yield state, lines(begun)[0]["url"]
    finally:
        shoal("down", "--state", str(state))
        assert of_state(state) == []


def test_a_system_from_up_to_down(tmp_path: Path, simulated: tuple[Path, str]) -> None:
    state, url = simulated
    (status,) = lines(shoal("status", "--state", str(state), "--json"))
    assert set(status["services"]) == {"broker", "scheduler", "placement", "snapshot", "executor"}
    assert all(service["state"] == "running" for service in status["services"].values())
    assert (status["nodes"], status["sandboxes"], status["url"], status["passed_over"]) == (1, 0, url, [])
    again = shoal("up", "--state", str(state), "--port", "0")
    assert again.returncode == Exit.ALREADY_RUNNING
    assert url in again.stderr
    port = url.rpartition(":")[2]
    taken = shoal("up", "--state", str(tmp_path / "other"), "--port", port)
    assert taken.returncode == Exit.PORT
    assert port in taken.stderr

    *results, summary = lines(shoal("run", "host", "-n", "5", "--run", "r1", "--json", "--", "true", url=url))
    assert [one["isolation"] for one in results] == ["simulated"] * 5
    assert (summary["succeeded"], summary["lost"], summary["simulated"]) == (5, 0, True)
    shown = shoal("run", "host", "--", "true", url=url)
    assert "simulated" in shown.stderr
    rollout = shoal("submit", "host", "-n", "3", "--", "true", url=url).stdout.strip()
    assert lines(shoal("watch", rollout, "--json", url=url))[-1]["succeeded"] == 3
    assert rollout in [one["rollout"] for one in lines(shoal("ls", "--json", url=url))]
    assert rollout in shoal("ls", url=url).stdout
    assert [node["isolation"] for node in lines(shoal("nodes", "--json", url=url))] == ["simulated"]
    said = [event["type"] for event in lines(shoal("events", "--run", "r1", "--json", url=url))]
    assert said[0] == "RolloutSubmitted"
    assert "RolloutConcluded" in said
    assert shoal("watch", "rnone", url=url).returncode == Exit.UNKNOWN_ROLLOUT
    assert shoal("run", "nonsense", "--", "true", url=url).returncode == Exit.UNKNOWN_TEMPLATE
    assert shoal("down", "--state", str(state)).returncode == 0
    assert of_state(state) == []
    assert shoal("down", "--state", str(state)).returncode == Exit.NOT_RUNNING


def test_what_happened_is_told_from_the_log_and_from_an_archive_of_it(
    tmp_path: Path, simulated: tuple[Path, str]
) -> None:
    _, url = simulated
    summary = lines(shoal("run", "host", "-n", "40", "--run", "jobs", "--json", "--", "true", url=url))[-1]
    rollout, path = summary["rollout"], str(tmp_path / "all.shoal")

    def told(*where: str, url: str | None = None) -> list[dict[str, Any]]:
        everything = lines(shoal("history", rollout, *where, "--json", url=url))
        assert everything[0]["type"] == "RolloutSubmitted"
        assert everything[0]["message"]["rollout"] == rollout
        return [each for each in everything if not each["context"]]

    def released() -> bool:
        freed = [each["message"]["indices"] for each in told(url=url) if each["type"] == "SlotsReleased"]
        return sum(int(count) for indices in freed for _, count in indices) == 40

    eventually(released)  # nothing is said of it after that
    (made,) = lines(shoal("export", "-o", path, "--json", url=url))
    assert (made["missing"], made["resumed"]) == ([], False)
    (found,) = lines(shoal("archive", "verify", path, "--json"))
    assert (found["whole"], found["digest"], found["messages"]) == (True, made["digest"], made["messages"])
    live = told(url=url)
    assert told("--from", path) == live
    assert told("--from", path, "--live", url=url) == live
    shown = shoal("history", rollout, url=url).stdout
    assert "submitted: 40 sandboxes of host, to run true, run jobs of default" in shown
    assert "concluded, finished: 40 succeeded" in shown
    assert "node local, served by local" in shoal("history", "local", url=url).stdout
    ran = [deed for deed in lines(shoal("audit", "--json", url=url)) if deed["what"] == "command"]
    assert {(deed["of"].rpartition("-")[0], deed["detail"], deed["exit_code"]) for deed in ran} == {
        (rollout, "true", 0)
    }
    assert len(ran) == 40
    assert shoal("history", "rnone", url=url).returncode == Exit.UNKNOWN_ROLLOUT
    cut = tmp_path / "cut.shoal"
    cut.write_bytes(Path(path).read_bytes()[:-200])
    assert shoal("archive", "verify", str(cut)).returncode == Exit.DAMAGED


def test_a_killed_service_is_started_again(simulated: tuple[Path, str]) -> None:
    state, url = simulated
    before = statefile.read(state)
    assert before is not None
    old = {name: service["pid"] for name, service in before.services.items()}
    for name in ("scheduler", "broker"):
        os.kill(old[name], signal.SIGKILL)

    def back() -> bool:
        now = statefile.read(state)
        return now is not None and all(now.services[name]["pid"] not in (None, old[name]) for name in old if name in
                                       ("scheduler", "broker"))  # fmt: skip

    eventually(back)
    assert lines(shoal("run", "host", "-n", "4", "--json", "--", "true", url=url))[-1]["succeeded"] == 4
    assert "scheduler" in (state / "log" / "up.log").read_text()


def test_nothing_survives_the_killing_of_up(simulated: tuple[Path, str]) -> None:
    state, _ = simulated
    running = statefile.read(state)
    assert running is not None
    pids = [service["pid"] for service in running.services.values()]
    os.kill(running.pid, signal.SIGKILL)
    eventually(lambda: all(start_time(pid) is None for pid in pids))
    assert of_state(state) == []


def test_a_broken_pipe_is_quiet(simulated: tuple[Path, str]) -> None:
    _, url = simulated
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        found = subprocess.run(
            [*SHOAL, "events", "--url", url], stdout=gone, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert (found.returncode, found.stderr) == (Exit.BROKEN_PIPE, "")


@pytest.mark.sandbox
def test_a_local_run_in_real_sandboxes(tmp_path: Path) -> None:
    source = tmp_path / "input.txt"
    source.write_text("6*7")
    found = shoal(
        "run", "--local", "host", "-n", "4", "--json", "--input", str(source), "--env", "A=b",
        "--", "sh", "-c", "echo $(($(cat input.txt))) $A",
    )  # fmt: skip
    *results, summary = lines(found)
    assert [one["stdout"] for one in results] == ["42 b\n"] * 4
    assert (summary["succeeded"], summary["failed"], summary["lost"]) == (4, 0, 0)
    missing = shoal("run", "--local", "host", "--", "no-such-command")
    assert missing.returncode == Exit.COMMAND_NOT_FOUND
    assert "no-such-command" in missing.stderr
    assert "Traceback" not in missing.stderr


@pytest.mark.sandbox
def test_an_interrupted_local_run_leaves_nothing(tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen([*SHOAL, "run", "--local", "host", "--", "sleep", "600"], env=environment)
    eventually(lambda: any("shoal-run-" in line for line in of_state(tmp_path)))
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == Exit.INTERRUPTED
    assert of_state(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_another_number_of_cells_than_a_state_directory_has_is_refused_at_once(tmp_path: Path) -> None:
    options = ("--state", str(tmp_path), "--driver", "simulated", "--port", "0", "--detach")
    assert shoal("up", *options).returncode == 0
    assert shoal("down", "--state", str(tmp_path)).returncode == 0
    found = shoal("up", *options, "--cells", "2")
    assert found.returncode == Exit.STATE_DIRECTORY
    assert "was made with --cells 1 and stays so" in found.stderr
    assert of_state(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_whoever_brings_up_detached_and_is_interrupted_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    options = ["--state", str(tmp_path), "--driver", "simulated", "--port", "0", "--detach"]
    process = subprocess.Popen([*SHOAL, "up", *options])
    eventually(lambda: any("-m shoal_snapshot" in line for line in of_state(tmp_path)) or process.poll() is not None)
    process.send_signal(number)
    status = process.wait(60)
    if status == 0:  # it was ready just before
        assert shoal("down", "--state", str(tmp_path)).returncode == 0
    else:
        assert status == Exit.INTERRUPTED
    assert of_state(tmp_path) == []
