"""`shoal tenant ls`: who is a tenant, apart from who only has limits."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from shoal.cli.__main__ import run
from shoal.cli.exits import Exit
from shoal.client import tenants
from shoal.client.link import Link
from shoal.wire.messages import Limits

LIMITS = {"research": Limits(weight=2.0, sandboxes=5), "zoo": Limits(sandboxes=7)}


class Cluster:
    """One that knows of these tenants, and of limits."""

    def __init__(self, tenants: list[str]) -> None:
        self._tenants = tenants

    async def tenants(self) -> list[str]:
        return self._tenants

    async def limits(self) -> dict[str, Limits]:
        return LIMITS


def connected(monkeypatch: pytest.MonkeyPatch, tenants: list[str]) -> None:
    @asynccontextmanager
    async def connect(_url: str | None) -> AsyncIterator[Cluster]:
        yield Cluster(tenants)

    monkeypatch.setattr("shoal.client.cluster.connect", connect)


def test_a_tenant_that_is_none_is_not_unmade(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    connected(monkeypatch, ["acme"])
    assert run(["tenant", "rm", "acme", "nosuch"]) == Exit.USAGE
    assert "there is no tenant 'nosuch'; `shoal tenant ls` lists them" in capsys.readouterr().err


def listed(monkeypatch: pytest.MonkeyPatch, tenants: list[str], *options: str) -> None:
    connected(monkeypatch, tenants)
    assert run(["tenant", "ls", *options]) == 0


def test_one_that_was_removed_is_no_tenant(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    listed(monkeypatch, ["acme", "zoo"])
    tenants, others = capsys.readouterr().out.split("no tenant")
    assert [line.split()[0] for line in tenants.split("─")[-1].splitlines() if line.strip()] == ["acme", "zoo"]
    assert "at most 7 sandboxes" in tenants
    assert "research" in others
    assert "at most 5 sandboxes" in others


def test_without_any_all_are_welcome_and_limits_hold(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listed(monkeypatch, [])
    out, err = capsys.readouterr()
    assert "whoever comes is welcome" in err
    assert out.split()[0:2] == ["no", "tenant"]
    assert "research" in out


def test_programs_can_tell_them_apart(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    listed(monkeypatch, ["acme", "zoo"], "--json")
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(each.get("tenant"), each.get("limits_of"), each.get("sandboxes")) for each in found] == [
        ("acme", None, None),
        ("zoo", None, 7),
        (None, "research", 5),
    ]


@pytest.mark.parametrize(
    ("option", "value", "field"),
    [
        ("--cpu", "nan", "'--cpu'"),
        ("--cpu", "inf", "'--cpu'"),
        ("--cpu", "1e308", "cpu"),
        ("--rate", "nan", "'--rate'"),
        ("--rate", "inf", "'--rate'"),
        ("--rate", "1e308", "starts_per_s"),
        ("--weight", "nan", "weight"),
        ("--sandboxes", str(2**60), "sandboxes"),
        ("--waiting", str(2**70), "waiting"),
    ],
)
def test_limits_that_no_scheduler_takes_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str, value: str, field: str
) -> None:
    class Real(Cluster):
        async def limit_tenant(self, name: str, limits: Limits) -> None:
            await tenants.limit(cast("Link", None), name, limits)  # says what is wrong before it looks for a link

    @asynccontextmanager
    async def connect(_url: str | None) -> AsyncIterator[Cluster]:
        yield Real([])

    monkeypatch.setattr("shoal.client.cluster.connect", connect)
    assert run(["tenant", "set", "a", option, value]) == 2
    assert f"{field}: " in capsys.readouterr().err
