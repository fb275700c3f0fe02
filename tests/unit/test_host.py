"""What a process may use of its machine, by the control groups it is in."""

import os
from pathlib import Path

import pytest

from shoal import host

MACHINE_BYTES = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
MIB = 1024**2


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))


def machine(root: Path, groups: str, mounts: str, **files: str) -> Path:
    """Write what the kernel says; names of files have `__` for `/`."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    (root / "proc/self/mountinfo").write_text(mounts)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


SECOND = "25 20 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw\n"
FIRST = (
    "31 25 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "32 25 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
)


def test_without_control_groups_it_is_the_machine(tmp_path: Path) -> None:
    assert host.memory(tmp_path) == MACHINE_BYTES
    assert host.cores(tmp_path) == 8


def test_the_least_of_all_groups_around_it_counts(tmp_path: Path) -> None:
    root = machine(
        tmp_path, "0::/pod/box\n", SECOND, pod__box__memory_dot_max="max", pod__memory_dot_max=str(64 * MIB),
        memory_dot_max=str(128 * MIB), pod__box__cpu_dot_max="150000 100000", pod__cpu_dot_max="max 100000",
    )  # fmt: skip
    assert host.memory(root) == 64 * MIB
    assert host.cores(root) == 2


def test_a_container_sees_its_own_group_as_the_top(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/\n", SECOND, memory_dot_max=str(32 * MIB), cpu_dot_max="50000 100000")
    assert host.memory(root) == 32 * MIB
    assert host.cores(root) == 1


def test_groups_of_the_first_version(tmp_path: Path) -> None:
    mounts = FIRST + SECOND.replace("/cgroup rw", "/cgroup/unified rw")
    files = {
        "memory__docker__a__memory_dot_limit_in_bytes": str(96 * MIB),
        "memory__memory_dot_limit_in_bytes": "9223372036854771712",
        "cpu,cpuacct__docker__a__cpu_dot_cfs_quota_us": "300000",
        "cpu,cpuacct__docker__a__cpu_dot_cfs_period_us": "100000",
        "cpu,cpuacct__cpu_dot_cfs_quota_us": "-1",
        "cpu,cpuacct__cpu_dot_cfs_period_us": "100000",
    }
    root = machine(tmp_path, "4:memory:/docker/a\n1:cpu,cpuacct:/docker/a\n0::/\n", mounts, **files)
    assert host.memory(root) == 96 * MIB
    assert host.cores(root) == 3


def test_a_group_that_is_mounted_as_the_top_is_not_looked_for_below_itself(tmp_path: Path) -> None:
    mounts = FIRST.replace(" / /sys/fs/cgroup/memory", " /docker/a /sys/fs/cgroup/memory")
    root = machine(
        tmp_path, "4:memory:/docker/a\n", mounts, memory__memory_dot_limit_in_bytes=str(48 * MIB),
        memory__docker__a__memory_dot_limit_in_bytes="1",
    )  # fmt: skip
    assert host.memory(root) == 48 * MIB


def test_this_very_process_may_use_something() -> None:
    assert MIB < host.memory() <= MACHINE_BYTES
    assert 1 <= host.cores() <= 8
