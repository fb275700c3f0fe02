"""Tables: a person's terminal has a width, and what reads a pipe wants all of it."""

import subprocess
import sys
from pathlib import Path

import pytest

from shoal.cli.exits import Exit
from shoal.cli.output import table


def test_a_table_in_a_pipe_has_every_cell_whole(capsys: pytest.CaptureFixture[str]) -> None:
    columns = [f"column-{number}" for number in range(12)]
    row = ["x" * 300, *(f"value-{number}" for number in range(11))]
    table(columns, [row], empty="")
    header, _, values = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert header.split() == columns
    assert values.split() == row


def test_where_there_are_no_rows_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    table(["name"], [], empty="nothing yet")
    told = capsys.readouterr()
    assert (told.out, "nothing yet" in told.err) == ("", True)


@pytest.mark.parametrize(
    "command", ["archive info {}", "archive cat {}", "archive cat {} --json", "audit --from {}", "--help"]
)
def test_a_full_disk_behind_standard_output_is_no_mistake_in_shoal(command: str) -> None:
    archive = Path(__file__).parents[1] / "archive" / "golden" / "wire-4.shoal"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "shoal.cli", *command.format(archive).split()],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        Exit.OUTPUT,
        "shoal: standard output cannot be written: No space left on device",
    )
