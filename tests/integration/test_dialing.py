"""Which of several brokers a client finds, and what it says where none lets it in; with real servers."""

import asyncio
import contextlib
import gc
import logging
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlparse

import pytest
from nats.aio.transport import TcpTransport

from architecture.project import ROOT
from integration.servers import serving
from shoal.broker import EmbeddedBroker
from shoal.bus.jetstream import JetStreamBus
from shoal.bus.protocol import NotAllowedError, UnreachableError
from shoal.bus.tls import tls_from_environment
from shoal.bus.transport import DirectTransport
from unit.test_tls import environment

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]


@pytest.fixture(autouse=True)
def _in_the_order_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """nats-py tries servers in any order; here the one that is of no use comes first."""
    monkeypatch.setattr("nats.aio.client.shuffle", lambda servers: None)


@pytest.fixture
def hung() -> Iterator[int]:
    """The port of a server that takes connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        yield listener.getsockname()[1]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities that do not know each other: `ours` and `theirs`."""
    where = tmp_path_factory.mktemp("certificates")
    for name in ("ours", "theirs"):
        script = ["sh", str(ROOT / "infra/nats/certificates.sh"), str(where / name), "broker"]
        subprocess.run(script, check=True, timeout=60, stdout=subprocess.DEVNULL)
    return where


@contextlib.asynccontextmanager
async def encrypted(own: Path, certificates: Path) -> AsyncIterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """A broker with a certificate of this authority, which wants to see one of the same."""
    own.mkdir()
    config = (
        f'jetstream {{ store_dir: "{own / "store"}" }}\n'
        f'tls {{ cert_file: "{certificates / "broker.pem"}", key_file: "{certificates / "broker-key.pem"}",'
        f' ca_file: "{certificates / "ca.pem"}", verify: true }}\n'
    )
    async with serving(own, config, tls=tls_from_environment(environment(certificates))) as server:
        yield f"tls://127.0.0.1:{server.port}", server.process


async def test_a_broker_that_hangs_leaves_the_others_their_time(broker: EmbeddedBroker, hung: int) -> None:
    for _ in range(2):
        bus = await JetStreamBus.connect(f"nats://127.0.0.1:{hung},{broker.url}", connect_timeout=2)
        assert await bus.streams() is not None
        await bus.close()


async def test_who_closes_waits_for_no_peer_that_hangs(hung: int) -> None:
    transport = DirectTransport(lambda *_: False)
    await transport.connect(urlparse(f"nats://127.0.0.1:{hung}"), 1000, 5)
    transport.write(bytes(64 * 1024**2))  # type: ignore[no-untyped-call]  # nats-py's say no types
    transport.close()  # type: ignore[no-untyped-call]  # as above
    await asyncio.wait_for(transport.wait_closed(), 20)


async def test_who_closes_hears_of_a_handshake_that_failed() -> None:
    async def no_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"this is no TLS\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(no_tls, "127.0.0.1", 0)
    address = urlparse(f"tls://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    transport = DirectTransport(lambda *_: False)
    async with server:
        await transport.connect(address, 1000, 5)
        with pytest.raises(ssl.SSLError):
            await transport.connect_tls(address, ssl.create_default_context(), 1000, 5)
        transport.close()  # type: ignore[no-untyped-call]  # nats-py's say no types
        with pytest.raises(ssl.SSLError):  # without our bound
            await asyncio.wait_for(TcpTransport.wait_closed(transport), 20)  # type: ignore[no-untyped-call]  # nats-py's says no types


async def test_several_that_fail_are_all_told_of(hung: int) -> None:
    with pytest.raises(UnreachableError) as told:
        await JetStreamBus.connect(f"nats://127.0.0.1:{hung},nats://127.0.0.1:1", connect_timeout=1)
    assert "no answer within 0.5 s" in str(told.value)
    assert "127.0.0.1', 1" in str(told.value)


async def test_a_broker_with_a_bad_certificate_does_not_keep_from_the_others(
    tmp_path: Path, certificates: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tls = tls_from_environment(environment(certificates / "ours"))
    async with (
        encrypted(tmp_path / "1", certificates / "theirs") as (bad, _),
        encrypted(tmp_path / "2", certificates / "ours") as (good, server),
    ):
        bus = await JetStreamBus.connect(f"{bad},{good}", tls=tls)
        assert await bus.streams() is not None
        server.terminate()  # it says goodbye, which TLS cannot answer
        async with asyncio.timeout(20):
            while bus._connection.ready:
                await asyncio.sleep(0.01)
        await bus.close()
        with pytest.raises(UnreachableError, match=r"CERTIFICATE_VERIFY_FAILED.*see that its brokers run") as told:
            await JetStreamBus.connect(bad, tls=tls)
        assert "shoal up" not in str(told.value)
    gc.collect()
    await asyncio.sleep(0)
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.parametrize("whose", ["", "theirs"])
async def test_a_certificate_that_the_broker_does_not_accept(
    tmp_path: Path, certificates: Path, whose: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    environ = {"SHOAL_TLS_CA": str(certificates / "ours/ca.pem")}
    if whose:
        environ = {**environment(certificates / whose), **environ}
    async with encrypted(tmp_path / "1", certificates / "ours") as (url, _):
        for _ in range(5):  # whether its refusal can be read is chance
            with pytest.raises(NotAllowedError, match=r"certificate.*SHOAL_TLS_CERT and SHOAL_TLS_KEY") as told:
                await JetStreamBus.connect(url, tls=tls_from_environment(environ))
            assert "shoal up" not in str(told.value)
        command = [sys.executable, "-m", "shoal.cli", "nodes"]
        done = await asyncio.to_thread(
            subprocess.run, command, env={**os.environ, **environ, "SHOAL_URL": url}, capture_output=True, text=True,
            timeout=40,
        )  # fmt: skip
    assert done.returncode == 24
    assert "certificate" in done.stderr
    assert "shoal up" not in done.stderr


@pytest.mark.parametrize("says_why", [True, False])
async def test_a_connection_that_ends_when_tls_is_up(certificates: Path, says_why: bool) -> None:
    """With a server of our own, whose refusal certainly comes as an alert, or certainly not."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates / "ours/ca.pem")
    context.load_cert_chain(certificates / "ours/broker.pem", certificates / "ours/broker-key.pem")
    context.verify_mode = ssl.CERT_REQUIRED if says_why else ssl.CERT_NONE

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.settimeout(20)
        with connection:
            connection.sendall(b'INFO {"tls_required": true, "tls_verify": true, "max_payload": 1000}\r\n')
            with contextlib.suppress(OSError), context.wrap_socket(connection.dup(), server_side=True) as secret:
                secret.recv(10)
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1000):
                    pass

    tls = tls_from_environment({"SHOAL_TLS_CA": str(certificates / "ours/ca.pem")})
    says = r"\(tlsv13 alert certificate required\)" if says_why else "it ended the connection when TLS was up"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)  # a client that fails before it dials leaves no thread that waits for it
        answering = asyncio.create_task(asyncio.to_thread(serve, listener))
        try:
            with pytest.raises(NotAllowedError, match=says):
                await JetStreamBus.connect(f"tls://127.0.0.1:{listener.getsockname()[1]}", tls=tls)
        finally:
            await answering
