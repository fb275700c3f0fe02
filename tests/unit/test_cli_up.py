"""What `shoal up` hands on."""

import pytest
from click.testing import CliRunner

from shoal.cli import system_commands


def test_how_much_a_machine_promises_is_handed_to_each_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []

    async def up(*args: object) -> int:
        given.append(args[-2])
        return 0

    monkeypatch.setattr("shoal.cli.system_commands._up", up)
    for options in (["--overcommit", "1", "--cpu", "8", "--driver", "zygote,gvisor"], []):
        CliRunner().invoke(system_commands.up, options, catch_exceptions=False, standalone_mode=False)
    assert given == [["--overcommit", "1.0", "--cpu", "4.0"], []]
