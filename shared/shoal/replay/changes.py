"""What if: changes to recorded demand and fleets, written as `name=value`, `name+=value` or `name*=value`."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, islice
from typing import Final

import msgspec

from shoal.replay.demand import Demand, Group, Machine
from shoal.wire import messages as m, subjects
from shoal.wire.quantities import BadValueError

_CHANGE: Final = re.compile(r"([a-z_]+(?:\.[A-Za-z0-9_\-]+)*)\s*(\+=|\*=|-=|=)\s*(\S+)")
KNOWN: Final = {
    "scheduler.order, scheduler.quota, placement.policy": "a policy by name, a bound: =",
    "nodes": "how many there are: = += -= *=; those added are like those there were",
    "slots": "of each node: = += -= *=",
    "start_ms": "how long a machine takes for a start: = *=",
    "cells": "partitions of the control plane, over which nodes and rollouts are divided anew: =",
    "arrivals": "how fast rollouts come: *=2 is twice as fast",
    "rollouts": "how many times each is asked for, a whole number: *=",
    "busy": "how long sandboxes are busy: *=",
    "tenant.NAME.weight, .sandboxes, .starts_per_s": "what a tenant may have: =",
}
"""What can be changed, for people."""
_MOST_NODES: Final = 100_000
_MOST_SLOTS: Final = 1_000_000
_MOST_TIMES: Final = 10_000
_LONGEST_MS: Final = 86_400_000
_LIMITS: Final = {"weight": (0.001, 1000), "sandboxes": (0, 10**9), "starts_per_s": (0, 10**9)}
"""What the scheduler takes."""


def changed(demand: Demand, changes: Sequence[str]) -> Demand:
    """Return the demand with changes. Raises BadValueError, which names the one and says what would be right."""
    for text in changes:
        match = _CHANGE.fullmatch(text.strip())
        if match is None:
            raise BadValueError("set", f"{text!r} is no change; write NAME=VALUE, NAME+=VALUE or NAME*=VALUE")
        name, operator, value = match.groups()
        demand = _change(demand, text, name, operator, value)
    return demand


def _change(demand: Demand, text: str, name: str, operator: str, value: str) -> Demand:
    head, _, rest = name.partition(".")
    match head:
        case "scheduler" | "placement" if rest and operator == "=":
            settings = {**demand.settings, head: {**demand.settings.get(head, {}), rest: value}}
            return replace(demand, settings=settings)
        case "nodes":
            there = sum(len(machine.nodes) for machine in demand.machines)
            return _with_nodes(demand, int(_within(text, _number(text, operator, value, there), 1, _MOST_NODES)))
        case "slots":
            return _each_node(demand, text, operator, value)
        case "start_ms" if operator in ("=", "*="):
            machines = tuple(
                replace(each, start_ms=_within(text, _number(text, operator, value, each.start_ms), 0, _LONGEST_MS))
                for each in demand.machines
            )
            return replace(demand, machines=machines)
        case "cells" if operator == "=":
            return _with_cells(demand, int(_within(text, _number(text, operator, value, 0), 1, 10_000)))
        case "arrivals" if operator == "*=":
            speed = _factor(text, value)
            return replace(
                demand,
                groups=tuple(replace(group, at_ms=int(group.at_ms / speed)) for group in demand.groups),
                told=tuple((int(at / speed), service, message) for at, service, message in demand.told),
            )
        case "rollouts" if operator == "*=":
            times = _within(text, _number(text, "=", value, 0), 1, _MOST_TIMES)
            if times != int(times):
                raise BadValueError("set", f"{text!r}: {value} is no whole number")
            return _scaled(demand, int(times))
        case "busy" if operator == "*=":
            factor = _factor(text, value)
            groups = tuple(
                replace(group, busy_ms=tuple(int(each * factor) for each in group.busy_ms)) for group in demand.groups
            )
            return replace(demand, groups=groups)
        case "tenant" if operator == "=" and rest.count(".") == 1:
            tenant, _, field = rest.partition(".")
            return _limited(demand, text, tenant, field, value)
    known = "; ".join(f"{names}: {what}" for names, what in KNOWN.items())
    raise BadValueError("set", f"{text!r} changes nothing that is known; there are: {known}")


def _number(text: str, operator: str, value: str, known: float) -> float:
    try:
        number = float(value)
    except ValueError:
        raise BadValueError("set", f"{text!r}: {value} is not a number") from None
    return {"=": number, "+=": known + number, "-=": known - number, "*=": known * number}[operator]


def _within(text: str, number: float, least: float, most: float) -> float:
    if not least <= number <= most:  # nan is not, either
        raise BadValueError("set", f"{text!r} comes to {number:g}; it can be from {least:,} to {most:,}")
    return number


def _factor(text: str, value: str) -> float:
    return _within(text, _number(text, "=", value, 0), 1e-6, 1e6)


def _with_nodes(demand: Demand, wanted: int) -> Demand:
    """Return it with so many nodes: the last ones are left out, or others are added that are like those there were."""
    machines: list[Machine] = []
    left = wanted
    for machine in demand.machines:
        if left:
            machines.append(replace(machine, nodes=machine.nodes[:left]))
            left -= len(machines[-1].nodes)
    taken = {each.executor for each in demand.machines}
    taken |= {node.node for each in demand.machines for node in each.nodes}
    names = _names("added-", 0, taken)
    for number in range(left):
        like, name = demand.machines[number % len(demand.machines)], next(names)
        spec = msgspec.structs.replace(like.nodes[number % len(like.nodes)], node=name)
        machines.append(replace(like, executor=name, nodes=(spec,), from_ms=0, until_ms=-1))
    return replace(demand, machines=tuple(machines))


def _each_node(demand: Demand, text: str, operator: str, value: str) -> Demand:
    def node(spec: m.NodeSpec) -> m.NodeSpec:
        slots = int(_within(text, _number(text, operator, value, spec.slots), min(spec.slots, 1), _MOST_SLOTS))
        memory = spec.memory * slots // spec.slots if spec.slots else spec.memory
        return msgspec.structs.replace(spec, slots=slots, memory=memory)

    machines = tuple(replace(each, nodes=tuple(node(spec) for spec in each.nodes)) for each in demand.machines)
    return replace(demand, machines=machines)


def _with_cells(demand: Demand, cells: int) -> Demand:
    machines = tuple(replace(each, cell=number % cells) for number, each in enumerate(demand.machines))
    groups = tuple(replace(each, cell=subjects.cell_of(each.rollout, cells)) for each in demand.groups)
    return replace(demand, machines=machines, groups=groups, cells=cells)


def _scaled(demand: Demand, times: int) -> Demand:
    taken = {group.rollout for group in demand.groups}

    def copies(group: Group) -> Iterator[Group]:
        yield group
        names = _names(f"{group.rollout}x", 1, taken)
        for name in islice(names, times - 1):
            yield replace(group, rollout=name, cell=subjects.cell_of(name, demand.cells))

    return replace(demand, groups=tuple(copy for group in demand.groups for copy in copies(group)))


def _names(begin: str, first: int, taken: set[str]) -> Iterator[str]:
    """Yield names that nobody has yet: another change may have made some like them."""
    for number in count(first):
        name = f"{begin}{number}"
        if name not in taken:
            taken.add(name)
            yield name


def _limited(demand: Demand, text: str, tenant: str, field: str, value: str) -> Demand:
    known = m.Limits()
    for _, _, message in demand.told:
        if isinstance(message, m.TenantLimited) and message.tenant == tenant:
            known = message.limits
    if field not in _LIMITS:
        raise BadValueError("set", f"{text!r}: a tenant has a weight, sandboxes and starts_per_s")
    number = _within(text, _number(text, "=", value, 0), *_LIMITS[field])
    limits = msgspec.structs.replace(known, **{field: int(number) if field == "sandboxes" else number})
    told = tuple(
        each for each in demand.told if not (isinstance(each[2], m.TenantLimited) and each[2].tenant == tenant)
    )
    return replace(demand, told=((0, "scheduler", m.TenantLimited(tenant, limits, 1)), *told))
