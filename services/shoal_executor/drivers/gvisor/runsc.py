"""The program runsc: which release it is, what that can do, and what it is called with."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from shoal_executor.drivers.protocol import DriverError

PLATFORMS: Final = ("systrap", "ptrace")
"""In the order they are tried. kvm is used only where it is asked for: on some machines it hangs."""
_ASK_S: Final = 20.0
_GRACE_S: Final = 60.0
"""How long any call may take."""
_VERSION: Final = re.compile(r"runsc version (\S*?)(\d{8})\b")
_FILTERS: Final = "--oci-seccomp"
_WHERE_OFFERED: Final = ("--overlay2=none", _FILTERS)
"""Flags that not every release has."""
_STATX: Final = 20230000
"""Releases before 2023 refuse the statx that `ls` and `stat` of newer images make."""


class Runsc:
    """runsc with the flags this driver gives it; `root` is where it keeps what it knows of containers."""

    def __init__(self, program: str, release: int, platforms: tuple[str, ...], offered: tuple[str, ...]) -> None:
        self.program = program
        self.release = release
        self.platforms = platforms
        self._offered = offered
        self.platform = platforms[0] if platforms else ""
        self.root = Path()

    @property
    def lacks(self) -> tuple[str, ...]:
        """What this release is known not to do, in words for people."""
        found = []
        if self.release < _STATX:
            found.append(f"statx: ls and stat of newer images fail in runsc of {self.release} (2023 and later have it)")
        if _FILTERS not in self._offered:
            found.append(
                f"runsc of {self.release} has no {_FILTERS}: what runs in a sandbox can end it as if it was lost"
            )
        return tuple(found)

    def line(self, *words: str, panics: Path | None = None) -> list[str]:
        """Return the whole command line. `panics`: where to write what a container's kernel fails of."""
        always = [f"--root={self.root}", f"--platform={self.platform}", "--network=none", "--ignore-cgroups"]
        told = [f"--panic-log={panics}"] if panics is not None else []
        return [self.program, *always, *self._offered, "--file-access-mounts=exclusive", *told, *words]

    async def call(self, *words: str) -> None:
        """Call it, and wait. Raises DriverError with the last it said."""
        code, said = await _ask(self.line(*words), _GRACE_S)
        if code:
            raise DriverError(f"runsc {words[0]} failed: {last_word(said)}")


async def find() -> Runsc:
    """Return the machine's runsc. Raises DriverError where there is none, or one that is of no use."""
    program = shutil.which("runsc")
    if program is None:
        raise DriverError(
            "runsc is not installed: apt install runsc, or see https://gvisor.dev/docs/user_guide/install"
        )
    code, said = await _ask([program, "--version"], _ASK_S)
    version = _VERSION.search(said)
    if code or version is None:
        raise DriverError(f"runsc --version says nothing that is understood: {last_word(said)}")
    _, flags = await _ask([program, "flags"], _ASK_S)
    offered = re.search(r"-platform string\s*(.*)", flags)
    platforms = tuple(name for name in PLATFORMS if offered and name in offered[1])
    wanted = [flag for flag in _WHERE_OFFERED if flag.partition("=")[0][1:] in flags]
    return Runsc(program, int(version[2]), platforms or ("ptrace",), tuple(wanted))


def fault(said: str) -> str:
    """Return the line that says what a Go program failed of, of what its runtime wrote; nothing if it did not."""
    return next((line.strip()[:500] for line in said.splitlines() if line.startswith(("panic: ", "fatal error: "))), "")


def last_word(said: str) -> str:
    """Return the line that says why, of what runsc wrote."""
    lines = [line for line in said.strip().splitlines() if line.strip()]
    for line in reversed(lines):
        if "error" in line.lower() or "panic" in line or "FATAL" in line:
            return line.strip()[-500:]
    return lines[-1].strip()[-500:] if lines else "it said nothing"


async def _ask(line: Sequence[str], patience_s: float) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *line, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env={"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")}, cwd="/",
        start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(patience_s):
            said, _ = await process.communicate()
    except TimeoutError:
        raise DriverError(f"runsc gave no answer within {patience_s:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return process.returncode or 0, said.decode(errors="replace")
