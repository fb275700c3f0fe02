"""What trainers may write by mistake: refused where it is written, by its name; nothing of it is sent."""

from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest

import shoal
from shoal.wire.messages import Command
from unit.client_fabric import Fabric, all_ready


class Name(str):
    """As numpy has them; what encodes messages takes none but plain ones."""

    __slots__ = ()


@pytest.fixture
async def fabric() -> AsyncIterator[Fabric]:
    async with Fabric(all_ready) as fabric:
        yield fabric


@pytest.fixture
async def cluster(fabric: Fabric) -> AsyncIterator[shoal.Cluster]:
    async with shoal.connect(bus=fabric.connect()) as cluster:
        yield cluster


async def refused(work: Awaitable[object], field: str) -> None:
    with pytest.raises(shoal.BadRequest) as caught:
        await work
    assert caught.value.field == field
    assert caught.value.problem


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("user", 1000), ("user", None), ("user", "a\0"), ("user", "\ud800"),
        ("isolation", None), ("isolation", 1),
        ("labels", "zone"), ("labels", [("zone", "a")]), ("labels", {"zone": 1}),
        ("spread_over", None), ("hedge", "no"), ("gang", 3),
        ("env", ["A=B"]), ("env", {"A": 1}),
        ("files", ["a"]), ("files", {5: b"x"}), ("files", {"n": 5}), ("files", {"n": [1]}), ("files", {"n": None}),
        ("resources", {"memory": "1GiB"}),
        ("command", 5), ("commands", 5), ("commands", ["a", None]), ("command", Command(line="x", cwd=5)),  # type: ignore[arg-type]  # it is wrong
    ],
)  # fmt: skip
async def test_a_rollout_that_no_service_could_read_is_not_sent(
    cluster: shoal.Cluster, fabric: Fabric, field: str, given: Any
) -> None:
    wanted = "commands" if isinstance(given, Command) else field
    await refused(cluster.submit("host", **{field: given}), wanted)
    assert fabric.broker.messages("SHOAL_ROLLOUT_0") == []


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("cwd", None), ("cwd", 5), ("cwd", "a\0b"),
        ("user", 1000), ("user", None), ("stdin", 7), ("stdin", [1]), ("stdin", "\ud800"),
        ("session", 0), ("session", None), ("idempotent", 1), ("idempotent", None),
        ("env", "A=B"), ("id", 7), ("id", "a\nb"), ("id", ""),
    ],
)  # fmt: skip
async def test_a_command_that_no_executor_could_read_is_not_sent(
    cluster: shoal.Cluster, fabric: Fabric, field: str, given: Any
) -> None:
    sandbox = await anext((await cluster.rollout("host")).ready())
    await refused(sandbox.run("x", **{field: given}), field)
    if field in ("cwd", "env", "idempotent", "id"):
        await refused(sandbox.python("x", **{field: given}), field)
    assert fabric.broker.messages("SHOAL_EXECUTOR_e1") == []


async def test_what_is_no_content_of_a_file_is_not_written(cluster: shoal.Cluster, fabric: Fabric) -> None:
    files = (await anext((await cluster.rollout("host")).ready())).files
    wrong: Any
    for wrong in (42, None, [1, 2], True, "\ud800"):
        await refused(files.write("answer", wrong), "data")
    for wrong in (5, None, b"a", "", "a\0", "\ud800"):
        await refused(files.read(wrong), "path")
        await refused(files.write(wrong, "x"), "path")
    await refused(files.write("a", "x", idempotent=1), "idempotent")  # type: ignore[arg-type]  # it is wrong
    await refused(files.write("a", "x", mode="644"), "mode")  # type: ignore[arg-type]  # it is wrong
    assert fabric.broker.messages("SHOAL_EXECUTOR_e1") == []
    for right in (b"42", bytearray(b"42"), memoryview(b"42"), "42"):
        await files.write("answer", right)  # type: ignore[arg-type]  # all that has bytes is taken
        assert await files.read("answer") == "42"


async def test_what_else_is_told_to_the_cluster(cluster: shoal.Cluster, fabric: Fabric) -> None:
    sandbox = await anext((await cluster.rollout("host")).ready())
    before = {name: len(fabric.broker.messages(name)) for name in ("SHOAL_ROLLOUT_0", "SHOAL_EXECUTOR_e1")}
    limits: Any
    for field, limits in (
        ("limits", {"sandboxes": 3}), ("weight", shoal.Limits("2")), ("weight", shoal.Limits(True)),  # type: ignore[arg-type]  # they are wrong
        ("sandboxes", shoal.Limits(sandboxes=1.5)), ("memory", shoal.Limits(memory="1GiB")),  # type: ignore[arg-type]  # they are wrong
        ("starts_per_s", shoal.Limits(starts_per_s=float("nan"))), ("waiting", shoal.Limits(waiting=-1)),
    ):  # fmt: skip
        await refused(cluster.limit_tenant("a", limits), field)
    await refused(cluster.drain(5), "node")  # type: ignore[arg-type]  # it is wrong
    await refused(cluster.drain("n1", hibernate=1), "hibernate")  # type: ignore[arg-type]  # it is wrong
    await refused(cluster.pin_snapshot("a", pinned=1), "pinned")  # type: ignore[arg-type]  # it is wrong
    await refused(sandbox.snapshot(memory="yes"), "memory")  # type: ignore[arg-type]  # it is wrong
    await refused(sandbox.snapshot(5), "name")  # type: ignore[arg-type]  # it is wrong
    await refused(cluster.build_template("t", "host", setup=None), "setup")  # type: ignore[arg-type]  # it is wrong
    after = {name: len(fabric.broker.messages(name)) for name in before}
    assert before == after
    assert fabric.broker.messages("SHOAL_PLACEMENT_0") == fabric.broker.messages("SHOAL_SNAPSHOT") == []
    assert await cluster.limits() == {}


async def test_what_is_a_str_of_another_kind_is_taken(cluster: shoal.Cluster, fabric: Fabric) -> None:
    name = Name("nobody")
    sandbox = await anext((await cluster.rollout("host", user=name)).ready())
    await sandbox.run("x", user=name)
    await sandbox.files.write(Name("answer"), Name("42"))
    assert await sandbox.files.read(Name("answer")) == "42"
    assert [command.command.user for command in fabric.commands] == [sandbox.rollout.spec.user] == ["nobody"]


@pytest.mark.parametrize(("field", "given"), [("stdin", "x"), ("stdin", b""), ("user", "nobody")])
async def test_a_line_for_the_session_has_no_input_and_no_user_of_its_own(
    cluster: shoal.Cluster, fabric: Fabric, field: str, given: Any
) -> None:
    sandbox = await anext((await cluster.rollout("host")).ready())
    await refused(sandbox.run("x", session=True, **{field: given}), field)
    assert fabric.broker.messages("SHOAL_EXECUTOR_e1") == []


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"/": b""}, "directory"), ({"a/": b""}, "directory"), ({".": b""}, "directory"), ({"x/..": b""}, "directory"),
        ({"x" * 256: b""}, "255 bytes"), ({"a/" + "\u00e9" * 128: b""}, "255 bytes"), ({"": b""}, "empty"),
        ({"a": b"", "a/b/c": b""}, "'a/b/c' is below 'a'"), ({"/x/./a/b": b"", "/x/a": b""}, "is below '/x/a'"),
    ],
)  # fmt: skip
async def test_a_file_that_no_sandbox_could_be_given_is_not_sent(
    cluster: shoal.Cluster, fabric: Fabric, files: dict[str, bytes], told: str
) -> None:
    with pytest.raises(shoal.BadRequest, match=told):
        await cluster.submit("host", files=files)
    assert fabric.broker.messages("SHOAL_ROLLOUT_0") == []
    await cluster.submit("host", files={"a": b"", "ab/c": b"", "x" * 255: b"", "/a/b": b""})
