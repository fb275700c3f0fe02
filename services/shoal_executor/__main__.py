"""`python -m shoal_executor`: the composition root."""

import asyncio
import os
import re
import resource
import secrets
import socket
from pathlib import Path
from typing import NoReturn

import click

from shoal import host
from shoal.blobs.cache import Cache
from shoal.blobs.opening import open_store
from shoal.runtime import lean  # before the others, which import structlog
from shoal.runtime.numbers import FiniteRange, Size
from shoal.runtime.options import Settings, cell_option, service_options, template_roots_option
from shoal.runtime.places import usable
from shoal.runtime.process import Context, serve
from shoal.wire.messages import Isolation, NodeSpec, Snapshot
from shoal.wire.quantities import BadValueError
from shoal.wire.subjects import token
from shoal_executor.drivers.disks import CachedDisks
from shoal_executor.drivers.gvisor.driver import GvisorDriver
from shoal_executor.drivers.heat import Budget
from shoal_executor.drivers.pool import Pool
from shoal_executor.drivers.protocol import Driver
from shoal_executor.drivers.simulated import Profile, SimulatedDriver
from shoal_executor.drivers.zygote.driver import ZygoteDriver
from shoal_executor.service import ExecutorService, Offer
from shoal_executor.service.journal import Journal, JournalError
from shoal_executor.service.leaving import ReplacedError, until_wanted

_HOST = Snapshot("host", "host")
_LEAST_MEMORY = 64 * 1024**2  # below that not one interpreter starts
_LEAST_CACHE = 1024**2
_KVM = Path("/dev/kvm")

log = lean.structlog.get_logger()


def machine_name(host: str) -> str:
    """Return a machine's name as far as it can name an executor: without its domain, `-` for what may not be in one."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", host.partition(".")[0]).strip("-_")[:64] or "local"


def _default_state(executor: str) -> Path:
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "shoal" / "executors" / executor


def _lift_descriptors() -> None:
    """Each sandbox takes some, and a shell's usual limit is 1024."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@service_options
@cell_option
@click.option(
    "--executor",
    envvar="SHOAL_EXECUTOR",
    default=lambda: machine_name(socket.gethostname()),
    show_default="the machine's name",
    show_envvar=True,
    help="Its name in the cluster, which no other has.",
)
@click.option(
    "--driver",
    envvar="SHOAL_DRIVER",
    show_envvar=True,
    default=Isolation.ZYGOTE.value,
    type=click.Choice([isolation.value for isolation in Isolation]),
    help="How sandboxes are kept apart.",
)
@click.option(
    "--gvisor-platform",
    envvar="SHOAL_GVISOR_PLATFORM",
    show_envvar=True,
    type=click.Choice(["systrap", "ptrace", "kvm"]),
    help="gvisor: how system calls are intercepted; default: systrap where it works, else ptrace.",
)
@click.option("--state", envvar="SHOAL_STATE", show_envvar=True, type=click.Path(path_type=Path), help="Its directory.")
@click.option(
    "--blobs",
    envvar="SHOAL_BLOBS",
    show_envvar=True,
    metavar="URL",
    help="Where snapshots are kept for all nodes, such as file:///srv/blobs; default: within its own directory.",
)
@click.option(
    "--blob-cache",
    envvar="SHOAL_BLOB_CACHE",
    show_envvar=True,
    default="20GiB",
    type=Size(_LEAST_CACHE, "20GiB"),
    help="How much of them is kept here.",
)
@click.option(
    "--slots",
    envvar="SHOAL_SLOTS",
    show_envvar=True,
    default=1024,
    type=click.IntRange(1),
    help="Sandboxes a node holds.",
)
@click.option(
    "--memory",
    envvar="SHOAL_MEMORY",
    show_envvar=True,
    type=Size(_LEAST_MEMORY, "16GiB"),
    help="Memory to reserve from; default: the machine's.",
)
@click.option(
    "--overcommit",
    envvar="SHOAL_OVERCOMMIT",
    show_envvar=True,
    default=4.0,
    type=FiniteRange(1.0, 100.0),
    help="How many times the memory is promised: sandboxes rarely use their limit.",
)
@click.option(
    "--cpu",
    envvar="SHOAL_CPU",
    show_envvar=True,
    type=FiniteRange(0.001),
    help="Cpus to reserve from; default: they are shared.",
)
@click.option(
    "--disk", envvar="SHOAL_DISK", show_envvar=True, type=Size(), help="Disk to reserve from; default: it is shared."
)
@click.option(
    "--label", "labels", envvar="SHOAL_LABELS", show_envvar=True, multiple=True, metavar="NAME=VALUE",
    help="A label of the node, such as zone=a; may be given several times.",
)  # fmt: skip
@click.option(
    "--parallel",
    envvar="SHOAL_PARALLEL",
    show_envvar=True,
    type=click.IntRange(1),
    help="Starts at a time; default: by cores.",
)
@click.option(
    "--pool",
    envvar="SHOAL_POOL",
    show_envvar=True,
    default=8,
    type=click.IntRange(0, 1024),
    help="Sandboxes kept started ahead, of what is asked for again and again; 0: none.",
)
@click.option(
    "--pool-memory",
    envvar="SHOAL_POOL_MEMORY",
    show_envvar=True,
    type=Size(),
    help="Their limits together; default: 1/16 of --memory.",
)
@template_roots_option("dir: and tar:")
@click.option(
    "--tune-host/--no-tune-host",
    envvar="SHOAL_TUNE_HOST",
    show_envvar=True,
    default=True,
    help="As root, mount the cgroup hierarchy with favordynmods while running: starts are quicker after a pause.",
)
@click.option(
    "--nodes",
    envvar="SHOAL_NODES",
    show_envvar=True,
    default=1,
    type=click.IntRange(1, 100_000),
    help="simulated: how many nodes.",
)
@click.option("--seed", envvar="SHOAL_SEED", show_envvar=True, default=0, help="simulated: for every draw.")
@click.option(
    "--start-ms",
    envvar="SHOAL_START_MS",
    show_envvar=True,
    default=0.0,
    type=FiniteRange(0),
    help="simulated: median time of a start.",
)
@click.option(
    "--command-ms",
    envvar="SHOAL_COMMAND_MS",
    show_envvar=True,
    default=0.0,
    type=FiniteRange(0),
    help="simulated: median time of a command.",
)
@click.option(
    "--start-failures",
    envvar="SHOAL_START_FAILURES",
    show_envvar=True,
    default=0.0,
    type=FiniteRange(0, 1),
    help="simulated: share of starts that fail.",
)
@click.option(
    "--command-failures",
    envvar="SHOAL_COMMAND_FAILURES",
    show_envvar=True,
    default=0.0,
    type=FiniteRange(0, 1),
    help="simulated: share of commands that fail.",
)
def main(
    settings: Settings,
    cell: int,
    executor: str,
    driver: str,
    gvisor_platform: str | None,
    state: Path | None,
    blobs: str | None,
    blob_cache: int,
    slots: int,
    memory: int | None,
    overcommit: float,
    cpu: float | None,
    disk: int | None,
    labels: tuple[str, ...],
    parallel: int | None,
    pool: int,
    pool_memory: int | None,
    template_roots: tuple[Path, ...],
    tune_host: bool,
    nodes: int,
    seed: int,
    start_ms: float,
    command_ms: float,
    start_failures: float,
    command_failures: float,
) -> None:
    """Start, run and end sandboxes on this machine (or simulate many machines that do)."""
    try:
        token(executor, "executor")
    except BadValueError as error:
        raise click.UsageError(str(error)) from None
    simulated = driver == Isolation.SIMULATED.value
    if nodes > 1 and not simulated:
        raise click.UsageError("--nodes: a real executor serves one node, the machine it runs on; leave it out")
    if driver == Isolation.GVISOR.value and gvisor_platform == "kvm" and not os.access(_KVM, os.R_OK | os.W_OK):
        why = "is not this user's to open" if _KVM.exists() else "is missing"
        raise click.UsageError(
            f"--gvisor-platform: kvm needs {_KVM}, which {why} on this machine; leave the option out, or say systrap"
        )
    promised = int((memory or host.memory()) * overcommit)
    names = [executor] if nodes == 1 else [f"{executor}-{number}" for number in range(nodes)]
    pairs = tuple(sorted(label.partition("=")[::2] for label in labels))
    if any(not name or not value for name, value in pairs):
        raise click.UsageError("--label: write NAME=VALUE, such as zone=a")
    offer = Offer(
        executor,
        cell,
        tuple(NodeSpec(name, slots, promised, pairs, int((cpu or 0) * 1000), disk or 0) for name in names),
        warm=() if simulated else (_HOST,),
    )

    place = state or _default_state(executor)
    kept = blobs or (place.absolute() / "blobs").as_uri()
    try:
        if not simulated:
            open_store(kept)  # to hear at once of an address that is none
    except BadValueError as error:
        raise click.UsageError(f"--{error}") from None
    if not simulated:
        usable(place)

    def make(cache: Cache | None) -> Driver:
        if simulated:
            profile = Profile(
                seed,
                start_ms,
                command_ms=command_ms,
                start_failure_rate=start_failures,
                command_failure_rate=command_failures,
            )
            return SimulatedDriver(profile)
        disks = CachedDisks(cache) if cache else None
        real: Driver
        if driver == Isolation.GVISOR.value:
            real = GvisorDriver(
                place, disks, parallel=parallel, platform=gvisor_platform or "", template_roots=template_roots
            )
        else:
            real = ZygoteDriver(place, disks, parallel=parallel, tune_host=tune_host, template_roots=template_roots)
        ahead = Budget(pool, (memory or host.memory()) // 16 if pool_memory is None else pool_memory)
        return Pool(real, place / "pool", ahead)  # with 0, too: an earlier process may have given some away

    async def run(context: Context) -> None:
        if cell >= context.cells:
            raise BadValueError("cell", f"{cell} is none of the {context.cells} cells")
        while await serve_once(context):
            await until_wanted(context.bus, names, context.stop)
            if context.stop.is_set():
                return

    async def serve_once(context: Context) -> bool:
        # What is simulated ends with this process, so there is nothing to remember.
        journal = None if simulated else Journal(place, _end_at_once)
        try:
            if journal is not None:
                await asyncio.to_thread(journal.hold)  # before anything here is touched: it may be another's
        except JournalError as error:
            raise BadValueError("state", str(error)) from error
        store = None if simulated else open_store(kept)
        cache = Cache(store, place / "cache", blob_cache) if store else None
        boot = secrets.token_hex(8)
        try:
            return await ExecutorService(context.bus, make(cache), offer, boot, journal, cache).run(context.stop)
        except JournalError as error:
            raise BadValueError("state", str(error)) from error
        except ReplacedError as error:
            raise BadValueError("executor", str(error)) from error
        finally:
            if journal is not None:
                journal.close(remove=False)
            if cache is not None and store is not None:
                await cache.close()
                await store.close()

    _lift_descriptors()
    # A real one shares its cores with sandboxes that compute, and many wait for each of its messages.
    serve("executor", settings, run, waits_its_turn=simulated)


def _end_at_once(error: OSError) -> NoReturn:
    """End as if killed, for what happened cannot be written down: the next process finds the sandboxes as they are."""
    log.critical("the journal cannot be written: ending, and leaving the sandboxes as they are", error=str(error))
    os._exit(os.EX_IOERR)


if __name__ == "__main__":
    main()
