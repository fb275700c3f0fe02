"""The cluster a scenario runs on: one it brings up for itself, or one that is there."""

import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from shoal.bus.jetstream import JetStreamBus
from shoal.cli import statefile
from shoal.client.cluster import Cluster, connect
from shoal.client.requests import Resources
from shoal.runtime.cluster import cells_of
from shoal.wire.messages import Limits
from shoal_loadtest.scenario.model import Fleet, Scenario


@dataclass(frozen=True, slots=True)
class Target:
    """Where the load goes. `state`: the state directory of a system on this machine, where its processes are listed."""

    url: str
    cells: int
    state: Path | None
    own: bool

    def processes(self) -> dict[str, int]:
        """Return the processes of the system by name, as far as they are known here."""
        running = statefile.read(self.state) if self.state is not None else None
        services = running.services if running is not None else {}
        return {name: found["pid"] for name, found in services.items() if isinstance(found["pid"], int)}


@contextlib.asynccontextmanager
async def brought_up(fleet: Fleet, seed: int, tell: Callable[[str], None]) -> AsyncIterator[Target]:
    """Bring a system up for as long as this is entered. Raises Failure."""
    from shoal.cli.system import LocalSystem

    with tempfile.TemporaryDirectory(prefix="shoal-loadtest-") as directory:
        state = Path(directory)
        system = LocalSystem(
            state, port=0, driver=fleet.driver, slots=fleet.slots, nodes=fleet.nodes, cells=fleet.cells,
            brokers=fleet.brokers, replicas=fleet.replicas, executors=fleet.executors,
            executor_options=executor_options(fleet, seed), sync_interval=fleet.sync, tell=tell,
        )  # fmt: skip
        async with system:
            yield Target(system.url, fleet.cells, state, own=True)


@contextlib.asynccontextmanager
async def there_already(url: str, state: Path | None) -> AsyncIterator[Target]:
    """Use a system that is up; where it runs on this machine its processes are found. Raises a ShoalError."""
    async with connect(url):  # says what is wrong where nothing answers, or no cluster is there
        bus = await JetStreamBus.connect(url, name="shoal-loadtest")
        cells = await cells_of(bus) or 1
        await bus.close()
    where = statefile.resolve(state)
    running = statefile.read(where)
    here = running is not None and (state is not None or running.url == url)
    yield Target(url, cells, where if here else None, own=False)


def executor_options(fleet: Fleet, seed: int) -> list[str]:
    """Return what the fleet's executors are told beyond what every local system tells them."""
    options: list[str] = []
    if fleet.driver == "simulated":
        options += ["--seed", str(seed), "--start-ms", str(fleet.start_ms), "--command-ms", str(fleet.command_ms)]
        options += ["--start-failures", str(fleet.start_failures), "--command-failures", str(fleet.command_failures)]
    if fleet.gvisor_platform:
        options += ["--gvisor-platform", fleet.gvisor_platform]
    if fleet.pool is not None:
        options += ["--pool", str(fleet.pool)]
    return options


async def prepare(url: str, scenario: Scenario, tell: Callable[[str], None]) -> None:
    """Give tenants their weights, and build templates. Raises a ShoalError."""
    for tenant in scenario.tenants:
        if tenant.weight:
            async with connect(url, tenant=tenant.name) as cluster:
                await cluster.limit_tenant(tenant.name, Limits(weight=tenant.weight))
    for tenant in scenario.tenants if scenario.templates else ():
        async with connect(url, tenant=tenant.name) as cluster:
            await _build(cluster, scenario, tell)


async def _build(cluster: Cluster, scenario: Scenario, tell: Callable[[str], None]) -> None:
    for template in scenario.templates:
        tell(f"building template {template.name}")
        await cluster.build_template(
            template.name, template.source, setup=template.setup, warm=template.warm, isolation=template.isolation,
            resources=Resources(memory=template.memory, disk="1GiB", pids=1024),
        )  # fmt: skip
