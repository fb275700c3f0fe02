"""The permissions of a tenant in `infra/README.md`, with a real broker: they are enough to work, and no more."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import pytest

import shoal
from architecture.project import ROOT
from integration.servers import serving
from shoal.bus.jetstream import JetStreamBus
from shoal.bus.protocol import NotAllowedError
from shoal.runtime.cluster import ensure_cluster
from shoal.wire import streams, subjects
from shoal.wire.codec import decode
from shoal.wire.messages import PrefetchSnapshot

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]
SERVICES = ("scheduler", "placement", "snapshot", "executor")


def permissions() -> str:
    """Return the block as it is shipped, with passwords."""
    found = re.search(r"```\n(authorization \{\n.*?)```", (ROOT / "infra/README.md").read_text(), re.S)
    assert found is not None
    return found[1].replace("$SERVICES", "s").replace("$ACME", "a")


@contextlib.asynccontextmanager
async def broker(where: Path, may: str = "") -> AsyncIterator[int]:
    """A broker with these users, or those of `may`."""
    config = (
        f'pid_file: "{where / "pid"}"\n'
        f'jetstream {{ store_dir: "{where / "store"}", max_file_store: 4TB }}\n{may or permissions()}'
    )
    async with serving(where, config, user="services:s@") as server:
        yield server.port


@contextlib.asynccontextmanager
async def services(where: Path, url: str) -> AsyncIterator[None]:
    """All services, with simulated sandboxes."""
    own = {
        "SHOAL_URL": url,
        "SHOAL_EXECUTOR": "node-1",
        "SHOAL_DRIVER": "simulated",
        "SHOAL_STATE": str(where / "state"),
    }
    running = []
    try:
        for name in SERVICES:
            with (where / f"{name}.log").open("wb") as log:
                program = [sys.executable, "-m", f"shoal_{name}"]
                running.append(subprocess.Popen(program, env={**os.environ, **own}, stdout=log, stderr=log))
        yield
    finally:
        for each in running:
            each.send_signal(signal.SIGTERM)
        for each in running:
            await asyncio.to_thread(each.wait, 30)


async def test_a_tenant_can_work_and_neither_read_the_key_nor_speak_for_the_system(tmp_path: Path) -> None:
    async with broker(tmp_path) as port:
        ours, theirs = (f"nats://{who}@127.0.0.1:{port}" for who in ("services:s", "acme:a"))
        async with services(tmp_path, ours):
            bus = await JetStreamBus.connect(ours)
            async with asyncio.timeout(60):
                while not {"SHOAL_DEAD", "SHOAL_EXECUTOR_node-1"} <= (await bus.streams()).keys():
                    await asyncio.sleep(0.1)
            async with asyncio.timeout(90), shoal.connect(theirs, tenant="acme") as cluster:
                async with cluster.rollout("host", run="grpo") as rollout:
                    async for sandbox in rollout.ready():
                        assert (await sandbox.run("true")).ok
                assert [result.ok for result in await cluster.map("host", ["true"] * 2)] == [True] * 2
                made = await cluster.build_template("mine", "host")
                assert [info.digest for info in await cluster.snapshots()] == [made.digest]
                assert made.wire.seal
                await cluster.prefetch("mine")
                asked = await bus.reader("SHOAL_EXECUTOR_node-1", filters=[subjects.executor_control("node-1")])
                while not any(isinstance(decode(each.payload), PrefetchSnapshot) for each in await asked.batch()):
                    pass
            assert await bus.get(streams.SECRET_BUCKET, streams.SEAL_KEY) is not None
            await refused(theirs)
            await bus.close()


async def test_what_is_forbidden_is_told_at_once_to_whoever_asked(tmp_path: Path) -> None:
    async with broker(tmp_path) as port:
        ours, theirs = (f"nats://{who}@127.0.0.1:{port}" for who in ("services:s", "acme:a"))
        bus = await JetStreamBus.connect(ours)
        await ensure_cluster(bus, 1)
        await bus.ensure([streams.Stream("OTHER", ("other.>",), 3600.0, 1024**2)])

        said: list[str] = []
        acme = await JetStreamBus.connect(theirs, on_error=said.append)
        good, bad = (f"shoal.rollout.0.{tenant}.Run.request" for tenant in ("acme", "default"))
        sent = [acme.publish(subject, b"", str(number)) for number, subject in enumerate([good, bad, good, bad])]
        heard = await asyncio.gather(*sent, return_exceptions=True)
        assert [getattr(one, "sequence", None) for one in heard] == [1, None, 2, None]
        for one in (heard[1], heard[3]):
            assert isinstance(one, NotAllowedError)
            assert str(one).startswith(f"user acme may not publish to {bad}: ")
            assert "`--tenant`" in str(one)
        with pytest.raises(
            NotAllowedError, match=r"^user acme may not publish to \$JS\.API\.STREAM\.LIST: .* services$"
        ):
            await acme.streams()
        with pytest.raises(NotAllowedError, match=r"CONSUMER\.CREATE\.OTHER"):
            await acme.reader("OTHER")
        assert said == []
        await acme.close()

        with pytest.raises(NotAllowedError, match=r"subscribe to _INBOX_SHOAL\..* permissions"):
            await JetStreamBus.connect(theirs, inbox="_INBOX_SHOAL")
        for wrong, who in (("acme:b@", "user acme with this password"), ("", "who gives no user and password")):
            with pytest.raises(NotAllowedError, match=f"^the broker at nats://127.0.0.1:{port} does not let in {who}"):
                await JetStreamBus.connect(f"nats://{wrong}127.0.0.1:{port}")
        with pytest.raises(shoal.NotAllowed, match=r"may not publish to shoal\.rollout") as told:
            async with shoal.connect(theirs) as cluster:
                await cluster.rollout("host")
        assert not isinstance(told.value, shoal.InfrastructureError)
        for command in (["nodes"], ["run", "host", "-n", "2", "--", "true"]):
            done = await asyncio.to_thread(
                subprocess.run, [sys.executable, "-m", "shoal.cli", *command], env={**os.environ, "SHOAL_URL": theirs},
                capture_output=True, text=True, timeout=60,
            )  # fmt: skip
            assert done.returncode == 24, done.stderr
            assert "user acme may not publish to" in done.stderr
            assert "shoal up" not in done.stderr
            assert "Traceback" not in done.stderr
        await bus.close()


async def test_a_reader_ends_where_it_may_not_ask_for_messages(tmp_path: Path) -> None:
    may = permissions().replace('"$JS.API.CONSUMER.MSG.NEXT.SHOAL_ROLLOUT_0.*"', '"nothing"')
    assert may != permissions()
    async with broker(tmp_path, may) as port:
        ours, theirs = (f"nats://{who}@127.0.0.1:{port}" for who in ("services:s", "acme:a"))
        bus = await JetStreamBus.connect(ours)
        await bus.ensure([streams.rollout(0)])
        acme = await JetStreamBus.connect(theirs)
        reader = await acme.reader("SHOAL_ROLLOUT_0")
        with pytest.raises(
            NotAllowedError, match=r"may not publish to \$JS\.API\.CONSUMER\.MSG\.NEXT\.SHOAL_ROLLOUT_0"
        ):
            await asyncio.wait_for(reader.batch(), 20)
        await acme.close()
        await bus.close()


async def test_a_reader_that_was_served_waits_while_it_may_not(tmp_path: Path) -> None:
    allowed, forbidden = permissions(), permissions().replace('"$JS.API.CONSUMER.MSG.NEXT.SHOAL_ROLLOUT_0.*"', '"no"')

    async def change(may: str, now: str) -> None:
        config = tmp_path / "nats.conf"
        config.write_text(config.read_text().replace(may, now))
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGHUP)
        await asyncio.sleep(1)

    async with broker(tmp_path, allowed) as port:
        bus = await JetStreamBus.connect(f"nats://services:s@127.0.0.1:{port}")
        await bus.ensure([streams.rollout(0)])
        told: list[str] = []
        acme = await JetStreamBus.connect(f"nats://acme:a@127.0.0.1:{port}", on_error=told.append)
        reader = await acme.reader("SHOAL_ROLLOUT_0")
        await bus.publish(subjects.rollout_system(0), b"1", "1")
        assert [found.payload for found in await asyncio.wait_for(reader.batch(), 20)] == [b"1"]
        await change(allowed, forbidden)

        async def others(count: int) -> None:
            while count > 0:
                count -= len(await reader.batch())

        reading = asyncio.create_task(others(5000))
        for number in range(5000):  # more than it asked for ahead
            await bus.publish(subjects.rollout_system(0), b"2", f"2-{number}")
        async with asyncio.timeout(20):
            while not any("permissions violation" in text.lower() for text in told):
                await asyncio.sleep(0.05)
        await change(forbidden, allowed)
        await asyncio.wait_for(reading, 40)
        await acme.close()
        await bus.close()


async def refused(url: str) -> None:
    """All of this the broker refuses a tenant."""
    said: list[str] = []

    async def heard(error: Exception) -> None:
        said.append(str(error))

    key = f"KV_{streams.SECRET_BUCKET}"
    forbidden = [
        f"$JS.API.STREAM.MSG.GET.{key}", f"$JS.API.DIRECT.GET.{key}", f"$JS.API.STREAM.INFO.{key}",
        f"$JS.API.CONSUMER.CREATE.{key}.mine", f"$JS.API.STREAM.SNAPSHOT.{key}", "$JS.API.STREAM.CREATE.MINE",
        f"$KV.{streams.SECRET_BUCKET}.{streams.SEAL_KEY}", f"$KV.{streams.CLUSTER_BUCKET}.{streams.CELLS_KEY}",
        *(subjects.snapshot("acme", kind) for kind in ("added", "held", "answer")),
        *(subjects.snapshot(subjects.SYSTEM, kind) for kind in ("made", "sealed", "inspected", "collected")),
        subjects.snapshot("umbra", "request"), subjects.executor_control("node-1"), subjects.rollout_system(0),
        subjects.executor_command("node-1", "umbra"), subjects.placement_request(0), subjects.placement_node(0),
        subjects.placement_prefetch(0, "umbra"), subjects.rollout_sandbox(0, "acme", "grpo"),
        subjects.rollout_outcome(0, "acme", "grpo"), subjects.trajectory(0, "acme", "grpo"),
    ]  # fmt: skip
    client = await nats.connect(url, error_cb=heard)
    for subject in forbidden:
        await client.publish(subject, b"")
    for subject in ("_INBOX_SHOAL.>", "_INBOX_SHOAL.*.*", ">", "shoal.>"):
        await client.subscribe(subject)
    await client.flush()
    with contextlib.suppress(TimeoutError):  # what the broker says is handed over in its own time
        async with asyncio.timeout(20):
            while len(said) < len(forbidden) + 4:
                await asyncio.sleep(0.05)
    await client.close()
    text = "\n".join(said).lower()
    for subject in forbidden:
        assert f'publish to "{subject.lower()}"' in text
    for subject in ("_inbox_shoal.>", ">", "shoal.>"):
        assert f'subscription to "{subject}"' in text
