"""What cannot be sent as text is refused where it is given, and says which of many it is."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import shoal
from unit.client_fabric import Fabric, all_ready

BAD = "a\udcff"


@pytest.mark.parametrize(
    ("field", "ask"),
    [
        ("command", lambda _, sandbox: sandbox.run(BAD)),
        ("command", lambda _, sandbox: sandbox.run(["echo", BAD])),
        ("command", lambda _, sandbox: sandbox.run(BAD, session=True)),
        ("env", lambda _, sandbox: sandbox.run("true", env={"A": BAD})),
        ("env", lambda _, sandbox: sandbox.run("true", env={BAD: "a"})),
        ("code", lambda _, sandbox: sandbox.python(BAD)),
        ("env", lambda _, sandbox: sandbox.python("1", env={"A": BAD})),
        ("env", lambda cluster, _: cluster.map("host", ["true"], env={"A": BAD})),
        ("template", lambda cluster, _: cluster.map(BAD, ["true"])),
        ("template", lambda cluster, _: cluster.rollout(BAD)),
        ("warm", lambda cluster, _: cluster.rollout("host", warm=BAD)),
        ("labels", lambda cluster, _: cluster.rollout("host", labels={"zone": BAD})),
        ("labels", lambda cluster, _: cluster.rollout("host", labels={BAD: "a"})),
        ("commands", lambda cluster, _: cluster.rollout("host", commands=["true", BAD])),
        ("command", lambda cluster, _: cluster.submit("host", command=BAD)),
        ("env", lambda cluster, _: cluster.submit("host", env={"A": BAD})),
        ("source", lambda cluster, _: cluster.build_template("t", f"dir:/{BAD}")),
        ("setup", lambda cluster, _: cluster.build_template("t", "host", setup=["true", BAD])),
        ("warm", lambda cluster, _: cluster.build_template("t", "host", warm=BAD)),
        ("env", lambda cluster, _: cluster.build_template("t", "host", env={"A": BAD})),
        ("rollout", lambda cluster, _: cluster.attach(BAD)),
        ("rollout", lambda cluster, _: cluster.attach(None)),
        ("rollout", lambda cluster, _: cluster.cancel(BAD)),
        ("sandbox", lambda cluster, _: anext(cluster.story(f"{BAD}-0"))),
        ("snapshot", lambda cluster, _: cluster.pin_snapshot(BAD)),
        ("snapshot", lambda cluster, _: cluster.remove_snapshot(BAD)),
    ],
)
async def test_half_of_a_surrogate_pair_is_refused_by_the_name_of_its_field(
    field: str, ask: Callable[[shoal.Cluster, shoal.Sandbox], Awaitable[object]]
) -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        async with cluster.rollout("host") as rollout:
            sandbox = await anext(rollout.ready())
            with pytest.raises(shoal.BadRequest) as told:
                await ask(cluster, sandbox)
            assert told.value.field == field
            str(told.value).encode()  # it can be printed


async def test_in_a_run_it_is_refused_too() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster, cluster.resume("r") as run:
        for ask, field in ((lambda: run.rollout("host", key=BAD), "key"), (lambda: run.attach(BAD), "rollout")):
            with pytest.raises(shoal.BadRequest) as told:
                await ask()
            assert told.value.field == field


async def opened(opening: Awaitable[object]) -> object:
    return await opening


async def test_of_many_commands_it_is_said_which_is_wrong() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        for wrong in (BAD, "", 7):
            commands: list[Any] = ["true", "true", wrong]
            for ask in (cluster.map("host", commands), opened(cluster.rollout("host", commands=commands))):
                with pytest.raises(shoal.BadRequest, match="commands: the command of number 2: ") as told:
                    await ask
                assert told.value.field == "commands"
        with pytest.raises(shoal.BadRequest, match="command_timeout"):
            await cluster.map("host", ["true"], command_timeout="soon")
        with pytest.raises(shoal.BadRequest, match="commands"):
            await cluster.map("host", None)  # type: ignore[arg-type]  # as somebody may
