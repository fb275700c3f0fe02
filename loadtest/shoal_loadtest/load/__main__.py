"""`python -m shoal_loadtest.load`: a load generator, told what to do on standard input, which it follows to its end."""

import asyncio
import contextlib
import gc
import logging
import sys
from collections.abc import Callable
from typing import Final

import msgspec
import uvloop

from shoal.bus.ending import end
from shoal.bus.jetstream import JetStreamBus
from shoal.bus.protocol import BusError
from shoal.runtime.cluster import cells_of
from shoal.turns import take_turns
from shoal.wire.quantities import BadValueError
from shoal_loadtest.load.arrivals import Split
from shoal_loadtest.load.generator import Generator
from shoal_loadtest.load.words import Begin, Connected, Cut, Finish, Go, Said, Told, Trouble
from shoal_loadtest.scenario import reading

_PULSE_S: Final = 1.0
_LINE_BYTES: Final = 16 * 1024**2


def _sayer() -> Callable[[Said], None]:
    encoder = msgspec.json.Encoder()

    def say(word: Said) -> None:
        sys.stdout.buffer.write(encoder.encode(word) + b"\n")
        sys.stdout.buffer.flush()

    return say


class _Aloud(logging.Handler):
    """Says what the library logs, such as a broker that went away, as troubles."""

    def __init__(self, say: Callable[[Said], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Say it."""
        self._say(Trouble(record.getMessage()))


async def _words() -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=_LINE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def _pulses(generator: Generator) -> None:
    while True:
        await asyncio.sleep(_PULSE_S)
        generator.pulse()


async def _main() -> None:
    say = _sayer()
    logging.getLogger("shoal").addHandler(_Aloud(say))
    decoder = msgspec.json.Decoder(Told)
    lines = await _words()
    begin = decoder.decode(await lines.readline())
    assert isinstance(begin, Begin)
    scenario = reading.scenario(begin.document, begin.scale)
    try:
        bus = await JetStreamBus.connect(begin.url, name=f"shoal-loadtest-{begin.part}")
    except BusError as error:
        say(Trouble(str(error), fatal=True))
        return
    try:
        cells = await cells_of(bus)
        if cells is None:
            say(Trouble("the broker answers, but no cluster was ever set up there", fatal=True))
            return
        run = f"{begin.run}-{begin.part}"  # each is a trainer of its own, with its own ids and its own readers
        generator = Generator(bus, cells, scenario, run, Split(begin.part, begin.of), say)
        await generator.open()
        # What is there now stays; what comes is mostly short-lived messages, which need no collector.
        gc.freeze()
        gc.set_threshold(100_000, 50, 100)
        say(Connected(cells))
        await _follow(lines, decoder, generator, say)
    finally:
        with contextlib.suppress(BusError):
            await bus.close()


async def _follow(
    lines: asyncio.StreamReader,
    decoder: "msgspec.json.Decoder[Told]",
    generator: Generator,
    say: Callable[[Said], None],
) -> None:
    pulses = asyncio.create_task(_pulses(generator), name="pulses")
    turns = asyncio.create_task(take_turns(), name="turns")
    work: asyncio.Task[None] | None = None

    def ended(task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            say(Trouble(f"the load generator failed: {error!r}", fatal=True))

    try:
        while line := await lines.readline():
            match decoder.decode(line):
                case Go() as go:
                    work = asyncio.create_task(generator.phase(go), name="phase")
                case Cut():
                    generator.cutting.now()
                    continue
                case Finish():
                    work = asyncio.create_task(generator.finish(), name="finish")
                case Begin():
                    raise AssertionError("it began already")
            work.add_done_callback(ended)
    finally:
        await end(pulses, turns, *([work] if work is not None else []))
        await generator.close()


def main() -> None:
    """Run until standard input ends."""
    try:
        uvloop.run(_main())
    except BadValueError as error:
        _sayer()(Trouble(str(error), fatal=True))


if __name__ == "__main__":
    main()
