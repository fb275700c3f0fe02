"""What types alone do not tell of a scenario; each problem is one sentence that names the field."""

from typing import Final

from shoal.client.errors import BadRequest
from shoal.client.requests import Resources, checked
from shoal.wire.messages import Isolation
from shoal.wire.quantities import BadValueError
from shoal.wire.subjects import token
from shoal_loadtest.objectives import parse
from shoal_loadtest.scenario.model import Bursts, Closed, Constant, Phase, Poisson, Ramp, Scenario, Trace

_DRIVERS: Final = tuple(isolation.value for isolation in Isolation)
_LARGEST: Final = 100_000


def check(scenario: Scenario) -> None:
    """Raise BadValueError for the first thing that cannot be right."""
    _fleet(scenario)
    if not scenario.phases:
        raise BadValueError("phase", "there is none; write at least one [[phase]]")
    names = [phase.name for phase in scenario.phases]
    for kind, all_names in (("phase", names), ("tenant", [tenant.name for tenant in scenario.tenants])):
        for name in all_names:
            token(name, f"{kind}.name")
            if all_names.count(name) > 1:
                raise BadValueError(f"{kind}.{name}", f"there are several of this name; each {kind} has its own")
    if not scenario.tenants:
        raise BadValueError("tenant", "there is none; leave the key out, or write at least one [[tenant]]")
    known = bool(scenario.maximum)
    staying = False
    for phase in scenario.phases:
        _phase(scenario, phase, known, staying)
        known = known or phase.measures_maximum
        staying = staying or _stays(phase)
    for number, fault in enumerate(scenario.faults):
        if not fault.kill:
            raise BadValueError(f"fault.{number}.kill", "it names nothing; write such as ['scheduler', 'executor']")
        for name in fault.phases:
            if name not in names:
                raise BadValueError(
                    f"fault.{number}.phases", f"there is no phase {name!r}; there are {', '.join(names)}"
                )
    for template in scenario.templates:
        token(template.name, "template.name")
    for text in scenario.objectives:
        parse(text, names)


def _fleet(scenario: Scenario) -> None:
    fleet = scenario.fleet
    drivers = fleet.driver.split(",")
    for name in drivers:
        if name not in _DRIVERS:
            raise BadValueError("fleet.driver", f"{name!r} is no driver; use {', '.join(_DRIVERS)}")
    if len(set(drivers)) < len(drivers) or ("simulated" in drivers and len(drivers) > 1):
        raise BadValueError("fleet.driver", "each driver once, and simulated alone")
    simulated = fleet.driver == "simulated"
    for name in ("start_ms", "command_ms", "start_failures", "command_failures"):
        if getattr(fleet, name) and not simulated:
            raise BadValueError(f"fleet.{name}", "it is of simulated sandboxes only; leave it out")
    if fleet.nodes > 1 and not simulated:
        raise BadValueError("fleet.nodes", "only simulated nodes can be many; leave it out")
    if fleet.executors > 1 and not simulated:
        raise BadValueError("fleet.executors", "a machine has one executor of each real driver; leave it out")
    if simulated and fleet.nodes < fleet.executors * fleet.cells:
        raise BadValueError("fleet.nodes", f"{fleet.nodes} are fewer than one for each of the executors; give more")


def _stays(phase: Phase) -> bool:
    return phase.arrival is not None and phase.rollout.until in ("end", "replaced")


def _phase(scenario: Scenario, phase: Phase, maximum_known: bool, staying: bool) -> None:
    at = f"phase.{phase.name}"
    arrival, commands, shape = phase.arrival, phase.commands, phase.rollout
    if arrival is None and commands is None:
        raise BadValueError(f"{at}.arrival", "nothing happens in this phase; give arrival, commands or both")
    for name, process in (("arrival", arrival), ("commands.arrival", commands.arrival if commands else None)):
        if not isinstance(process, Constant | Poisson):
            continue
        if (process.rate is None) == (process.of_maximum is None):
            raise BadValueError(f"{at}.{name}", "give either rate or of_maximum")
        if process.of_maximum is not None and not maximum_known:
            raise BadValueError(
                f"{at}.{name}.of_maximum", "no earlier phase has measures_maximum = true, and maximum is not given"
            )
    endless = arrival is not None and not isinstance(arrival, Trace)
    if endless and phase.sandboxes is None and phase.seconds is None:
        raise BadValueError(f"{at}.sandboxes", "it has no end; give sandboxes or seconds")
    if isinstance(arrival, Ramp) and phase.seconds is None:
        raise BadValueError(f"{at}.seconds", "a ramp needs them, to know how steep it is")
    if commands is not None:
        if commands.total is None and phase.seconds is None:
            raise BadValueError(f"{at}.commands.total", "commands have no end; give total, or the phase seconds")
        if not staying and not _stays(phase):
            raise BadValueError(f"{at}.commands", "no sandboxes stay for them; give a rollout until = 'end' before")
        for number, kind in enumerate(commands.mix):
            if bool(kind.line) == bool(kind.python) or (kind.session and not kind.line):
                raise BadValueError(f"{at}.commands.mix.{number}", "give either line or python; a session takes lines")
        if not commands.mix:
            raise BadValueError(f"{at}.commands.mix", "it is empty")
    if shape.command and (shape.first_command or shape.until or shape.life.said != 0):
        raise BadValueError(f"{at}.rollout.command", "sandboxes end with it; leave out first_command, life and until")
    if (shape.until == "replaced") != (phase.live is not None):
        raise BadValueError(f"{at}.live", "it goes together with rollout.until = 'replaced'")
    if phase.measures_maximum and not isinstance(arrival, Closed):
        raise BadValueError(f"{at}.measures_maximum", "only a closed arrival shows what the system can do at most")
    if isinstance(arrival, Bursts) and shape.size.mean * arrival.rollouts > 10**7:
        raise BadValueError(f"{at}.arrival.rollouts", "a burst of more than ten million sandboxes")
    if shape.size.mean < 1:
        raise BadValueError(f"{at}.rollout.size", "a rollout has at least one sandbox")
    if shape.size.mean > _LARGEST:
        raise BadValueError(f"{at}.rollout.size", f"at most {_LARGEST} sandboxes fit into one rollout")
    try:
        checked(Resources, shape.memory)
    except BadRequest as error:
        raise BadValueError(f"{at}.rollout.memory", error.problem) from error
    offered = scenario.fleet.driver.split(",")
    if shape.isolation and shape.isolation not in offered:
        raise BadValueError(
            f"{at}.rollout.isolation", f"the fleet has no {shape.isolation!r}; use {', '.join(offered)}"
        )
