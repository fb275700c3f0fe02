"""The processes of this machine, as tests look at them."""

from pathlib import Path


def processes(file: str = "cmdline") -> dict[int, bytes]:
    """Return what a file below /proc says of each process; those that end meanwhile are left out."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            found[int(path.name)] = (path / file).read_bytes()
        except OSError:
            continue
    return found


def with_argument(argument: str) -> list[int]:
    """Return the processes with this argument."""
    return [pid for pid, line in processes().items() if argument.encode() in line.split(b"\0")]
