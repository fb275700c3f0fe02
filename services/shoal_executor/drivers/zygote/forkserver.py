"""One template's fork server, seen from the driver: launched, told, heard, ended."""

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from shoal_executor.drivers.protocol import DriverError
from shoal_executor.drivers.zygote import frames

_UP_S: Final = 30.0


class ForkServer:
    """The process behind `server`. `gone` is called once, when it has ended or is being ended."""

    def __init__(self, heard: Callable[[frames.Event], None], gone: Callable[["ForkServer"], None]) -> None:
        self._heard = heard
        self._gone = gone
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._control, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        self._control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._process: asyncio.subprocess.Process | None = None
        self.alive = True

    async def launch(self, root: Path, usr: str, scratch: Path, base: int, diary: Path) -> None:
        """Start it on a template's root; returns when it forks. Raises DriverError, having left nothing behind.

        `base` is the first of its uids outside, -1 without root; what it has to complain of goes into `diary`.
        """
        asyncio.get_running_loop().add_reader(self._control, self._hear)
        try:
            with diary.open("wb") as words:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, "-I", "-m", "shoal_executor.drivers.zygote.server",
                    str(root), usr, str(scratch), str(base), str(self._theirs.fileno()),
                    pass_fds=[self._theirs.fileno()], stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL, stderr=words, env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
                    cwd="/", start_new_session=True,
                )  # fmt: skip
            self._theirs.close()
            async with asyncio.timeout(_UP_S):
                await self._ready
        except (TimeoutError, DriverError, OSError) as error:
            await self.end()
            raise DriverError(str(error) or _last_line(diary)) from None
        except asyncio.CancelledError:
            await self.end()
            raise

    def fork(self, order: frames.Order, descriptors: list[int]) -> None:
        """Tell it to fork a sandbox. Raises OSError when it is gone, or has too much to do."""
        socket.send_fds(self._control, [frames.encode(order)], descriptors)

    def kill(self, name: str) -> None:
        """Tell it to kill a sandbox's first process; may be lost when it has too much to do."""
        if self.alive:
            with contextlib.suppress(OSError):
                self._control.send(frames.encode(frames.Order(name, kill=True)))

    async def end(self) -> None:
        """Kill it, which takes all its sandboxes along, and wait until it is gone. May come twice."""
        if self._process is not None:
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
            await self._process.wait()
        self._ended()
        self._control.close()
        self._theirs.close()

    def _hear(self) -> None:
        try:
            data = self._control.recv(65_536)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._ended()
            return
        event = frames.events.decode(data)
        if event.kind == "ready":
            self._ready.set_result(None)
        elif event.kind == "broken":
            self._ready.set_exception(DriverError(event.detail))
        else:
            self._heard(event)

    def _ended(self) -> None:
        if not self.alive:
            return
        self.alive = False
        asyncio.get_running_loop().remove_reader(self._control)
        if not self._ready.done():
            self._ready.set_exception(DriverError(""))
            self._ready.exception()  # whoever launched it may have given up before
        self._gone(self)


def _last_line(diary: Path) -> str:
    lines = diary.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it did not answer"
