"""The configurations in `infra/nats`: the server takes them, and three servers with TLS do what they say."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from architecture.project import ROOT
from shoal.broker import EmbeddedBroker
from shoal.broker.embedded import find_server, free_ports
from shoal.bus.jetstream import JetStreamBus
from shoal.bus.protocol import UnreachableError
from shoal.bus.tls import tls_from_environment
from shoal.wire import streams

pytestmark = pytest.mark.broker
NATS = ROOT / "infra/nats"
BROKERS = ("broker-1", "broker-2", "broker-3")


def certificates(where: Path) -> None:
    subprocess.run(["sh", NATS / "certificates.sh", where, *BROKERS], check=True, timeout=60, stdout=subprocess.DEVNULL)


def put(text: str, changes: dict[str, str]) -> str:
    """Replace what is of the test's machine; each replaced text must be there."""
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


@dataclass(frozen=True)
class Trial:
    """Three configurations as they are shipped, but for addresses, ports and paths of this machine."""

    where: Path
    ports: list[int]

    @property
    def url(self) -> str:
        return ",".join(f"tls://localhost:{port}" for port in self.ports)

    @property
    def environment(self) -> dict[str, str]:
        files = {"CA": "ca.pem", "CERT": "client.pem", "KEY": "client-key.pem"}
        return {f"SHOAL_TLS_{name}": str(self.where / "tls" / file) for name, file in files.items()}

    def config(self, number: int) -> Path:
        return self.where / str(number) / f"cluster-{number}.conf"


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    certificates(tmp_path / "tls")
    ports = free_ports(9)
    clients, routes, monitors = ports[:3], ports[3:6], ports[6:]
    common = (NATS / "cluster.conf").read_text()
    for number, broker in enumerate(BROKERS, 1):
        common = put(common, {f"tls://{broker}:6222": f"tls://localhost:{routes[number - 1]}"})
    for number, broker in enumerate(BROKERS, 1):
        own = tmp_path / str(number)
        (own / "tls").mkdir(parents=True)
        for suffix in (".pem", "-key.pem"):
            shutil.copy(tmp_path / "tls" / f"{broker}{suffix}", own / "tls" / f"broker{suffix}")
        shutil.copy(tmp_path / "tls/ca.pem", own / "tls")
        shutil.copy(NATS / f"cluster-{number}.conf", own)
        changes = {
            "/etc/shoal/tls": str(own / "tls"),
            "/var/lib/shoal-broker": str(own / "store"),
            "host: 0.0.0.0": "host: 127.0.0.1",
            "port: 4222": f"port: {clients[number - 1]}",
            "port: 6222": f"port: {routes[number - 1]}",
            "127.0.0.1:8222": f"127.0.0.1:{monitors[number - 1]}",
        }
        (own / "cluster.conf").write_text(put(common, changes))
    return Trial(tmp_path, clients)


def check(config: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([find_server(), "-t", "-c", config], capture_output=True, text=True, timeout=30)


def test_the_server_takes_every_configuration(trial: Trial) -> None:
    for config in (NATS / "single.conf", *(trial.config(number) for number in (1, 2, 3))):
        done = check(config)
        assert done.returncode == 0, done.stderr
        assert "is valid" in done.stdout + done.stderr


def test_the_server_would_refuse_a_wrong_one(trial: Trial) -> None:
    config = trial.config(1).parent / "cluster.conf"
    config.write_text(config.read_text().replace("sync_interval", "sync_interwal"))
    assert check(trial.config(1)).returncode != 0


def test_every_configuration_here_is_tried() -> None:
    found = {path.name for path in NATS.glob("*.conf")}
    assert found == {"single.conf", "cluster.conf", *(f"cluster-{number}.conf" for number in (1, 2, 3))}
    names = [re.findall(r'^server_name: "(.*)"$', (NATS / name).read_text(), re.M) for name in sorted(found)]
    assert sorted(name for each in names for name in each) == ["shoal-1", "shoal-1", "shoal-2", "shoal-3"]
    for name in ("single.conf", "cluster.conf"):
        assert re.search(r"^  sync_interval: always$", (NATS / name).read_text(), re.M)


@contextlib.asynccontextmanager
async def running(trial: Trial) -> AsyncIterator[list["subprocess.Popen[bytes]"]]:
    servers = []
    try:
        for number in (1, 2, 3):
            with (trial.where / f"{number}.log").open("wb") as log:
                servers.append(subprocess.Popen([find_server(), "-c", trial.config(number)], stdout=log, stderr=log))
        yield servers
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            await asyncio.to_thread(server.wait, 30)


async def patiently(trial: Trial, tls: ssl.SSLContext | None = None) -> JetStreamBus:
    async with asyncio.timeout(40):
        while True:
            try:
                return await JetStreamBus.connect(trial.url, tls=tls, deadline_s=60, replicas=3)
            except UnreachableError:
                await asyncio.sleep(0.2)


async def test_three_servers_with_tls(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in trial.environment.items():
        monkeypatch.setenv(name, value)
    async with running(trial) as servers:
        bus = await patiently(trial)
        stream = streams.Stream("TEST", ("test.>",), 3600.0, 1024**2)
        await bus.ensure([stream])
        assert (await bus.publish("test.a", b"", "one")).sequence == 1
        about = await bus._api.ask("STREAM.INFO.TEST")
        assert about["config"]["num_replicas"] == 3
        leader = int(about["cluster"]["leader"].rpartition("-")[2])
        servers[leader - 1].kill()
        assert (await bus.publish("test.a", b"", "one")).duplicate
        assert (await bus.publish("test.a", b"", "two")).sequence == 2
        await bus.close()


async def test_who_is_not_let_in(trial: Trial, tmp_path: Path) -> None:
    certificates(tmp_path / "strangers")
    theirs = {name: value.replace("/tls/", "/strangers/") for name, value in trial.environment.items()}
    no_certificate = {"SHOAL_TLS_CA": trial.environment["SHOAL_TLS_CA"]}
    wrong_certificate = {**theirs, **no_certificate}
    wrong_authority = {**trial.environment, "SHOAL_TLS_CA": theirs["SHOAL_TLS_CA"]}
    async with running(trial):
        await (await patiently(trial, tls_from_environment(trial.environment))).close()
        for environment in (no_certificate, wrong_certificate, wrong_authority):
            with pytest.raises(UnreachableError):
                await JetStreamBus.connect(trial.url, tls=tls_from_environment(environment))
        with pytest.raises(UnreachableError):
            await JetStreamBus.connect(trial.url.replace("tls://", "nats://"))
        # A client's certificate is good for clients, not to join the brokers with.
        fourth = trial.where / "4"
        shutil.copytree(trial.where / "1", fourth, ignore=shutil.ignore_patterns("store"))
        for suffix in (".pem", "-key.pem"):
            shutil.copy(trial.where / "tls" / f"client{suffix}", fourth / "tls" / f"broker{suffix}")
        client, route, monitor = free_ports(3)
        text = (fourth / "cluster.conf").read_text().replace(f"{trial.where / '1'}", f"{fourth}")
        text = re.sub(r"(?m)^port: \d+$", f"port: {client}", text)
        text = re.sub(r"(?m)^  port: \d+$", f"  port: {route}", text)
        text = re.sub(r'http: "127.0.0.1:\d+"', f'http: "127.0.0.1:{monitor}"', text)
        (fourth / "cluster.conf").write_text(text)
        config = fourth / "cluster-1.conf"
        config.write_text(config.read_text().replace("shoal-1", "shoal-4"))
        with (trial.where / "4.log").open("wb") as log:
            intruder = subprocess.Popen([find_server(), "-c", config], stdout=log, stderr=log)
        try:
            async with asyncio.timeout(20):
                while "Route Error 'Authorization Violation'" not in log_of(trial, 4):
                    await asyncio.sleep(0.1)
            assert intruder.poll() is None
            refused = [number for number in (1, 2, 3) if "authentication error" in log_of(trial, number)]
            assert refused
            assert "shoal-4" not in "".join(log_of(trial, number) for number in (1, 2, 3))
        finally:
            intruder.terminate()
            await asyncio.to_thread(intruder.wait, 30)


def log_of(trial: Trial, number: int) -> str:
    return (trial.where / f"{number}.log").read_text(errors="replace")


async def test_tls_is_insisted_on(broker: EmbeddedBroker) -> None:
    with pytest.raises(UnreachableError, match="does not speak TLS"):
        await JetStreamBus.connect(broker.url.replace("nats://", "tls://"))


async def test_services_and_the_command_use_it_too(trial: Trial) -> None:
    environment = {**os.environ, **trial.environment, "SHOAL_URL": trial.url, "SHOAL_STREAM_REPLICAS": "3"}
    async with running(trial):
        with (trial.where / "placement.log").open("wb") as log:
            placement = subprocess.Popen(
                [sys.executable, "-m", "shoal_placement"], env=environment, stdout=log, stderr=log
            )
        try:
            bus = await patiently(trial, tls_from_environment(trial.environment))
            async with asyncio.timeout(40):
                while not await bus.get(streams.CLUSTER_BUCKET, streams.CELLS_KEY):
                    await asyncio.sleep(0.1)
            replicas = await bus.get(streams.CLUSTER_BUCKET, streams.REPLICAS_KEY)
            assert replicas is not None
            assert replicas.value == b"3"
            await bus.close()
            nodes = await asyncio.to_thread(
                subprocess.run, [sys.executable, "-m", "shoal.cli", "nodes"], env=environment, capture_output=True,
                text=True, timeout=40,
            )  # fmt: skip
            assert nodes.returncode == 0, nodes.stderr
        finally:
            placement.send_signal(signal.SIGTERM)
            status = await asyncio.to_thread(placement.wait, 30)
        assert status == 0
        wrong = {**environment, "SHOAL_TLS_CA": str(trial.where / "absent.pem")}
        failed = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "shoal_placement"],
            env=wrong,
            capture_output=True,
            text=True,
            timeout=40,
        )
        assert failed.returncode == 2
        assert "SHOAL_TLS_CA" in failed.stdout + failed.stderr
