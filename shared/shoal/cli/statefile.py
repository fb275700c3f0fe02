"""What a running system keeps in its state directory: a lock for as long as it lives, and who and where it is."""

import fcntl
import json
import os
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from shoal.cli.exits import Exit, Failure
from shoal.runtime.lease import start_time


@dataclass(slots=True)
class Running:
    """A system that runs. `started` is its process's start time, in clock ticks since boot."""

    pid: int
    started: int
    url: str = ""
    driver: str = ""
    ready: bool = False
    services: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def alive(self) -> bool:
        """Whether that very process lives."""
        return start_time(self.pid) == self.started


def default_state() -> Path:
    """Return the state directory of somebody who named none."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "shoal"


def resolve(state: Path | None) -> Path:
    """Return the state directory as an absolute path."""
    return (state or default_state()).expanduser().absolute()


def down(state: Path) -> str:
    """Return the command that stops what runs there."""
    return "shoal down" if state == resolve(None) else f"shoal down --state {shlex.quote(str(state))}"


def make(state: Path) -> None:
    """Make the state directory, this user's alone. Raises Failure."""
    try:
        (state / "log").mkdir(parents=True, exist_ok=True)
        if not os.access(state, os.W_OK | os.X_OK):
            raise PermissionError(13, "it is not yours to write")
    except OSError as error:
        raise Failure(
            Exit.STATE_DIRECTORY,
            f"the state directory {state} cannot be used: {error.strerror}; name another with --state",
        ) from error


def lock(state: Path) -> IO[str]:
    """Take the directory's lock, held until the file is closed. Raises Failure when a system runs there."""
    make(state)
    try:
        file = (state / "up.lock").open("a")
    except OSError as error:
        raise Failure(
            Exit.STATE_DIRECTORY, f"the state directory {state} cannot be used: {error.strerror}; name another"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        found = read(state)
        where = f" at {found.url} (pid {found.pid})" if found and found.url else ""
        stop = f"stop it with `{down(state)}`"
        raise Failure(
            Exit.ALREADY_RUNNING,
            f"a system runs on {state} already{where}; {stop}, or name another --state and --port",
        ) from error
    return file


def write(state: Path, running: Running) -> None:
    """Store what is known of the running system, all or nothing."""
    new = state / "system.json.new"
    new.write_text(json.dumps(asdict(running), indent=1))
    new.replace(state / "system.json")


def read(state: Path) -> Running | None:
    """Return the system that runs on a state directory; None where none does."""
    try:
        found = Running(**json.loads((state / "system.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return found if found.alive else None


def remove(state: Path) -> None:
    """Forget the running system."""
    (state / "system.json").unlink(missing_ok=True)
