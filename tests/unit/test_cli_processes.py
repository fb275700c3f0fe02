"""What a service is started with."""

import signal
import sys
from pathlib import Path

import pytest

from shoal.cli.processes import spawn


def test_a_service_is_told_how_sandboxes_are_and_not_where_things_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SHOAL_START_MS", "SHOAL_OVERCOMMIT", "SHOAL_LOG_LEVEL", "SHOAL_URL", "SHOAL_STATE", "SHOAL_TLS_CERT"):
        monkeypatch.setenv(name, "1")
    program = "import os; print(sorted(name for name in os.environ if name.startswith('SHOAL_')))"
    log = tmp_path / "log"
    assert spawn([sys.executable, "-c", program], log, signal.SIGTERM).wait(30) == 0
    assert log.read_text() == "['SHOAL_LOG_LEVEL', 'SHOAL_OVERCOMMIT', 'SHOAL_START_MS']\n"
