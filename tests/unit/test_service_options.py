"""What services say of their options, and to values that make no sense."""

import asyncio
import importlib
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from shoal.broker import EmbeddedBroker
from shoal.bus.jetstream import JetStreamBus
from shoal.runtime.cluster import ensure_cluster

SERVICES = ("scheduler", "placement", "snapshot", "executor")


def command(service: str) -> click.Command:
    found = importlib.import_module(f"shoal_{service}.__main__").main
    assert isinstance(found, click.Command)
    return found


@pytest.mark.parametrize("service", SERVICES)
def test_every_option_has_a_variable_which_its_help_shows(service: str) -> None:
    main = command(service)
    context = click.Context(main, max_content_width=110, terminal_width=1000)
    for option in main.params:
        assert isinstance(option, click.Option)
        assert isinstance(option.envvar, str), option.name
        shown = option.get_help_record(context)
        assert shown is not None
        assert f"env var: {option.envvar}" in shown[1], option.name


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--cpu", "nan"], "nan is no number to reckon with; write one such as 1"),
        (["--cpu", "inf"], "inf is no number"),
        (["--overcommit", "nan"], "nan is no number"),
        (["--start-ms", "nan"], "nan is no number"),
        (["--command-failures", "nan"], "nan is no number"),
        (["--memory", "5"], "5 is too little; write 64MiB or more, such as 16GiB"),
        (["--blob-cache", "5"], "5 is too little; write 1MiB or more, such as 20GiB"),
        (
            ["--state", "/dev/null/x"],
            "--state: the directory /dev/null/x cannot be used: Not a directory; name another",
        ),
        (["--driver", "gvisor", "--gvisor-platform", "kvm"], "kvm needs /dev/none, which is missing on this machine"),
    ],
)
def test_an_executor_refuses_what_makes_no_sense(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("shoal_executor.__main__._KVM", Path("/dev/none"))
    monkeypatch.setattr("shoal_executor.__main__.serve", lambda *_, **__: None)
    done = CliRunner().invoke(command("executor"), ["--state", str(tmp_path), *arguments])
    assert done.exit_code == 2
    assert says in done.output
    assert arguments[-2] in done.output


def test_the_snapshot_service_refuses_a_directory_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal_snapshot.__main__.serve", lambda *_, **__: None)
    done = CliRunner().invoke(command("snapshot"), ["--state", "/dev/null/x"])
    assert done.exit_code == 2
    assert "--state: the directory /dev/null/x cannot be used" in done.output


async def test_an_executor_of_a_cell_that_is_none_ends(tmp_path: Path) -> None:
    async with EmbeddedBroker(tmp_path, port=0) as broker:
        bus = await JetStreamBus.connect(broker.url, name="test")
        await ensure_cluster(bus, 2)
        await bus.close()
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "shoal_executor", "--url", broker.url, "--driver", "simulated", "--cell", "7"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert "cell: 7 is none of the 2 cells" in done.stderr
