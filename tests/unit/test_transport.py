"""Whatever pieces the broker's words come in, a listener hears its messages, and nats-py's parser has all else."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, strategies as st
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

from shoal.bus.transport import Frames

LISTENED = 7
Message = tuple[int, bytes, bytes, bytes, bytes]


@dataclass
class Parsed:
    """What nats-py's parser makes of bytes."""

    said: list[object] = field(default_factory=list)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        self.said.append((sid, subject, reply, headers or b"", data))

    async def _process_ping(self) -> None:
        self.said.append("PING")

    async def _process_pong(self) -> None:
        self.said.append("PONG")

    async def _process_err(self, error: str) -> None:
        self.said.append(error)

    async def _process_info(self, info: dict[str, Any]) -> None:
        self.said.append(info)


async def parsed(data: bytes) -> list[object]:
    into = Parsed()
    await Parser(into).parse(data)
    return into.said


async def received(pieces: list[bytes]) -> tuple[list[object], bytes]:
    """Return what was heard of these, and what nats-py was given."""
    heard: list[object] = []

    def hear(*message: object) -> bool:
        if message[0] == LISTENED:
            heard.append(message)
        return message[0] == LISTENED

    reader = asyncio.StreamReader()
    frames = Frames(reader, hear)
    for piece in pieces:
        frames.data_received(piece)
    reader.feed_eof()
    return heard, await reader.read()


def frame(message: Message) -> bytes:
    sid, subject, reply, headers, data = message
    words = [b"HMSG" if headers else b"MSG", subject, b"%d" % sid, *([reply] if reply else [])]
    if headers:
        words.append(b"%d" % len(headers))
    return b" ".join([*words, b"%d" % len(headers + data)]) + b"\r\n" + headers + data + b"\r\n"


_words = st.sampled_from([b"a", b"$JS.ACK.s.c.1.2.3.4.5", b"_INBOX.x.y", b"MSG", b"1"])
_messages = st.tuples(
    st.sampled_from([LISTENED, 3]),
    _words,
    st.one_of(st.just(b""), _words),
    st.sampled_from([b"", b"NATS/1.0\r\nNats-Msg-Id: 1\r\n\r\n", b"NATS/1.0 503\r\n\r\n"]),
    st.one_of(st.binary(max_size=60), st.sampled_from([b"\r\n", b"x\r\nMSG a 7 1\r\nx\r\n", b"PING\r\n"])),
)
_others = st.sampled_from([b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b"-ERR 'slow'\r\n", b'INFO {"port": 4222}\r\n'])


@given(st.lists(st.one_of(_messages, _others), max_size=12), st.data())
def test_in_whatever_pieces(said: list[Message | bytes], data: st.DataObject) -> None:
    whole = b"".join(each if isinstance(each, bytes) else frame(each) for each in said)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    pieces = [whole[at:to] for at, to in zip([0, *cuts], [*cuts, len(whole)], strict=True)]

    async def check() -> None:
        heard, left = await received([piece for piece in pieces if piece])
        all_of_it = await parsed(whole)
        ours = [each for each in all_of_it if isinstance(each, tuple) and each[0] == LISTENED]
        assert heard == ours
        assert await parsed(left) == [each for each in all_of_it if each not in ours]

    asyncio.run(check())


@pytest.mark.parametrize(
    "wrong", [b"MSG a 7\r\nxy\r\n", b"MSG a x 1\r\ny\r\n", b"MSG a 7 -1\r\n\r\n", b"HMSG a 7 2\r\nxy\r\n", b"WHAT\r\n"]
)
async def test_what_is_no_frame_is_nats_pys_to_refuse(wrong: bytes) -> None:
    before, after = frame((LISTENED, b"a", b"", b"", b"1")), frame((LISTENED, b"a", b"", b"", b"2"))
    heard, left = await received([before + wrong, after])
    assert heard[0] == (LISTENED, b"a", b"", b"", b"1")
    assert left.startswith(wrong)
    with pytest.raises(ProtocolError):
        await parsed(left)


async def test_a_large_message_is_put_together_once() -> None:
    message = (LISTENED, b"a", b"r", b"", bytes(1_000_000))
    whole = frame(message)
    pieces = [whole[at : at + 1_000] for at in range(0, len(whole), 1_000)]
    assert await received(pieces) == ([message], b"")
