"""Keeps a service running: starts it, starts it again when it dies, and stops it."""

import asyncio
import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from shoal.cli.exits import Exit, Failure
from shoal.cli.processes import ended, how_it_ended, spawn

_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 5.0
_WELL_AFTER_S: Final = 5.0
_LAST_LINES: Final = 5
_LAST_BYTES: Final = 8192

Tell = Callable[[str], None]


class Child:
    """One service as a process of its own. `changed` is called whenever its pid or state does."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        log: Path,
        *,
        tell: Tell,
        changed: Callable[[], None],
        death_signal: int = signal.SIGKILL,
    ) -> None:
        self.name = name
        self.argv = list(argv)
        self.log = log
        self.state = "stopped"
        self.restarts = 0
        self.failure: asyncio.Future[Failure] = asyncio.get_running_loop().create_future()
        """Set when it ends before `settled`."""
        self._tell = tell
        self._changed = changed
        self._death_signal = death_signal
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._settled = False

    @property
    def pid(self) -> int | None:
        """Its process, while it runs."""
        return self._process.pid if self._process is not None and self.state == "running" else None

    def start(self) -> None:
        """Start it and keep it running. Raises Failure."""
        self._spawn()
        self._keeper = asyncio.create_task(self._keep(), name=f"keep {self.name}")

    def settled(self) -> None:
        """From now on its death is a reason to start it again, not to give up."""
        self._settled = True

    def _spawn(self) -> None:
        # Called in the loop's thread, whose end would end the child.
        try:
            self._process = spawn(self.argv, self.log, self._death_signal)
        except (OSError, subprocess.SubprocessError) as error:
            raise Failure(Exit.START_FAILED, f"{self.name} cannot be started: {error}") from error
        self.state = "running"
        self._changed()

    async def _keep(self) -> None:
        pause = _FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            assert self._process is not None
            await ended(self._process.pid)
            status = self._process.wait()
            self.state = "restarting"
            self._changed()
            if not self._settled:
                if not self.failure.done():
                    self.failure.set_result(self._cannot_start(status))
                return
            if time.monotonic() - began > _WELL_AFTER_S:
                pause = _FIRST_PAUSE_S
            pid = self._process.pid
            self._tell(f"{self.name} (pid {pid}) {how_it_ended(status)}; starting it again in {pause:g} s")
            while True:
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_S)
                try:
                    self._spawn()
                    break
                except Failure as error:
                    self._tell(f"{error}; trying again in {pause:g} s")
            self.restarts += 1
            self._changed()

    def _cannot_start(self, status: int) -> Failure:
        words = " | ".join(last_lines(self.log)) or "it said nothing"
        return Failure(
            Exit.START_FAILED, f"{self.name} cannot start: it {how_it_ended(status)}: {words}; its log is {self.log}"
        )

    async def stop(self, patience_s: float) -> None:
        """Ask it to stop; kill it when it has not after so many seconds. Idempotent."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                await asyncio.wait_for(ended(process.pid), patience_s)
            except TimeoutError:
                self._tell(f"{self.name} (pid {process.pid}) does not stop; killing it")
                process.kill()
                await ended(process.pid)
            process.wait()
        self.state = "stopped"
        with contextlib.suppress(Failure):
            self._changed()


def last_lines(log: Path, most: int = _LAST_LINES) -> list[str]:
    """Return a log's last lines for a person: of a JSON line the event and the error."""
    try:
        with log.open("rb") as file:
            file.seek(max(file.seek(0, 2) - _LAST_BYTES, 0))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return [_readable(line) for line in lines if line.strip()][-most:]


def _readable(line: str) -> str:
    try:
        entry = json.loads(line)
    except ValueError:
        return line.strip()
    if not isinstance(entry, dict):
        return line.strip()
    words = [str(entry[key]).strip() for key in ("event", "error") if entry.get(key)]
    if entry.get("exception"):
        words.append(str(entry["exception"]).strip().splitlines()[-1])
    return ": ".join(words) or line.strip()
