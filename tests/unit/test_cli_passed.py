"""What is passed over, as `shoal status` and `shoal archive info` tell of it."""

import pytest

from shoal.cli.exits import Exit, Failure
from shoal.cli.passed import passed_over, tell
from shoal.machine.passing import Failure as Failed, Record, encoded
from shoal.wire.streams import passed_key

TWICE = Failed(7, "d", "KeyError at core/placing.py:93", "shoal 9", 1_700_000_000_000)
ONCE = Failed(9, "e", "ValueError at core/x.py:1", "shoal 9", 1_700_000_000_000)
VALUES = {"cells": b"1", passed_key("placement.0"): encoded(Record(ONCE, 3, (TWICE,)))}


def test_what_is_passed_over_and_what_was_failed_on_once(capsys: pytest.CaptureFixture[str]) -> None:
    found = passed_over(VALUES)
    assert [(each["partition"], each["sequence"], each["passed_over"]) for each in found] == [
        ("placement.0", 7, True), ("placement.0", 9, False),
    ]  # fmt: skip
    tell(found)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(
        "message 7 of the log of placement.0 is passed over: it was failed on twice (KeyError at core"
    )
    assert second.startswith(
        "message 9 of the log of placement.0 was failed on once, and is not passed over (ValueError"
    )


def test_where_there_is_none_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert passed_over({"cells": b"1", passed_key("snapshot"): encoded(Record())}) == []
    tell([])
    assert capsys.readouterr().err == ""


def test_what_cannot_be_read_is_named() -> None:
    with pytest.raises(Failure, match=r"what is passed over of the log of snapshot cannot be read") as failed:
        passed_over({passed_key("snapshot"): b"potatoes"})
    assert failed.value.status == Exit.INFRASTRUCTURE
