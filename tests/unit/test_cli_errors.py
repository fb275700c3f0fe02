"""Every error a person can cause is one sentence and a status of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.cli import statefile
from shoal.cli.__main__ import run
from shoal.cli.exits import Exit, Failure
from shoal.cli.processes import how_it_ended
from shoal.cli.supervisor import last_lines
from shoal.runtime.lease import start_time

NOWHERE = ["--url", "nats://127.0.0.1:1"]


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (["run", *NOWHERE, "host", "--", "true"], Exit.UNREACHABLE, "shoal up"),
        (["run", *NOWHERE, "host", "-n", "0", "--", "true"], Exit.USAGE, "from 1 to"),
        (["run", *NOWHERE, "host", "-n", "many", "--", "true"], Exit.USAGE, "many"),
        (["run", *NOWHERE, "host", "--memory", "12 potatoes", "--", "true"], Exit.USAGE, "256MiB"),
        (["run", *NOWHERE, "host", "--timeout", "soon", "--", "true"], Exit.USAGE, "10m"),
        (["run", *NOWHERE, "host", "--run", "a.b", "--", "true"], Exit.USAGE, "a.b"),
        (["run", *NOWHERE, "host", "--env", "A", "--", "true"], Exit.USAGE, "NAME=VALUE"),
        (["run", *NOWHERE, "host", "--input", "/nonexistent", "--", "true"], Exit.INPUT, "/nonexistent"),
        (["run", *NOWHERE, "host"], Exit.USAGE, "COMMAND"),
        (["submit", *NOWHERE, "host", "--", "true"], Exit.UNREACHABLE, "--url"),
        (["ls", *NOWHERE], Exit.UNREACHABLE, "--url"),
        (["dead", "ls", *NOWHERE], Exit.UNREACHABLE, "--url"),
        (["dead", "show", *NOWHERE, "first"], Exit.USAGE, "first"),
        (["dead", "retry", *NOWHERE], Exit.USAGE, "--all"),
        (["dead", "retry", *NOWHERE, "1", "--all"], Exit.USAGE, "shoal dead ls"),
        (["dead", "retry", *NOWHERE, "1", "--stream", "SHOAL_SNAPSHOT"], Exit.USAGE, "--all"),
        (["trajectory", "export", *NOWHERE, "r", "-o", "-"], Exit.UNREACHABLE, "--url"),
        (["trajectory", "export", *NOWHERE, "r", "-o", "rows.csv"], Exit.USAGE, ".parquet"),
        (["trajectory", "export", *NOWHERE, "r"], Exit.USAGE, "--output"),
        (["trajectory", "show", *NOWHERE, "r-0"], Exit.UNREACHABLE, "--url"),
        (["fly"], Exit.USAGE, "fly"),
        (["up", "--nodes", "2"], Exit.USAGE, "simulated"),
        (["up", "--state", "/proc/nowhere"], Exit.STATE_DIRECTORY, "--state"),
    ],
)
def test_a_mistake_is_one_sentence_and_a_status(
    arguments: list[str], status: Exit, word: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == status
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("shoal: ")
    assert word in err


def test_nothing_runs_on_an_empty_state_directory(tmp_path: Path) -> None:
    assert run(["status", "--state", str(tmp_path)]) == Exit.NOT_RUNNING
    assert run(["down", "--state", str(tmp_path)]) == Exit.NOT_RUNNING


def test_a_second_lock_says_who_holds_the_first(tmp_path: Path) -> None:
    mine = start_time(os.getpid())
    assert mine is not None
    with statefile.lock(tmp_path):
        statefile.write(tmp_path, statefile.Running(os.getpid(), mine, "nats://here:1"))
        with pytest.raises(Failure, match="nats://here:1") as caught:
            statefile.lock(tmp_path)
    assert caught.value.status is Exit.ALREADY_RUNNING
    assert f"`shoal down --state {tmp_path}`" in str(caught.value)
    statefile.lock(tmp_path).close()


def test_what_stops_a_system_names_its_directory_unless_that_is_the_usual_one() -> None:
    assert statefile.down(statefile.resolve(None)) == "shoal down"
    assert statefile.down(Path("/a b/c")) == "shoal down --state '/a b/c'"


def test_a_pid_that_was_given_to_another_process_is_not_ours(tmp_path: Path) -> None:
    mine = start_time(os.getpid())
    assert mine is not None
    statefile.write(tmp_path, statefile.Running(os.getpid(), mine - 1, "nats://here:1"))
    assert statefile.read(tmp_path) is None


def test_a_log_is_read_by_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text('{"event": "failed", "error": "no room", "level": "error"}\nplain\n')
    assert last_lines(log) == ["failed: no room", "plain"]
    assert last_lines(tmp_path / "none") == []
    assert how_it_ended(-signal.SIGKILL) == "killed by SIGKILL"


def test_every_command_has_help_with_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    plain = ("up", "down", "status", "run", "submit", "watch", "ls", "cancel", "nodes", "events")
    for name in (*plain, "dead ls", "dead show", "dead retry", "trajectory export", "trajectory show"):
        assert run([*name.split(), "--help"]) == Exit.OK
        assert "--json" in capsys.readouterr().out


def test_help_imports_neither_broker_nor_client() -> None:
    script = "import sys; from shoal.cli.__main__ import run; run(['run', '--help']); print(sorted(sys.modules))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    modules = found.stdout.splitlines()[-1]
    assert "'nats'" not in modules
    assert "'rich'" not in modules
