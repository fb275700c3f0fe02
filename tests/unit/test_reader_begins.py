"""A reader that begins while most servers of a cluster are away."""

import asyncio
from typing import Any

import pytest

from conformance.bus import Log, take
from shoal.broker import EmbeddedBroker
from shoal.bus.connection import Connection
from shoal.bus.jetstream import JetStreamBus
from shoal.bus.protocol import UnreachableError

pytestmark = pytest.mark.broker


@pytest.mark.parametrize("what", ["STREAM.INFO", "CONSUMER.CREATE"])
@pytest.mark.parametrize("clustered", [True, False])
async def test_it_waits_for_them_as_those_do_that_follow_already(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch, what: str, clustered: bool
) -> None:
    bus = await JetStreamBus.connect(broker.url)
    log = Log()
    await bus.ensure([log.stream])
    ask, away = bus._api.ask, 3

    async def asked(of: str, *given: Any, **named: Any) -> dict[str, Any]:
        nonlocal away
        if of.startswith(what) and away:
            away -= 1
            raise UnreachableError("the broker does not answer")
        return await ask(of, *given, **named)

    monkeypatch.setattr(bus._api, "ask", asked)
    monkeypatch.setattr(Connection, "clustered", clustered)
    if clustered:
        reader = await asyncio.wait_for(bus.reader(log.name, after=None), 10)
        await bus.publish(log.subject(), b"x", "1")
        assert [each.payload for each in await take(reader, 1)] == [b"x"]
    else:
        with pytest.raises(UnreachableError):
            await bus.reader(log.name, after=None)
    await bus.close()
