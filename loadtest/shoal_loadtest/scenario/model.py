"""The shape of a scenario: a fleet, and phases of load on it one after the other. Every field may stand in the file."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from shoal_loadtest.scenario.draw import Draw

Positive = Annotated[int, Meta(ge=1)]
Rate = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Service = Literal["scheduler", "placement", "snapshot", "executor", "broker"]


class Seconds(float):
    """A duration; in a file a number of seconds, or such as "30s" or "5m"."""


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file."""


class Fleet(Part, frozen=True, kw_only=True):
    """The cluster to bring up; with --url, the one that is there, and this only says what is expected of it."""

    driver: str = "simulated"
    executors: Positive = 1  # processes of each driver in each cell
    nodes: Positive = 1  # simulated: in all executors together
    slots: Positive | None = None  # of each node; without it the executor's default
    cells: Annotated[int, Meta(ge=1, le=64)] = 1
    brokers: Literal[1, 3] = 1
    replicas: Annotated[int, Meta(ge=1, le=9)] = 1  # processes of each service but the executor
    sync: Literal["10s", "always"] = "10s"  # when brokers sync to disk; always: before they acknowledge
    start_ms: Annotated[float, Meta(ge=0)] = 0.0  # simulated: median time of a start, drawn log-normal
    command_ms: Annotated[float, Meta(ge=0)] = 0.0  # simulated: median time of a command, drawn log-normal
    start_failures: Share = 0.0  # simulated: share of starts that fail
    command_failures: Share = 0.0
    gvisor_platform: Literal["", "systrap", "ptrace", "kvm"] = ""
    pool: Annotated[int, Meta(ge=0, le=1024)] | None = None  # sandboxes kept started ahead


class Closed(Part, frozen=True, kw_only=True, tag="closed", tag_field="process"):
    """As fast as possible: the next is asked for as soon as less than `outstanding` are under way."""

    outstanding: Positive = 20_000  # sandboxes; of commands, commands


class _Open(Part, frozen=True, kw_only=True):
    """Asked for when it is time, whatever became of those before. In sandboxes a second; of commands, in commands."""

    rate: Rate | None = None
    of_maximum: Annotated[float, Meta(gt=0, le=10)] | None = None  # instead: a part of the measured maximum


class Constant(_Open, frozen=True, kw_only=True, tag="constant", tag_field="process"):
    """Evenly spaced."""


class Poisson(_Open, frozen=True, kw_only=True, tag="poisson", tag_field="process"):
    """As if many asked who do not know of each other."""


class Bursts(Part, frozen=True, kw_only=True, tag="bursts", tag_field="process"):
    """`rollouts` at the same moment, again and again."""

    rollouts: Positive
    every: Seconds


class Ramp(Part, frozen=True, kw_only=True, tag="ramp", tag_field="process"):
    """A rate that grows, or shrinks, evenly over the phase's seconds."""

    rate: Rate
    to: Rate


class Trace(Part, frozen=True, kw_only=True, tag="trace", tag_field="process"):
    """When, and how large, the rollouts of an archived history were asked for."""

    archive: str
    speed: Rate = 1.0  # 2: twice as fast as it was


Arrival = Closed | Constant | Poisson | Bursts | Ramp | Trace
Asking = Closed | Constant | Poisson


class Shape(Part, frozen=True, kw_only=True):
    """What rollouts are asked for, and what becomes of their sandboxes.

    With `command` it travels with the request, and a sandbox ends with it. Without, sandboxes stay: for `life` after
    the rollout's last is ready, `until = "end"` of the scenario, or until it is "replaced", the oldest first, as soon
    as more than the phase's `live` are.
    """

    template: str = "host"
    isolation: str = ""
    size: Draw = Draw(256)  # sandboxes of a rollout
    command: str = ""
    first_command: str = ""  # run in each sandbox as soon as it is ready
    life: Draw = Draw(0)
    until: Literal["", "end", "replaced"] = ""
    memory: str = "256MiB"
    on_lost: Literal["", "fail", "restart", "resume"] = ""
    max_attempts: Annotated[int, Meta(ge=1, le=255)] = 3
    timeout: Seconds = Seconds(24 * 3600)


class Kind(Part, frozen=True, kw_only=True):
    """One kind of command: a line for a shell, or Python for the sandbox's interpreter; `weight` among the others."""

    line: str = ""
    python: str = ""
    session: bool = False  # in the sandbox's persistent shell
    weight: Rate = 1.0


class Commands(Part, frozen=True, kw_only=True):
    """Commands in sandboxes that stay, each in one chosen at random. Until there are `total`, or the phase is over."""

    arrival: Asking
    total: Positive | None = None
    mix: tuple[Kind, ...] = (Kind(line="true"),)


class Phase(Part, frozen=True, kw_only=True):
    """One stretch of load: until so many `sandboxes` were asked for, or for so many `seconds`."""

    name: str
    arrival: Arrival | None = None
    rollout: Shape = Shape()
    commands: Commands | None = None
    sandboxes: Positive | None = None
    seconds: Seconds | None = None
    live: Positive | None = None
    measures_maximum: bool = False  # its throughput is the maximum that `of_maximum` is a part of
    judged: bool = True  # whether objectives without a phase's name are about it, too


class Tenant(Part, frozen=True, kw_only=True):
    """Somebody who asks. `share` of what is asked for; `weight` in the fair share (0: as the cluster has it)."""

    name: str
    share: Rate = 1.0
    weight: Annotated[float, Meta(ge=0, le=1000)] = 0.0


class Fault(Part, frozen=True, kw_only=True):
    """These processes are killed (kill -9) in turn, one every so often, in these phases (none: in all)."""

    kill: tuple[Service, ...]
    every: Seconds
    phases: tuple[str, ...] = ()


class Template(Part, frozen=True, kw_only=True):
    """A template that is built before the first phase."""

    name: str
    source: str = "host"
    isolation: str = ""
    setup: tuple[str, ...] = ()
    warm: str = ""
    memory: str = "1GiB"


class Trainer(Part, frozen=True, kw_only=True):
    """What waits for sandboxes, for the bill."""

    gpus: Positive = 8  # of each tenant
    price_per_gpu_hour: Annotated[float, Meta(ge=0)] = 2.5  # US dollars


class Scenario(Part, frozen=True, kw_only=True):
    """All of it."""

    description: str = ""
    base: str = ""  # a scenario, shipped or a file, whose tables stand where this one says nothing
    seed: int = 1
    generators: Annotated[int, Meta(ge=1, le=64)] = 1  # processes that ask
    maximum: Annotated[float, Meta(ge=0)] = 0.0  # sandboxes a second, where it is known: nothing measures it then
    patience: Seconds = Seconds(60)  # how long nothing at all may be heard of what is awaited
    objectives: tuple[str, ...] = ()
    fleet: Fleet = Fleet()
    phases: tuple[Phase, ...] = msgspec.field(name="phase")
    tenants: tuple[Tenant, ...] = msgspec.field(name="tenant", default=(Tenant(name="loadtest"),))
    faults: tuple[Fault, ...] = msgspec.field(name="fault", default=())
    templates: tuple[Template, ...] = msgspec.field(name="template", default=())
    trainer: Trainer = Trainer()

    @property
    def uses_commands(self) -> bool:
        """Whether anything is run in sandboxes that stay."""
        return any(phase.commands or phase.rollout.first_command for phase in self.phases)
