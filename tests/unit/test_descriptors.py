"""Descriptors of an executor and its sandboxes: enough for all of them, and none lost where there are too few."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shoal_executor.drivers.cgroups import Group, Groups


def test_entrances_that_cannot_all_be_opened_are_all_closed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/cgroup.procs").touch()
    group = Group((tmp_path / "a", tmp_path / "gone"))
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError):
        Groups.entrances(group)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def run(code: str) -> None:
    """Run it in a process of its own, whose limits it changes."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False, text=True)
    assert done.returncode == 0, done.stderr


def test_an_executor_may_open_as_many_as_it_is_allowed() -> None:
    run("""
import resource
from shoal_executor.__main__ import _lift_descriptors
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
_lift_descriptors()
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
""")


@pytest.mark.parametrize(("given", "usual"), [((1024, 4096), (1024, 4096)), ((1 << 20, 1 << 20), (65_536, 1 << 20))])
def test_a_sandbox_has_no_more_than_a_program_may_look_at(given: tuple[int, int], usual: tuple[int, int]) -> None:
    run(f"""
from shoal_executor.drivers.zygote import becoming
becoming.resource.getrlimit = lambda _: {given}
becoming.resource.setrlimit = lambda *_: None
assert becoming.Entrance([], b"", None)._limit == {usual}
""")
