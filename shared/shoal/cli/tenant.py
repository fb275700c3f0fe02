"""`shoal tenant`: who may submit rollouts to the cluster, and what they may have."""

from typing import TYPE_CHECKING, Final

import click

from shoal.cli.exits import Exit, Failure
from shoal.cli.interrupts import run_interruptibly
from shoal.cli.options import json_option, url_option
from shoal.cli.output import emit, say, table
from shoal.runtime.numbers import FiniteRange

if TYPE_CHECKING:
    from shoal.wire.messages import Limits

_MOST_CORES: Final = 1e12


@click.group(short_help="Say who may submit rollouts.")
def tenant() -> None:
    """Tenants of the cluster. Before the first is added, whoever comes is welcome."""


@tenant.command(short_help="Make tenants.")
@click.argument("names", nargs=-1, required=True)
@url_option
@json_option
def add(names: tuple[str, ...], url: str | None, as_json: bool) -> int:
    """Make each of NAMES a tenant. From the first one on, what others submit is rejected and put aside."""
    return _change(names, url, as_json, added=True)


@tenant.command(short_help="Unmake tenants.")
@click.argument("names", nargs=-1, required=True)
@url_option
@json_option
def rm(names: tuple[str, ...], url: str | None, as_json: bool) -> int:
    """Unmake each of NAMES: their rollouts go on, and no new one is admitted. After the last, all are welcome again."""
    return _change(names, url, as_json, added=False)


def _change(names: tuple[str, ...], url: str | None, as_json: bool, *, added: bool) -> int:
    async def work() -> int:
        from shoal.cli.connecting import connect

        async with connect(url) as cluster:
            known = () if added else await cluster.tenants()
            if unknown := [] if added else [name for name in names if name not in known]:
                which = ", ".join(map(repr, unknown))
                raise Failure(Exit.USAGE, f"there is no tenant {which}; `shoal tenant ls` lists them")
            for name in names:
                await (cluster.add_tenant(name) if added else cluster.remove_tenant(name))
                if as_json:
                    emit({"tenant": name, "added": added})
                else:
                    say(f"{name} {'is a tenant now' if added else 'is no tenant any more'}")
        return 0

    return run_interruptibly(work())


@tenant.command("set", short_help="Say what a tenant may have.")
@click.argument("name")
@click.option("--weight", type=float, help="Its part of the cluster, beside the others'. [default: 1]")
@click.option("--sandboxes", type=click.IntRange(0), help="That run at once; 0: no limit.")
@click.option("--memory", metavar="SIZE", help="Of all its sandboxes' limits; 0: no limit.")
@click.option("--cpu", type=FiniteRange(0), metavar="CORES", help="Of all its sandboxes' limits; 0: no limit.")
@click.option("--rate", type=FiniteRange(0), metavar="N", help="Sandboxes started a second; 0: no limit.")
@click.option("--waiting", type=click.IntRange(0), help="Sandboxes that may wait for room; 0: a million.")
@url_option
@json_option
def set_(
    name: str, weight: float | None, sandboxes: int | None, memory: str | None, cpu: float | None, rate: float | None,
    waiting: int | None, url: str | None, as_json: bool,
) -> int:  # fmt: skip
    """Say what tenant NAME may have over the whole cluster; what is not named stays as it was.

    Holds at once for what is given out from then on: what runs goes on.
    """

    async def work() -> int:
        import msgspec

        from shoal.cli.connecting import connect
        from shoal.client.errors import BadRequest
        from shoal.wire.messages import Limits
        from shoal.wire.quantities import parse_bytes

        given = {
            "weight": weight, "sandboxes": sandboxes, "starts_per_s": rate, "waiting": waiting,
            "memory": None if memory is None else 0 if memory == "0" else parse_bytes(memory, "memory"),
            "cpu_milli": None if cpu is None else _milli(cpu),
        }  # fmt: skip
        changed = {field: value for field, value in given.items() if value is not None}
        if not changed:
            raise BadRequest("limits", "name at least one, such as --sandboxes 1000 or --weight 2")
        async with connect(url) as cluster:
            known = (await cluster.limits()).get(name, Limits())
            limits = msgspec.structs.replace(known, **changed)
            await cluster.limit_tenant(name, limits)
        if as_json:
            emit({"tenant": name} | msgspec.structs.asdict(limits))
        else:
            say(f"{name}: {_text(limits)}")
        return 0

    return run_interruptibly(work())


def _milli(cores: float) -> int:
    """Return cores as thousandths of them. Raises BadRequest for what is no number of cores."""
    from shoal.client.errors import BadRequest

    if not cores < _MOST_CORES:  # false for NaN, too, which click takes
        raise BadRequest("cpu", f"{cores:g} cannot be used; give 0 for no limit, or a number below {_MOST_CORES:g}")
    return round(cores * 1000)


def _text(limits: "Limits | None") -> str:
    """Return limits for people."""
    from shoal.wire.quantities import format_bytes

    if limits is None:
        return "-"
    parts = [f"weight {limits.weight:g}"]
    parts += [f"at most {limits.sandboxes} sandboxes"] if limits.sandboxes else []
    parts += [f"{format_bytes(limits.memory)} of memory"] if limits.memory else []
    parts += [f"{limits.cpu_milli / 1000:g} cpus"] if limits.cpu_milli else []
    parts += [f"{limits.starts_per_s:g} starts a second"] if limits.starts_per_s else []
    parts += [f"{limits.waiting} waiting"] if limits.waiting else []
    return ", ".join(parts)


@tenant.command(short_help="List tenants.")
@url_option
@json_option
def ls(url: str | None, as_json: bool) -> int:
    """List the cluster's tenants and what they may have; apart, the limits of names that are no tenant.

    Those hold for whoever comes under such a name: while there is no tenant at all, or once it is one.
    """

    async def work() -> int:
        import msgspec

        from shoal.cli.connecting import connect

        async with connect(url) as cluster:
            found, limits = await cluster.tenants(), await cluster.limits()
        others = sorted(limits.keys() - set(found))
        if as_json:
            for name in sorted(found):
                emit({"tenant": name} | (msgspec.structs.asdict(limits[name]) if name in limits else {}))
            for name in others:
                emit({"limits_of": name} | msgspec.structs.asdict(limits[name]))
        else:
            rows = [(name, _text(limits.get(name))) for name in sorted(found)]
            table(("tenant", "limits"), rows, empty="no tenant was named: whoever comes is welcome")
            if others:
                table(("no tenant", "limits"), [(name, _text(limits[name])) for name in others], empty="")
        return 0

    return run_interruptibly(work())
