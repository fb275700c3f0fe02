"""A trainer that is killed again and again, as the load test does it, smaller."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.broker, pytest.mark.sandbox]

SCRIPT = Path(__file__).parents[2] / "loadtest" / "resume.py"


@pytest.mark.timeout(240)
@pytest.mark.parametrize("variant", [[], ["--executor"]], ids=["trainer", "trainer and executor"])
def test_every_command_is_carried_out_once_however_often_its_trainer_is_killed(variant: list[str]) -> None:
    sizes = ["--sandboxes", "8", "--commands", "8", "--kills", "5"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *sizes, *variant, "--json"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert (report["each_once"], report["same_result"], report["killed"]) == (True, True, 5)
    assert report["executors_killed"] >= (1 if variant else 0)
