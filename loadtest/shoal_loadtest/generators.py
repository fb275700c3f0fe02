"""The load generators' processes, seen from whoever measures."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from shoal.bus.ending import end
from shoal.cli.exits import Exit, Failure
from shoal.cli.processes import tied
from shoal_loadtest.load.words import (
    Begin,
    Connected,
    Cut,
    Finish,
    Finished,
    Go,
    PhaseEnded,
    Pulse,
    Said,
    Told,
    Trouble,
)

_LINE_BYTES: Final = 64 * 1024**2
_STOP_S: Final = 15.0
W = TypeVar("W", Connected, PhaseEnded, Finished)


class Generators:
    """So many processes that ask together. `hear` takes each pulse, with the number of its process; `tell` troubles."""

    def __init__(self, count: int, hear: Callable[[int, Pulse], None], tell: Callable[[str], None]) -> None:
        self._count = count
        self._hear = hear
        self._tell = tell
        self._processes: list[asyncio.subprocess.Process] = []
        self._listening: list[asyncio.Task[None]] = []
        self._words: list[asyncio.Queue[Said]] = []
        self._heard: dict[int, Said] = {}
        self._encoder = msgspec.json.Encoder()

    @property
    def pids(self) -> dict[str, int]:
        """Each process by name."""
        return {f"generator-{number}": process.pid for number, process in enumerate(self._processes, 1)}

    async def start(self, url: str, run: str, document: dict[str, Any], scale: float) -> None:
        """Start them and wait until all are connected. Raises Failure."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
        environment |= {name: value for name, value in os.environ.items() if name.startswith("SHOAL_TLS_")}
        for number in range(self._count):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "shoal_loadtest.load",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=_LINE_BYTES, env=environment,
                start_new_session=True, preexec_fn=tied(signal.SIGKILL),
            )  # fmt: skip
            self._processes.append(process)
            self._words.append(asyncio.Queue())
            self._listening.append(asyncio.create_task(self._listen(number), name=f"listen to generator {number}"))
            self._send(number, Begin(url, run, document, scale, number, self._count))
        await self._all(Connected)

    async def go(self, go: Go) -> list[PhaseEnded]:
        """Have all go through a phase; returns what each says of it. Raises Failure."""
        for number in range(self._count):
            self._send(number, go)
        return await self._all(PhaseEnded)

    def cut(self) -> None:
        """Let all end the phase they are in."""
        for number in range(self._count):
            with contextlib.suppress(OSError):
                self._send(number, Cut())

    async def ended(self) -> list[PhaseEnded]:
        """Wait for the end of a phase that was cut. Raises Failure."""
        return await self._all(PhaseEnded)

    async def finish(self) -> list[Finished]:
        """Have everything given back and concluded. Raises Failure."""
        for number in range(self._count):
            self._send(number, Finish())
        return await self._all(Finished)

    async def stop(self) -> None:
        """End all processes. Idempotent."""
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()
        for process in self._processes:
            try:
                async with asyncio.timeout(_STOP_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        await end(*self._listening)
        self._processes.clear()
        self._listening.clear()

    def _send(self, number: int, word: Told) -> None:
        stdin = self._processes[number].stdin
        assert stdin is not None
        stdin.write(self._encoder.encode(word) + b"\n")

    async def _listen(self, number: int) -> None:
        end_of = "a load generator ended by itself"
        try:
            await self._hear_all(number)
        except Exception as error:
            end_of = f"what a load generator said could not be used: {error!r}"
        self._words[number].put_nowait(Trouble(end_of, fatal=True))

    async def _hear_all(self, number: int) -> None:
        stdout = self._processes[number].stdout
        assert stdout is not None
        decoder = msgspec.json.Decoder(Said)
        while line := await stdout.readline():
            word = decoder.decode(line)
            match word:
                case Pulse():
                    self._hear(number, word)
                case Trouble(text=text, fatal=False):
                    self._tell(text)
                case _:
                    self._words[number].put_nowait(word)

    async def _all(self, kind: type[W]) -> list[W]:
        found: list[W] = []
        for number, queue in enumerate(self._words):
            if number not in self._heard:
                self._heard[number] = await queue.get()
            word = self._heard[number]
            if isinstance(word, Trouble):
                raise Failure(Exit.INFRASTRUCTURE, word.text)
            assert isinstance(word, kind)
            found.append(word)
        self._heard.clear()  # only now: whoever is cancelled while it waits for others may ask again
        return found
