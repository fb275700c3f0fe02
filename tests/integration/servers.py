"""Brokers that a test configures itself."""

import asyncio
import contextlib
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from shoal.broker.embedded import find_server, free_ports
from shoal.bus.jetstream import JetStreamBus
from shoal.bus.protocol import UnreachableError


class Server(NamedTuple):
    """One that runs."""

    port: int
    process: "subprocess.Popen[bytes]"


@contextlib.asynccontextmanager
async def serving(
    where: Path, config: str, *, user: str = "", tls: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    """A broker with this configuration, in `nats.conf` there, that has answered whoever dials so; `user` ends in @."""
    (port,) = free_ports(1)
    file = where / "nats.conf"
    file.write_text(f'host: "127.0.0.1"\nport: {port}\n{config}')
    process = subprocess.Popen([find_server(), "-c", file], stderr=subprocess.DEVNULL)
    try:
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(UnreachableError):
                    url = f"{'tls' if tls else 'nats'}://{user}127.0.0.1:{port}"
                    await (await JetStreamBus.connect(url, tls=tls)).close()
                    break
                await asyncio.sleep(0.05)
        yield Server(port, process)
    finally:
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, 30)
        finally:  # one that does not end fails the test, and is not left
            process.kill()
            process.wait()
