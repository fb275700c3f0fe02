"""One peer in its own process: started, asked, measured, and ended with everything it started."""

import json
import os
import secrets
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import shoal_loadtest
from shoal_loadtest.peers import processes

START_S: Final = 180.0
STOP_S: Final = 60.0
_PACKAGE: Final = Path(shoal_loadtest.__file__).parent


class PeerFailed(Exception):
    """A peer did not do what it was asked; the text says what it did instead."""


class Worker:
    """A peer's process. As a context manager it leaves no process and no file.

    `line` is its command without its last argument, which is a directory of its own. `alone`: nothing but the worker
    is on its path, for environments that have nothing of Shoal.
    """

    def __init__(
        self, line: Sequence[str], *, alone: bool = True, environment: dict[str, str] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self._line = [*line]
        self._arguments = [*arguments]
        self._alone = alone
        self._environment = environment or {}
        self._mark = secrets.token_hex(8)
        self._place = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self._heard = b""

    def __enter__(self) -> "Worker":
        self._place = Path(tempfile.mkdtemp(prefix="peer-"))
        own = self._place / "own"
        own.mkdir()
        path = self._place / "path"
        path.mkdir()
        (path / _PACKAGE.name).symlink_to(_PACKAGE)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SHOAL_", "RAY_"))}
        environment = {
            **kept,
            "PYTHONPATH": str(path) if self._alone else os.pathsep.join((str(path), *_python_path())),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(self._place),
            processes.MARK: self._mark,
            **self._environment,
        }
        with (self._place / "words").open("wb") as words:
            self._process = subprocess.Popen(
                [*self._line, str(own), *self._arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words,
                env=environment, cwd=self._place, start_new_session=True,
            )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        processes.end_all(self._mark)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with_broken_pipe_closed(pipe)
        self._process.wait()
        shutil.rmtree(self._place, ignore_errors=True)

    def ask(self, within_s: float, **asked: Any) -> dict[str, Any]:
        """Ask, and return the answer. Raises PeerFailed for an error, an end, or silence."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(asked).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise PeerFailed(self._ended()) from None
        line = self._line_within(within_s, str(asked["do"]))
        try:
            told = json.loads(line)
        except ValueError:
            raise PeerFailed(f"it answered {line[:80]!r}, which is no JSON") from None
        if not isinstance(told, dict) or "error" in told:
            raise PeerFailed(str(told.get("error")) if isinstance(told, dict) else f"it answered {told}")
        return told

    def _line_within(self, seconds: float, what: str) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        until = time.monotonic() + seconds
        while b"\n" not in self._heard:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise PeerFailed(f"no answer to {what} within {seconds:g} s")
            piece = os.read(self._process.stdout.fileno(), 65_536)
            if not piece:
                raise PeerFailed(self._ended())
            self._heard += piece
        line, _, self._heard = self._heard.partition(b"\n")
        return line

    def _ended(self) -> str:
        assert self._process is not None
        try:
            status: int | str = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            status = "unknown"
        words = (self._place / "words").read_text(errors="replace").strip().splitlines()
        return f"it ended with status {status}: {words[-1].strip() if words else 'it said nothing'}"

    def memory_mib(self) -> float:
        """Return the memory of all its processes."""
        return processes.pss_mib(processes.marked(self._mark))

    def count(self) -> int:
        """Return how many processes it has."""
        return len(processes.marked(self._mark))


def with_broken_pipe_closed(pipe: Any) -> None:
    """Close a pipe whose other end may be gone."""
    try:
        pipe.close()
    except BrokenPipeError:
        pass


def _python_path() -> list[str]:
    return [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
