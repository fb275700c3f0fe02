"""`shoal up`, `shoal down` and `shoal status`: the system on this machine."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import click

from shoal.cli import statefile
from shoal.cli.exits import Exit, Failure
from shoal.cli.interrupts import LONG_CLEANUP_S, run_interruptibly
from shoal.cli.options import json_option, state_option
from shoal.cli.output import emit, say, table
from shoal.cli.passed import passed_over, tell

_DETACH_S: Final = 90.0
_DOWN_S: Final = 60.0
_POLL_S: Final = 0.05


def _drivers(_context: click.Context, _option: click.Parameter, value: str) -> str:
    known = ("zygote", "gvisor", "simulated")
    names = value.split(",")
    for name in names:
        if name not in known:
            raise click.BadParameter(f"{name!r} is no driver; use {', '.join(known)}")
    if len(set(names)) < len(names) or ("simulated" in names and len(names) > 1):
        raise click.BadParameter("each driver once, and simulated alone")
    return value


@click.command(short_help="Bring the whole system up on this machine.")
@state_option
@click.option("--port", type=click.IntRange(0, 65535), default=4222, show_default=True,
              help="The broker's, on loopback only; 0 takes a free one.")  # fmt: skip
@click.option(
    "--driver",
    envvar="SHOAL_DRIVER",
    callback=_drivers,
    default="zygote",
    metavar="NAME[,NAME]",
    show_default=True,
    show_envvar=True,
    help="How sandboxes are kept apart: zygote, gvisor (zygote,gvisor: as each rollout says), simulated.",
)
@click.option("--slots", type=click.IntRange(1), help="Sandboxes a node holds at once. [default: the executor's]")
@click.option("--overcommit", type=click.FloatRange(1.0, 100.0),
              help="How many times the machine's memory is promised. [default: the executor's, 4]")  # fmt: skip
@click.option("--cpu", type=click.FloatRange(0.001),
              help="Cpus to reserve from, of all sandboxes. [default: they are shared]")  # fmt: skip
@click.option("--nodes", type=click.IntRange(1, 100_000), default=1, show_default=True,
              help="With --driver simulated: how many nodes to simulate.")  # fmt: skip
@click.option(
    "--cells",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Partitions of the control plane, each with an executor of its own; fixed when a cluster is made.",
)
@click.option("--brokers", type=click.Choice(["1", "3"]), default="1", show_default=True,
              help="Three form a cluster that keeps every message thrice; --port is the first one's.")  # fmt: skip
@click.option("--replicas", type=click.IntRange(1, 9), default=1, show_default=True,
              help="Processes of each service but the executor: one works, the others stand by.")  # fmt: skip
@click.option("--detach", is_flag=True, help="Return when it is ready, and leave it running; `shoal down` stops it.")
@json_option
def up(
    state: Path | None, port: int, driver: str, slots: int | None, nodes: int, cells: int, brokers: str, replicas: int,
    overcommit: float | None, cpu: float | None, detach: bool, as_json: bool,
) -> int:  # fmt: skip
    """Bring the whole system up on this machine: a broker with JetStream on disk, all services, an executor.

    Ctrl-C stops everything and leaves nothing behind but the state directory. A service that dies is started again.

    \b
    shoal up                                      until Ctrl-C
    shoal up --detach && shoal status; shoal down
    shoal up --driver zygote,gvisor               sandboxes of both kinds; `shoal run --isolation gvisor`
    shoal up --driver simulated --nodes 1000      no sandboxes: a thousand nodes that pretend
    shoal up --brokers 3 --replicas 2             goes on within ten seconds whichever process is lost
    """
    if nodes > 1 and driver != "simulated":
        raise click.UsageError("--nodes: only simulated nodes can be many; add --driver simulated, or leave it out")
    where = statefile.resolve(state)
    if detach:
        options = ["--state", str(where), "--port", str(port), "--driver", driver, "--nodes", str(nodes)]
        options += ["--brokers", brokers, "--replicas", str(replicas), "--cells", str(cells)]
        options += ["--slots", str(slots)] if slots is not None else []
        options += ["--overcommit", str(overcommit)] if overcommit is not None else []
        options += ["--cpu", str(cpu)] if cpu is not None else []
        return _detach(where, options, as_json)
    promised = [] if overcommit is None else ["--overcommit", str(overcommit)]
    if cpu is not None:  # each executor has its part, as of the memory
        promised += ["--cpu", str(max(cpu / (cells * len(driver.split(","))), 0.001))]
    work = _up(where, port, driver, slots, nodes, cells, int(brokers), replicas, promised, as_json)
    return run_interruptibly(work, cleanup_s=LONG_CLEANUP_S)


async def _up(
    state: Path, port: int, driver: str, slots: int | None, nodes: int, cells: int, brokers: int, replicas: int,
    executor_options: list[str], as_json: bool,
) -> int:  # fmt: skip
    from shoal.cli.system import LocalSystem

    interrupted = False
    system = LocalSystem(
        state, port=port, driver=driver, slots=slots, nodes=nodes, cells=cells, brokers=brokers, replicas=replicas,
        executor_options=executor_options, tell=say,
    )  # fmt: skip
    async with system:
        if as_json:
            emit({"url": system.url, "state": str(state), "pid": os.getpid(), "driver": driver})
        else:
            print("\n".join(_can_do(system.nodes, system.url, state)), flush=True)
            say("Ctrl-C stops it")
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            interrupted = True
            say("stopping")
    if interrupted:
        say("stopped; nothing is left running")
    return Exit.OK


def _can_do(nodes: list[Any], url: str, state: Path) -> list[str]:
    from shoal.wire.quantities import format_bytes

    slots = sum(node.slots for node in nodes)
    memory = sum(node.memory for node in nodes)
    isolation = ", ".join(dict.fromkeys(node.isolation for node in nodes))
    what = f"{slots} simulated sandboxes" if isolation == "simulated" else f"{slots} sandboxes ({isolation})"
    lines = [
        f"Shoal is up at {url}, state in {state}",
        f"{len(nodes)} {'node' if len(nodes) == 1 else 'nodes'} for {what}, {format_bytes(memory)} to reserve from",
    ]
    for node in {node.isolation: node for node in nodes}.values():
        if node.unenforced:
            which = f" by {node.isolation}" if "," in isolation else ""
            lines.append(f"not enforced here{which}: {', '.join(node.unenforced)}")
    elsewhere = "" if url == "nats://127.0.0.1:4222" else f" --url {url}"
    return [*lines, f"try: shoal run{elsewhere} host -n 8 -- python3 -c 'print(6*7)'"]


def _detach(state: Path, options: list[str], as_json: bool) -> int:
    """Start `shoal up` in a session of its own and wait until it is ready, or has failed."""
    statefile.lock(state).close()  # says so here and now when one runs already
    return run_interruptibly(_detached(state, options, as_json), cleanup_s=LONG_CLEANUP_S)


async def _detached(state: Path, options: list[str], as_json: bool) -> int:
    log = state / "log" / "up.log"
    process = _started(options, log)
    try:
        found = await _ready(process, state, log)
    except BaseException:
        if process.poll() is None:  # nobody waits for it any more, so it must not become ready later
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_DOWN_S)
        raise
    if as_json:
        emit({"url": found.url, "state": str(state), "pid": found.pid, "driver": found.driver})
    else:
        how = f"`{statefile.down(state)}` stops it"
        print(f"Shoal is up at {found.url} (pid {found.pid}), state in {state}; {how}")
    return Exit.OK


async def _ready(process: "subprocess.Popen[bytes]", state: Path, log: Path) -> statefile.Running:
    """Return what is running, once it is ready. Raises Failure."""
    until = time.monotonic() + _DETACH_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise _why_it_ended(process.returncode, log)
        found = statefile.read(state)
        if found is not None and found.ready and found.pid == process.pid:
            return found
        await asyncio.sleep(_POLL_S)
    raise Failure(Exit.START_FAILED, f"the system is not ready after {_DETACH_S:g} s; its log is {log}")


def _started(options: list[str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "shoal.cli", "up", *options],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/", start_new_session=True,
        )  # fmt: skip


def _why_it_ended(returned: int, log: Path) -> Failure:
    words = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
    try:
        status = Exit(returned)
    except ValueError:
        status = Exit.START_FAILED
    return Failure(status or Exit.START_FAILED, words[0].removeprefix("shoal: "))


@click.command(short_help="Stop the system on this machine.")
@state_option
@json_option
def down(state: Path | None, as_json: bool) -> int:
    """Stop the system that `shoal up` runs, detached or not, and wait until it has stopped."""
    where = statefile.resolve(state)
    found = _found(where)
    handle = os.pidfd_open(found.pid)  # no other process can be meant by it, whatever happens meanwhile
    try:
        if found.alive:
            signal.pidfd_send_signal(handle, signal.SIGTERM)
        until = time.monotonic() + _DOWN_S
        while found.alive and time.monotonic() < until:
            time.sleep(_POLL_S)
        killed = found.alive
        if killed:
            signal.pidfd_send_signal(handle, signal.SIGKILL)  # its services end with it
            while found.alive:
                time.sleep(_POLL_S)
    finally:
        os.close(handle)
    if as_json:
        emit({"stopped": found.pid, "killed": killed, "url": found.url})
    else:
        how = f" (it did not stop within {_DOWN_S:g} s, so it was killed)" if killed else ""
        print(f"stopped the system at {found.url} (pid {found.pid}){how}")
    return Exit.OK


@click.command(short_help="Show the system on this machine.")
@state_option
@json_option
def status(state: Path | None, as_json: bool) -> int:
    """Show each service of the system that `shoal up` runs, its nodes, and how many sandboxes live.

    Messages that a service failed on twice are passed over, and told of here; `shoal dead ls` lists them, too.
    """
    where = statefile.resolve(state)
    found = _found(where)

    async def work() -> int:
        from shoal.archive.live import LiveHistory
        from shoal.cli.connecting import connect
        from shoal.cli.histories import broker
        from shoal.wire.streams import CLUSTER_BUCKET

        async with connect(found.url) as cluster:
            nodes = [node for node in await cluster.nodes() if node.state == "alive"]
        async with broker(found.url) as bus:
            left_out = passed_over(await LiveHistory(bus).values(CLUSTER_BUCKET))
        live = sum({node.executor: node.live for node in nodes}.values())
        slots = sum(node.slots for node in nodes)
        if as_json:
            emit(
                {
                    "url": found.url, "pid": found.pid, "state": str(where), "driver": found.driver,
                    "ready": found.ready, "services": found.services, "nodes": len(nodes), "slots": slots,
                    "sandboxes": live, "passed_over": left_out,
                }
            )  # fmt: skip
            return Exit.OK
        print(f"Shoal is {'up' if found.ready else 'starting'} at {found.url} (pid {found.pid}), state in {where}")
        rows = [(name, one["pid"] or "-", one["state"], one["restarts"]) for name, one in found.services.items()]
        table(("service", "pid", "state", "restarts"), rows, empty="no service runs yet")
        kind = "simulated sandboxes" if found.driver == "simulated" else "sandboxes"
        print(f"{len(nodes)} {'node' if len(nodes) == 1 else 'nodes'}, {live} of {slots} {kind} live")
        tell(left_out)
        return Exit.OK

    if not found.url:
        raise Failure(Exit.NOT_RUNNING, f"the system on {where} is only starting (pid {found.pid}); ask again soon")
    return run_interruptibly(work())


def _found(state: Path) -> statefile.Running:
    found = statefile.read(state)
    if found is None:
        raise Failure(
            Exit.NOT_RUNNING, f"no system runs on {state}; start one with `shoal up`, or name another with --state"
        )
    return found
