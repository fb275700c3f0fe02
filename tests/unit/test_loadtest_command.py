"""The group `shoal loadtest`: commands that other packages bring, what is missing, and faults on purpose."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from shoal.cli.__main__ import run
from shoal.cli.exits import Exit, Failure
from shoal_loadtest import command
from shoal_loadtest.faults import Killing
from shoal_loadtest.scenario.model import Fault, Seconds


def test_a_slot_is_shown_where_its_package_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "elsewhere"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "command.py").write_text("import click\n@click.command()\ndef mine() -> None:\n    'Mine.'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    slots = {"mine": "elsewhere.command:mine", "none": "nowhere.at.all:none", "half": "elsewhere.missing:half"}
    monkeypatch.setattr(command, "_SLOTS", slots)
    context = click.Context(command.loadtest)
    listed = command.loadtest.list_commands(context)
    assert {"list", "show", "run", "compare", "mine"} == set(listed)
    found = command.loadtest.get_command(context, "mine")
    assert found is not None
    assert found.name == "mine"
    assert command.loadtest.get_command(context, "none") is None


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    command.needed()
    monkeypatch.setattr(command, "_NEEDED", {"no_such_module_at_all": "nothing"})
    with pytest.raises(Failure, match=r"shoal\[loadtest\]") as caught:
        command.needed()
    assert caught.value.status is Exit.START_FAILED


@pytest.fixture
def sleepers() -> Iterator[list["subprocess.Popen[bytes]"]]:
    started = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) for _ in range(3)]
    yield started
    for process in started:
        process.kill()
        process.wait(30)


def test_faults_kill_each_kind_and_each_process_in_turn(sleepers: list["subprocess.Popen[bytes]"]) -> None:
    scheduler, first, second = sleepers
    known = {"scheduler": scheduler.pid, "broker-1": first.pid, "broker-2": second.pid}
    told: list[str] = []
    killing = Killing(Fault(kill=("scheduler", "broker", "executor"), every=Seconds(60)), lambda: known, told.append)
    killing.kill_next()
    assert scheduler.wait(30) == -9
    killing.kill_next()
    assert first.wait(30) == -9
    killing.kill_next()  # nobody is an executor
    del known["scheduler"]
    killing.kill_next()  # nor a scheduler any more
    killing.kill_next()
    assert second.wait(30) == -9
    assert killing.killed == {"scheduler": 1, "broker-1": 1, "broker-2": 1}
    assert [name for _, name in killing.events] == ["scheduler", "broker-1", "broker-2"]
    assert told == []


def test_a_state_directory_without_a_system_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "smoke", "--url", "nats://127.0.0.1:1", "--state", str(tmp_path), "--out", str(tmp_path / "o")]
    assert run(["loadtest", *arguments]) == Exit.USAGE
    assert f"state: no system runs on {tmp_path}" in capsys.readouterr().err
