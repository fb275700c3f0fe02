"""`shoal node`, on a cluster that is made up."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from shoal.cli.__main__ import run
from shoal.cli.connecting import connect as connect_
from shoal.cli.exits import Exit
from shoal.client.results import NodeInfo


def node(name: str, state: str = "alive", live: int = 0) -> NodeInfo:
    return NodeInfo(name, "e", "zygote", state, 8, 2**30, live, 0, 1)


class Cluster:
    """One whose nodes are these, one list after the other; the last stays."""

    def __init__(self, *lists: Sequence[NodeInfo]) -> None:
        self._lists = list(lists)
        self.told: list[tuple[str, bool]] = []

    async def nodes(self) -> Sequence[NodeInfo]:
        return self._lists.pop(0) if len(self._lists) > 1 else self._lists[0]

    async def drain(self, name: str, *, hibernate: bool = False) -> None:
        self.told.append((name, True))

    async def undrain(self, name: str) -> None:
        self.told.append((name, False))


def of(monkeypatch: pytest.MonkeyPatch, cluster: Cluster) -> Cluster:
    @asynccontextmanager
    async def connect(_url: str | None) -> AsyncIterator[Cluster]:
        yield cluster

    monkeypatch.setattr("shoal.client.cluster.connect", connect)
    return cluster


def test_a_node_that_went_to_another_executor_is_drained_though_it_has_two_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    both = [node("m1", "silent", live=3), node("m1", live=2)]
    cluster = of(monkeypatch, Cluster(both, both, [node("m1", "silent", live=3), node("m1")]))
    assert run(["node", "drain", "m1"]) == Exit.OK
    assert cluster.told == [("m1", True)]
    assert "2 sandboxes still run there" in capsys.readouterr().err


async def test_a_connection_that_does_not_close_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @asynccontextmanager
    async def connect(_url: str | None) -> AsyncIterator[Cluster]:
        yield Cluster([])
        await asyncio.Event().wait()

    monkeypatch.setattr("shoal.client.cluster.connect", connect)
    async with asyncio.timeout(30):
        async with connect_("nats://127.0.0.1:1", close_s=0.01):
            pass
    assert "is left as it is" in capsys.readouterr().err


def test_undrain_of_what_never_was_a_node(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = of(monkeypatch, Cluster([node("m1", "drained")]))

    async def drained(_url: str | None) -> set[str]:
        return {"gone"}

    monkeypatch.setattr("shoal.cli.nodes._drained", drained)
    assert run(["node", "undrain", "nosuch"]) == Exit.USAGE
    assert "there is no node 'nosuch'" in capsys.readouterr().err
    assert [run(["node", "undrain", name]) for name in ("m1", "gone")] == [Exit.OK, Exit.OK]
    assert cluster.told == [("m1", False), ("gone", False)]
