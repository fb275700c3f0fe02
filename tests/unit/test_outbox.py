import asyncio
import json
from collections.abc import AsyncIterator, Mapping

import pytest
from nats.errors import OutboundBufferLimitError

from shoal.bus.outbox import Outbox
from shoal.bus.protocol import (
    BusError,
    NoStreamError,
    PublishTimeoutError,
    Stored,
    StreamFullError,
    TooLargeError,
    UnreachableError,
)
from shoal.bus.refusals import WrongLastError


class FakeTransport:
    """Records what is sent; `answer` says how the broker behaves."""

    def __init__(self) -> None:
        self.ready = True
        self.max_payload = 1000
        self.sent: list[tuple[str, int, str]] = []  # subject, number, id
        self.fail_next: Exception | None = None

    def send(self, subject: str, payload: bytes, reply: str, headers: Mapping[str, str] | None) -> None:
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        self.sent.append((subject, int(reply.rsplit(".", 1)[1]), (headers or {}).get("Nats-Msg-Id", "")))

    @property
    def ids(self) -> list[str]:
        return [id for _, _, id in self.sent]


@pytest.fixture
def transport() -> FakeTransport:
    return FakeTransport()


@pytest.fixture
async def outbox(transport: FakeTransport) -> AsyncIterator[Outbox]:
    outbox = Outbox(transport, "inbox", in_flight=4, no_stream_patience_s=0.15)
    yield outbox
    await outbox.close(0)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def until_sent(transport: FakeTransport, count: int) -> None:
    async with asyncio.timeout(10):
        while len(transport.sent) < count:
            await asyncio.sleep(0.005)


def confirm(outbox: Outbox, number: int, sequence: int = 1, duplicate: bool = False) -> None:
    outbox.replied(number, "", json.dumps({"stream": "S", "seq": sequence, "duplicate": duplicate}).encode())


def refuse(outbox: Outbox, number: int, code: int, err_code: int, description: str) -> None:
    error = {"code": code, "err_code": err_code, "description": description}
    outbox.replied(number, "", json.dumps({"error": error, "stream": "S", "seq": 0}).encode())


async def test_what_is_forbidden_fails_and_the_rest_of_its_stream_goes_on(
    outbox: Outbox, transport: FakeTransport
) -> None:
    futures = [outbox.publish(subject, b"", subject) for subject in ("s.t.A", "s.t.b", "s.t.A", "s.t.c")]
    await settle()
    assert transport.ids == ["s.t.A"]
    assert outbox.forbidden(lambda subject: BusError(subject) if subject == "s.t.A" else None)
    await until_sent(transport, 2)
    confirm(outbox, 2, 1)
    await until_sent(transport, 3)
    confirm(outbox, 4, 2)
    heard = await asyncio.gather(*futures, return_exceptions=True)
    assert [isinstance(one, Stored) for one in heard] == [False, True, False, True]
    assert transport.ids == ["s.t.A", "s.t.b", "s.t.c"]
    assert not outbox.forbidden(lambda subject: BusError(subject) if subject == "s.t.A" else None)
    assert outbox.outstanding == 0


async def test_a_confirmation_resolves_its_own_future(outbox: Outbox, transport: FakeTransport) -> None:
    one, two = outbox.publish("a", b"", "1"), outbox.publish("b", b"", "2")
    await settle()
    confirm(outbox, 2, 7, duplicate=True)
    assert two.result() == Stored("S", 7, True)
    assert not one.done()
    confirm(outbox, 1, 8)
    assert one.result() == Stored("S", 8, False)
    assert outbox.outstanding == 0


async def test_no_more_under_way_than_the_bound_and_the_rest_in_order(outbox: Outbox, transport: FakeTransport) -> None:
    futures = [outbox.publish("s", b"", str(n)) for n in range(1, 11)]
    await settle()
    assert transport.ids == ["1"]  # whether the stream is there is not known yet
    confirm(outbox, 1, 1)
    await settle()
    assert transport.ids == ["1", "2", "3", "4", "5"]
    for number in range(2, 11):
        confirm(outbox, number, number)
        await settle()
    assert transport.ids == [str(n) for n in range(1, 11)]
    assert [future.result().sequence for future in futures] == list(range(1, 11))


async def test_bytes_are_bounded_too(transport: FakeTransport) -> None:
    transport.max_payload = 64 * 1024**2
    outbox = Outbox(transport, "inbox")
    futures = [outbox.publish("s", bytes(20 * 1024**2), str(n)) for n in range(5)]
    await settle()
    confirm(outbox, 1)
    await settle()
    assert len(transport.sent) == 3
    confirm(outbox, 2)
    await settle()
    assert len(transport.sent) == 4
    for future in futures:
        future.cancel()
    await outbox.close(0)


async def test_after_a_lost_connection_everything_is_sent_again_in_order(
    outbox: Outbox, transport: FakeTransport
) -> None:
    futures = [outbox.publish("s", b"", str(n)) for n in range(1, 7)]
    await settle()
    confirm(outbox, 1, 1)
    await settle()
    transport.ready = False
    outbox.interrupted()
    late = outbox.publish("s", b"", "7")
    await settle()
    del transport.sent[:]
    transport.ready = True
    outbox.resume()
    await settle()
    assert transport.ids == ["2"]
    for number in (2, 3, 4, 5, 6, 7):
        confirm(outbox, number, number)
        await settle()
    assert transport.ids == ["2", "3", "4", "5", "6", "7"]
    assert all(future.done() for future in (*futures, late))


async def test_a_message_without_an_answer_is_sent_again_with_its_id(transport: FakeTransport) -> None:
    outbox = Outbox(transport, "inbox", resend_s=0.1)
    future = outbox.publish("s", b"", "same")
    await until_sent(transport, 3)
    assert set(transport.ids) == {"same"}
    confirm(outbox, 1)
    assert (await future).sequence == 1
    await outbox.close(0)


async def test_the_deadline_holds_with_or_without_a_connection(transport: FakeTransport) -> None:
    outbox = Outbox(transport, "inbox", deadline_s=0.2, in_flight=1)
    sent, waiting = outbox.publish("s", b"", "1"), outbox.publish("s", b"", "2")
    for future in (sent, waiting):
        with pytest.raises(PublishTimeoutError, match=r"within 0\.2 s"):
            await future
    transport.ready = False
    with pytest.raises(PublishTimeoutError):
        await outbox.publish("s", b"", "3")
    assert outbox.outstanding == 0
    await outbox.close(0)


@pytest.mark.parametrize(
    ("code", "err_code", "description", "expected"),
    [
        (503, 10077, "maximum bytes exceeded", StreamFullError),
        (503, 10077, "maximum messages exceeded", StreamFullError),
        (500, 10047, "insufficient storage resources available", StreamFullError),
        (400, 10054, "message size exceeds maximum allowed", TooLargeError),
        (400, 10071, "wrong last sequence: 4", WrongLastError),
        (400, 10060, "expected stream does not match", BusError),
    ],
)
async def test_what_the_broker_refuses_for_good(
    outbox: Outbox, code: int, err_code: int, description: str, expected: type[BusError]
) -> None:
    future = outbox.publish("s", b"", "1")
    await settle()
    refuse(outbox, 1, code, err_code, description)
    with pytest.raises(expected):
        await future
    assert outbox.outstanding == 0


@pytest.mark.parametrize(
    ("code", "err_code", "description"),
    [
        (429, 10167, "too many requests"),
        (503, 10008, "temporarily unavailable"),
        (503, 10077, "store is closed"),
        (409, 10158, "duplicate message id is in process"),
        (503, 0, "raft: not leader"),
    ],
)
async def test_what_the_broker_refuses_for_now_is_tried_again(
    outbox: Outbox, transport: FakeTransport, code: int, err_code: int, description: str
) -> None:
    future = outbox.publish("s", b"", "1")
    await settle()
    refuse(outbox, 1, code, err_code, description)
    await until_sent(transport, 2)
    assert transport.ids == ["1", "1"]
    confirm(outbox, 1)
    assert (await future).stream == "S"


async def test_nobody_responds(outbox: Outbox, transport: FakeTransport) -> None:
    future = outbox.publish("nobody", b"", "1")
    count = 0
    async with asyncio.timeout(10):
        while not future.done():
            if len(transport.sent) > count:
                count = len(transport.sent)
                outbox.replied(1, "503", b"")
            await asyncio.sleep(0.01)
    assert count > 1
    with pytest.raises(NoStreamError, match="no stream keeps nobody"):
        await future


async def test_a_copy_of_what_is_not_stored_yet_is_no_confirmation(outbox: Outbox, transport: FakeTransport) -> None:
    future = outbox.publish("s", b"", "1")
    await settle()
    confirm(outbox, 1, 0, duplicate=True)
    await until_sent(transport, 2)
    confirm(outbox, 1, 4, duplicate=True)
    assert (await future).sequence == 4


class TestOrder:
    """One stream's messages are stored in call order though its leader comes and goes; other streams do not wait."""

    @pytest.fixture
    async def outbox(self, transport: FakeTransport) -> AsyncIterator[Outbox]:
        outbox = Outbox(transport, "inbox", in_flight=100, no_stream_patience_s=0.15)
        yield outbox
        await outbox.close(0)

    async def flowing(self, outbox: Outbox, transport: FakeTransport, *subjects: str) -> None:
        for number, subject in enumerate(subjects, 1):
            outbox.publish(subject, b"", f"first-{subject}")
            await settle()
            confirm(outbox, number, 1)
        del transport.sent[:]

    async def test_refused_ones_wait_for_the_oldest_of_them(self, outbox: Outbox, transport: FakeTransport) -> None:
        await self.flowing(outbox, transport, "s")
        futures = [outbox.publish("s", b"", str(n)) for n in range(2, 8)]
        await settle()
        assert transport.ids == ["2", "3", "4", "5", "6", "7"]
        for number in (4, 5, 6, 7):  # what went to the leader that died is not even refused
            outbox.replied(number, "503", b"")
        late = outbox.publish("s", b"", "8")
        await until_sent(transport, 7)
        assert transport.ids[6:] == ["2"]
        outbox.replied(2, "503", b"")
        await until_sent(transport, 8)
        assert transport.ids[6:] == ["2", "2"]
        confirm(outbox, 2, 2)
        await settle()
        assert transport.ids[8:] == ["3", "4", "5", "6", "7", "8"]
        for number in range(3, 9):
            confirm(outbox, number, number)
        assert all(future.done() for future in (*futures, late))

    async def test_another_stream_does_not_wait(self, outbox: Outbox, transport: FakeTransport) -> None:
        await self.flowing(outbox, transport, "s", "t")
        futures = [outbox.publish("s", b"", "s1"), outbox.publish("s", b"", "s2")]
        await settle()
        outbox.replied(3, "503", b"")
        other = [outbox.publish("t", b"", f"t{n}") for n in range(3)]
        await settle()
        assert transport.ids == ["s1", "s2", "t0", "t1", "t2"]
        for number in (5, 6, 7, 3, 4):
            confirm(outbox, number, number)  # late answers count, too: they had been stored before
        assert all(future.done() for future in (*futures, *other))

    async def test_a_gap_is_closed_at_once(self, outbox: Outbox, transport: FakeTransport) -> None:
        await self.flowing(outbox, transport, "s")
        futures = [outbox.publish("s", b"", str(n)) for n in range(2, 6)]
        await settle()
        confirm(outbox, 4, 2)
        await settle()
        assert transport.ids == ["2", "3", "4", "5", "2"]
        confirm(outbox, 2, 3)
        await settle()
        assert transport.ids[5:] == ["3", "5"]
        for number in (3, 5):
            confirm(outbox, number, number)
        assert all(future.done() for future in futures)

    async def test_a_copy_confirmed_early_is_no_gap(self, outbox: Outbox, transport: FakeTransport) -> None:
        await self.flowing(outbox, transport, "s")
        for n in range(2, 6):
            outbox.publish("s", b"", str(n))
        await settle()
        confirm(outbox, 4, 1, duplicate=True)
        await settle()
        assert transport.ids == ["2", "3", "4", "5"]
        for number in (2, 3, 5):
            confirm(outbox, number, number)

    async def test_while_nothing_is_confirmed_nothing_follows(
        self, outbox: Outbox, transport: FakeTransport, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await self.flowing(outbox, transport, "s")
        outbox.publish("s", b"", "2")
        await settle()
        monkeypatch.setattr("shoal.bus.lane.FLOWS_S", 0.0)  # as if a second had passed
        outbox.publish("s", b"", "3")
        await settle()
        assert transport.ids == ["2"]
        monkeypatch.setattr("shoal.bus.lane.FLOWS_S", 1.0)
        confirm(outbox, 2, 2)
        await settle()
        assert transport.ids == ["2", "3"]
        confirm(outbox, 3, 3)


class TestNobodyResponds:
    """A stream without a leader and no stream look alike, so somebody is asked who knows."""

    @pytest.mark.parametrize("known", [True, None])
    async def test_a_stream_without_a_leader_is_waited_for(self, transport: FakeTransport, known: bool | None) -> None:
        asked: list[str] = []

        async def kept(subject: str) -> bool | None:
            asked.append(subject)
            return known

        outbox = Outbox(transport, "inbox", kept=kept, no_stream_patience_s=0.05)
        futures = [outbox.publish("s", b"", str(n)) for n in range(3)]
        answered = 0
        async with asyncio.timeout(10):
            while len(asked) < 3:
                if len(transport.sent) > answered:
                    answered = len(transport.sent)
                    outbox.replied(1, "503", b"")
                await asyncio.sleep(0.005)
        assert set(asked) == {"s"}
        assert set(transport.ids) == {"0"}
        await until_sent(transport, answered + 1)
        confirm(outbox, 1)
        await until_sent(transport, answered + 3)
        confirm(outbox, 2)
        confirm(outbox, 3)
        assert all(future.done() for future in futures)
        await outbox.close(0)

    async def test_when_there_is_none_all_fail_together(self, transport: FakeTransport) -> None:
        async def kept(subject: str) -> bool | None:
            return False

        outbox = Outbox(transport, "inbox", kept=kept, no_stream_patience_s=0.05)
        futures = [outbox.publish("s", b"", str(n)) for n in range(50)]
        other = outbox.publish("t", b"", "other")
        answered = 0
        async with asyncio.timeout(10):
            while not all(future.done() for future in futures):
                if transport.ids.count("0") > answered:
                    answered = transport.ids.count("0")
                    outbox.replied(1, "503", b"")
                await asyncio.sleep(0.005)
        assert all(isinstance(future.exception(), NoStreamError) for future in futures)
        assert not other.done()
        confirm(outbox, 51)
        again = outbox.publish("s", b"", "later")  # by now somebody may have made it
        await until_sent(transport, answered + 2)
        confirm(outbox, 52)
        assert again.done()
        await outbox.close(0)


async def test_too_large_is_never_sent(outbox: Outbox, transport: FakeTransport) -> None:
    large = outbox.publish("s", bytes(990), "id")
    small = outbox.publish("s", bytes(900), "id")
    await settle()
    with pytest.raises(TooLargeError):
        await large
    assert len(transport.sent) == 1
    confirm(outbox, 2)
    assert small.done()


async def test_an_error_while_sending_is_a_lost_connection(outbox: Outbox, transport: FakeTransport) -> None:
    transport.fail_next = OutboundBufferLimitError()
    future = outbox.publish("s", b"", "1")
    await until_sent(transport, 1)
    confirm(outbox, 1)
    assert future.done()


async def test_a_subject_that_is_none_fails_at_once(outbox: Outbox, transport: FakeTransport) -> None:
    transport.fail_next = ValueError("bad subject")
    with pytest.raises(BusError, match="cannot be published on"):
        await outbox.publish("a b", b"", "1")


async def test_cancelled_futures_and_late_answers_leave_no_trace(outbox: Outbox, transport: FakeTransport) -> None:
    cancelled = outbox.publish("s", b"", "1")
    await settle()
    cancelled.cancel()
    confirm(outbox, 1)
    confirm(outbox, 1)
    outbox.replied(99, "503", b"")
    assert outbox.outstanding == 0
    answered = outbox.publish("s", b"", "2")
    await settle()
    confirm(outbox, 2)
    assert answered.done()


async def test_close_waits_and_then_fails_what_is_left(transport: FakeTransport) -> None:
    outbox = Outbox(transport, "inbox")
    one, two = outbox.publish("s", b"", "1"), outbox.publish("s", b"", "2")
    await settle()
    asyncio.get_running_loop().call_later(0.02, confirm, outbox, 1)
    await outbox.close(0.1)
    assert one.done()
    with pytest.raises(PublishTimeoutError):
        await two
    with pytest.raises(UnreachableError):
        await outbox.publish("s", b"", "3")
