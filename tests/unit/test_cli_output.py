"""Tables: a person's terminal has a width, and what reads a pipe wants all of it."""

import pytest

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
