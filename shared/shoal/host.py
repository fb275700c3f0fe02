"""What a process may use of its machine: all of it, or what the control groups that it is in leave it.

A container on a large machine sees all of the machine's memory and cores. Who promises those to sandboxes promises what
is not there, and who fills them is killed.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path


def memory(root: Path = Path("/")) -> int:
    """Return how many bytes of memory a process like this one may have. `root`: where `proc` is."""
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for group, unified in _groups(root, "memory"):
        limit = _words(group / ("memory.max" if unified else "memory.limit_in_bytes"))
        if limit and limit[0].isdecimal():
            most = min(most, int(limit[0]))
    return most


def cores(root: Path = Path("/")) -> int:
    """Return on how many cores' worth of time a process like this one may run, rounded up. `root`: where `proc` is."""
    try:
        most = len(os.sched_getaffinity(0))
    except AttributeError:  # a system without
        most = os.cpu_count() or 1
    for group, unified in _groups(root, "cpu"):
        if unified:
            limit = _words(group / "cpu.max")
        else:
            limit = _words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us")
        if len(limit) == 2 and all(word.isdecimal() for word in limit) and int(limit[1]):  # else "max" or -1
            most = min(most, max(math.ceil(int(limit[0]) / int(limit[1])), 1))
    return most


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """Yield this process's control group and those around it, and whether they are of the second version."""
    paths = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, names, path = line.split(":", 2)
        paths.update(dict.fromkeys(names.split(","), path))
    for line in _lines(root / "proc/self/mountinfo"):
        mount, _, what = line.partition(" - ")
        kind, _, options = what.split(" ", 2)
        unified = kind == "cgroup2"
        inside = paths.get("" if unified else controller)
        if inside is None or not (unified or (kind == "cgroup" and controller in options.split(","))):
            continue
        within, at = mount.split(" ")[3:5]
        top = root / at.lstrip("/")
        group = top / os.path.relpath(inside, within) if Path(inside).is_relative_to(within) else top
        while group.is_relative_to(top):
            yield group, unified
            group = group.parent


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return [word for line in _lines(path) for word in line.split()]
