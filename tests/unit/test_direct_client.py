"""The shorter ways through nats-py's client say and hear what its own do."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from nats.aio.msg import Msg
from nats.errors import BadHeaderError, BadSubjectError

from shoal.broker import EmbeddedBroker
from shoal.bus.client import DirectClient, header, message_id, status


@pytest.mark.parametrize(
    ("headers", "code", "words"),
    [
        (b"NATS/1.0 503\r\n\r\n", "503", ""),
        (b"NATS/1.0 404 No Messages\r\n\r\n", "404", "No Messages"),
        (b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 7\r\n\r\n", "100", "Idle Heartbeat"),
        (b"NATS/1.0 409   Batch Completed \r\n\r\n", "409", "Batch Completed"),
        (b"NATS/1.0\r\nNats-Msg-Id: 503\r\n\r\n", "", ""),
        (b"", "", ""),
    ],
)
def test_what_the_broker_says_itself(headers: bytes, code: str, words: str) -> None:
    assert status(headers) == (code, words)


def test_a_header_is_found_by_its_whole_name() -> None:
    headers = b"NATS/1.0\r\nX-Nats-Msg-Id: no\r\nNats-Msg-Id-Too: no\r\nNats-Msg-Id:a: b \r\nEmpty:\r\n\r\n"
    assert header(headers, b"Nats-Msg-Id") == "a: b"
    assert header(headers, b"Empty") == ""
    assert header(headers, b"Nats") == ""
    assert header(b"", b"Nats-Msg-Id") == ""


@pytest.mark.parametrize(
    ("headers", "id"),
    [
        (b"NATS/1.0\r\nNats-Msg-Id: SHOAL_ROLLOUT_0:7:0\r\n\r\n", "SHOAL_ROLLOUT_0:7:0"),
        (b"NATS/1.0\r\nNats-Msg-Id:a: b \r\nNats-Other: c\r\n\r\n", "a: b"),
        (b"NATS/1.0\r\nNats-Other: c\r\nNats-Msg-Id: last\r\n\r\n", "last"),
        (b"NATS/1.0\r\nNats-Msg-Id-Too: no\r\n\r\n", ""),
        (b"NATS/1.0\r\nNats-Msg-Id:\r\n\r\n", ""),
        (b"", ""),
    ],
)
def test_what_a_message_was_published_with(headers: bytes, id: str) -> None:
    assert message_id(headers) == id == header(headers, b"Nats-Msg-Id")


@pytest.mark.broker
class TestWithABroker:
    @pytest.fixture
    def told(self) -> list[str]:
        return []

    @pytest.fixture
    async def client(self, broker: EmbeddedBroker, told: list[str]) -> AsyncIterator[DirectClient]:
        async def trouble(error: Exception) -> None:
            told.append(str(error))

        client = DirectClient()
        await client.connect(broker.url, error_cb=trouble)
        yield client
        await client.close()

    async def test_nats_py_hears_what_is_put(self, client: DirectClient) -> None:
        heard: asyncio.Queue[Msg] = asyncio.Queue()
        await client.subscribe("put.>", cb=heard.put)
        client.put("put.plain", b"one", "reply.here", None)
        client.put("put.headers", b"two\r\nlines", "", {"Nats-Msg-Id": "é: 1", "Other": ""})
        client.put("put.empty", b"", "", {"Nats-Msg-Id": "2"})
        async with asyncio.timeout(30):
            found = [await heard.get() for _ in range(3)]
        assert [(msg.subject, msg.reply, msg.data, msg.headers) for msg in found] == [
            ("put.plain", "reply.here", b"one", None),
            ("put.headers", "", b"two\r\nlines", {"Nats-Msg-Id": "é: 1", "Other": ""}),
            ("put.empty", "", b"", {"Nats-Msg-Id": "2"}),
        ]

    async def test_what_nats_py_publishes_is_heard_in_order_and_no_longer_after_the_end(
        self, client: DirectClient
    ) -> None:
        heard: asyncio.Queue[tuple[bytes, bytes, str, bytes]] = asyncio.Queue()
        listening = await client.listen(
            "heard.*",
            lambda subject, reply, headers, data: heard.put_nowait((subject, reply, header(headers, b"Id"), data)),
        )
        for number in range(50):
            await client.publish(f"heard.{number}", b"%d" % number, reply="r", headers={"Id": f"{number}"})
        await client.publish("heard.bare", b"")
        async with asyncio.timeout(30):
            found = [await heard.get() for _ in range(51)]
        expected = [(b"heard.%d" % number, b"r", f"{number}", b"%d" % number) for number in range(50)]
        assert found == [*expected, (b"heard.bare", b"", "", b"")]
        await listening.unsubscribe()
        await client.publish("heard.late", b"")
        await client.flush()
        assert heard.empty()
        assert not client._listeners

    async def test_it_is_heard_after_a_reconnect(self, client: DirectClient) -> None:
        heard: asyncio.Queue[bytes] = asyncio.Queue()
        await client.listen("again", lambda subject, reply, headers, data: heard.put_nowait(data))
        await client.force_reconnect()
        async with asyncio.timeout(30):
            while not client.is_connected:
                await asyncio.sleep(0.01)
            await client.publish("again", b"still")
            assert await heard.get() == b"still"

    async def test_a_listener_that_fails_harms_no_other(self, client: DirectClient, told: list[str]) -> None:
        heard: asyncio.Queue[bytes] = asyncio.Queue()

        def fail(subject: bytes, reply: bytes, headers: bytes, data: bytes) -> None:
            raise ValueError("it was too much")

        await client.listen("both", fail)
        await client.listen("both", lambda subject, reply, headers, data: heard.put_nowait(data))
        client.put("both", b"1", "", None)
        client.put("both", b"2", "", None)
        async with asyncio.timeout(30):
            assert [await heard.get(), await heard.get()] == [b"1", b"2"]
            while len(told) < 2:
                await asyncio.sleep(0)
        assert told == ["it was too much"] * 2

    @pytest.mark.parametrize("subject", ["", " ", "a b", "a\r\nPUB b 0", "a\tb", "a "])
    async def test_a_subject_that_would_be_another_command(self, client: DirectClient, subject: str) -> None:
        with pytest.raises(BadSubjectError):
            client.put(subject, b"", "", None)

    @pytest.mark.parametrize("value", ["a\r\nb: c", "a\nb"])
    async def test_a_header_that_would_be_two(self, client: DirectClient, value: str) -> None:
        with pytest.raises(BadHeaderError):
            client.put("a", b"", "", {"Nats-Msg-Id": value})

    async def test_without_a_connection(self, client: DirectClient) -> None:
        await client.close()
        with pytest.raises(ConnectionResetError):
            client.put("a", b"", "", None)

    async def test_when_nobody_writes_any_more(self, client: DirectClient) -> None:
        assert client._flusher_task is not None
        client._flusher_task.cancel()
        await asyncio.wait({client._flusher_task})
        with pytest.raises(ConnectionResetError):
            client.put("a", b"", "", None)


async def test_before_it_was_connected() -> None:
    with pytest.raises(ConnectionResetError):
        DirectClient().put("a", b"", "", None)
