"""A service's process: connect, set the cluster up, serve, and stop cleanly on SIGTERM or SIGINT."""

import asyncio
import contextlib
import gc
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import uvloop

from shoal.bus.address import shown
from shoal.bus.jetstream import JetStreamBus
from shoal.bus.protocol import Bus, BusError, UnreachableError
from shoal.runtime import lean  # before the others, which import structlog
from shoal.runtime.checkpoints import StateGoneError
from shoal.runtime.cluster import ensure_cluster
from shoal.runtime.logs import set_up_logs
from shoal.runtime.options import Settings
from shoal.turns import take_turns
from shoal.wire.quantities import BadValueError

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNREACHABLE: Final = 69  # EX_UNAVAILABLE
INBOX_OF_SERVICES: Final = "_INBOX_SHOAL"
"""Not that of clients: some of what services are answered, such as keys, is not for tenants to hear."""
_PAUSE_S: Final = 0.5
_COLLECT: Final = (50_000, 20, 100)
"""When to look for cycles. States are large and live long, messages are many, short-lived and free of cycles: with
Python's own (700, 10, 10) an executor of simulated sandboxes spends 7 % of its time looking."""

log = lean.structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Context:
    """What a service runs in. `stop` is set when it is told to end; `cells` is the cluster's number of cells."""

    bus: Bus
    cells: int
    stop: asyncio.Event
    settings: Settings


def serve(
    service: str, settings: Settings, main: Callable[[Context], Awaitable[None]], *, waits_its_turn: bool = True
) -> None:
    """Run a service until it is told to stop, then exit the process with a status that says how it went.

    `waits_its_turn`: whether it does when it is busy (`shoal.turns`).

    0: told to stop. 1: it failed. 2: it was configured wrongly. 69: no broker answered in time.
    """
    set_up_logs(service, settings.log_level)
    sys.exit(uvloop.run(_serve(service, settings, main, waits_its_turn)))


async def _serve(
    service: str, settings: Settings, main: Callable[[Context], Awaitable[None]], waits_its_turn: bool
) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        bus = await connect_patiently(settings, service, stop)
        if bus is None:
            return 0
        try:
            cells = await ensure_cluster(bus, settings.cells, settings.stream_replicas)
            gc.freeze()
            gc.set_threshold(*_COLLECT)
            turns = asyncio.create_task(take_turns() if waits_its_turn else asyncio.sleep(0), name="turns")
            try:
                await main(Context(bus, cells, stop, settings))
            finally:
                turns.cancel()
        finally:
            with contextlib.suppress(BusError):
                await bus.close()
    except UnreachableError as error:
        log.error("no broker", error=str(error))
        return EXIT_UNREACHABLE
    except BadValueError as error:
        log.error("bad configuration", error=str(error))
        return EXIT_USAGE
    except StateGoneError as error:
        log.error("its state is gone", error=str(error))
        return EXIT_FAILED
    except BusError as error:
        log.error("the broker refused", error=str(error))
        return EXIT_FAILED
    except Exception:
        log.exception("failed")
        return EXIT_FAILED
    log.info("stopped")
    return 0


async def connect_patiently(settings: Settings, name: str, stop: asyncio.Event) -> JetStreamBus | None:
    """Connect, trying again while the broker is not there yet. Returns None when told to stop before it came.

    Raises UnreachableError when patience is over, and TlsError.
    """
    url = settings.url
    until = time.monotonic() + settings.patience_s
    while not stop.is_set():
        try:
            return await JetStreamBus.connect(
                url, name=f"shoal-{name}", replicas=settings.stream_replicas, inbox=INBOX_OF_SERVICES
            )
        except UnreachableError as error:
            if time.monotonic() >= until:
                raise
            log.warning("waiting for the broker", url=shown(url), error=str(error))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), _PAUSE_S)
    return None
