import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from shoal.broker import EmbeddedBroker
from shoal.bus.jetstream import JetStreamBus
from shoal.bus.memory import MemoryBroker
from shoal.runtime.cluster import cells_of, ensure_cluster
from shoal.runtime.options import Settings, cell_option, service_options, state_option
from shoal.wire import streams
from shoal.wire.quantities import BadValueError

SERVICE = """
import sys
import structlog
from shoal.runtime.checkpoints import StateGoneError
from shoal.runtime.options import Settings
from shoal.runtime.process import Context, serve

async def main(context: Context) -> None:
    structlog.get_logger().info("at work", cells=context.cells)
    if sys.argv[2] == "fail":
        raise RuntimeError("broken on purpose")
    if sys.argv[2] == "gone":
        raise StateGoneError("toy", "LOG", 7)
    await context.stop.wait()

serve("toy", Settings(url=sys.argv[1], patience_s=float(sys.argv[3])), main)
"""


def start(url: str, mode: str = "serve", patience: float = 20) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SERVICE, url, mode, str(patience)], stderr=subprocess.PIPE, text=True
    )


def lines_until(process: subprocess.Popen[str], event: str) -> list[dict[str, object]]:
    assert process.stderr is not None
    seen: list[dict[str, object]] = []
    for line in process.stderr:
        seen.append(json.loads(line))
        if seen[-1]["event"] == event:
            return seen
    raise AssertionError(f"{event!r} was never logged, only {seen}")


def end(process: subprocess.Popen[str]) -> int:
    assert process.stderr is not None
    with process.stderr:
        try:
            return process.wait(20)
        finally:
            process.kill()
            process.wait()


@pytest.mark.broker
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_service_stops_cleanly_when_told(broker: EmbeddedBroker, number: signal.Signals) -> None:
    process = start(broker.url)
    try:
        at_work = lines_until(process, "at work")[-1]
        assert (at_work["service"], at_work["level"], at_work["cells"]) == ("toy", "info", 1)
        process.send_signal(number)
        lines_until(process, "stopped")
    finally:
        status = end(process)
    assert status == 0


@pytest.mark.broker
def test_a_service_that_fails_says_so_and_exits_1(broker: EmbeddedBroker) -> None:
    process = start(broker.url, "fail")
    try:
        failed = lines_until(process, "failed")[-1]
        assert "broken on purpose" in str(failed["exception"])
    finally:
        status = end(process)
    assert status == 1


@pytest.mark.broker
def test_a_service_whose_state_is_gone_says_in_a_sentence_what_to_do(broker: EmbeddedBroker) -> None:
    process = start(broker.url, "gone")
    try:
        failed = lines_until(process, "its state is gone")[-1]
        assert str(failed["error"]).startswith("toy cannot be served: LOG is kept from message 7 on")
        assert "exception" not in failed
    finally:
        status = end(process)
    assert status == 1


def test_patience_with_a_broker_that_never_comes_ends() -> None:
    process = start("nats://127.0.0.1:1", patience=0.6)
    try:
        lines = lines_until(process, "no broker")
        assert any(line["event"] == "waiting for the broker" for line in lines)
        assert "no broker answers at nats://127.0.0.1:1" in str(lines[-1]["error"])
    finally:
        status = end(process)
    assert status == 69


def test_told_to_stop_while_it_waits_for_a_broker() -> None:
    process = start("nats://127.0.0.1:1", patience=60)
    try:
        lines_until(process, "waiting for the broker")
        process.terminate()
    finally:
        status = end(process)
    assert status == 0


@pytest.mark.broker
def test_the_broker_may_come_after_the_service(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path, port=0)
    asyncio.run(broker.start())
    asyncio.run(broker.stop())  # its port is known now
    process = start(broker.url)
    try:
        lines_until(process, "waiting for the broker")
        asyncio.run(broker.start())
        lines_until(process, "at work")
        process.terminate()
        lines_until(process, "stopped")
    finally:
        status = end(process)
        asyncio.run(broker.stop())
    assert status == 0


async def test_a_cluster_is_what_its_first_process_made_of_it(memory_broker: MemoryBroker) -> None:
    buses = [memory_broker.connect() for _ in range(5)]
    assert await cells_of(buses[0]) is None
    found = await asyncio.gather(
        *(ensure_cluster(bus, cells) for bus, cells in zip(buses, (3, 1, 2, 5, 4), strict=True))
    )
    assert found == [3] * 5
    assert await cells_of(buses[1]) == 3
    for stream in streams.cluster(3):
        assert await buses[0].last_sequence(stream.name) == 0
    with pytest.raises(BadValueError):
        await ensure_cluster(buses[0], 0)


@pytest.mark.broker
async def test_a_cluster_is_set_up_once_by_many_at_once(tmp_path: Path) -> None:
    async with EmbeddedBroker(tmp_path, port=0) as broker:
        buses = [await JetStreamBus.connect(broker.url) for _ in range(5)]
        found = await asyncio.gather(*(ensure_cluster(bus, cells) for cells, bus in enumerate(buses, 1)))
        assert len(set(found)) == 1
        for bus in buses:
            await bus.close()


def test_options_come_from_flags_and_environment() -> None:
    seen: list[tuple[Settings, int]] = []

    @click.command()
    @service_options
    @cell_option
    def command(settings: Settings, cell: int) -> None:
        seen.append((settings, cell))

    run = CliRunner().invoke
    assert run(command, []).exit_code == 0
    assert run(command, ["--patience", "2m"], env={"SHOAL_URL": "nats://b:1", "SHOAL_CELL": "7"}).exit_code == 0
    assert seen == [(Settings(), 0), (Settings(url="nats://b:1", patience_s=120.0), 7)]
    wrong = run(command, ["--patience", "12 potatoes"])
    assert wrong.exit_code == 2
    assert "is not a duration" in wrong.output


def test_only_who_is_told_to_begins_with_what_is_left() -> None:
    seen: list[bool] = []

    @click.command()
    @state_option
    def command(what_is_left: bool) -> None:
        seen.append(what_is_left)

    run = CliRunner().invoke
    assert run(command, []).exit_code == 0
    assert run(command, ["--begin-with-what-is-left"]).exit_code == 0
    assert run(command, [], env={"SHOAL_BEGIN_WITH_WHAT_IS_LEFT": "1"}).exit_code == 0
    assert seen == [False, True, True]


@pytest.mark.parametrize("service", ["scheduler", "placement", "snapshot", "executor"])
def test_a_service_does_not_load_what_only_the_command_line_shows(service: str) -> None:
    code = (
        f"import shoal_{service}.__main__, sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))\n"
        "import rich.console"  # whoever wants it has it
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.split())
    assert "structlog" in loaded
    assert not loaded & {"rich", "pygments", "markdown_it"}
