"""What the broker's answer to a publication means: stored, refused for good, or worth another try."""

from typing import Final

import msgspec

from shoal.bus.lane import lane_of
from shoal.bus.protocol import BusError, Stored, StreamFullError, TooLargeError

_STORE_FAILED: Final = 10077
_NO_SPACE: Final = {10023, 10028, 10047}  # insufficient resources, memory and storage
_EXCEEDS_MAXIMUM: Final = 10054
_WRONG_LAST_SEQUENCE: Final = {10071, 10164}
_FOR_NOW: Final = {408, 409, 429}
"""Besides 5xx. 409 is a copy of a message that replicas are still agreeing on: soon it will be known where that is."""


class WrongLastError(BusError):
    """The subject's last message is not the one the publication was to follow."""


class _Error(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Ack(msgspec.Struct):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: _Error | None = None


_decoder = msgspec.json.Decoder(_Ack)


def full_text(stream: str, limit: str) -> str:
    """Return what people are told of a stream that has reached this limit."""
    return (
        f"stream {stream} is full ({limit}) and takes no new messages; make room by raising its limit, such as with "
        f"`nats stream edit {stream} --max-bytes=32GiB`"
    )


def read_answer(payload: bytes, subject: str, size: int) -> Stored | BusError | str:
    """Return where the message is stored, why it never will be, or, as a sentence, why not for now."""
    try:
        ack = _decoder.decode(payload)
    except msgspec.DecodeError:
        return "the broker's answer makes no sense"
    if ack.error is None:
        # A copy of what is not stored yet has no sequence: as good as no answer.
        return Stored(ack.stream, ack.seq, ack.duplicate) if ack.seq else "the broker is still storing it"
    error, text = ack.error, ack.error.description
    if error.err_code in _WRONG_LAST_SEQUENCE:
        return WrongLastError(f"{subject} has another last message")
    if error.err_code == _EXCEEDS_MAXIMUM:
        return TooLargeError(f"a message of {size} bytes for {subject} exceeds what its stream takes")
    if error.err_code == _STORE_FAILED and "maximum" in text:
        stream = lane_of(subject)
        return StreamFullError(full_text(stream, text), stream)
    if error.err_code in _NO_SPACE or (error.err_code == _STORE_FAILED and "no space left" in text):
        stream = lane_of(subject)
        return StreamFullError(
            f"the broker has no room for stream {stream} ({text}); free space on its disk, or raise max_file_store in "
            "its JetStream configuration",
            stream,
        )
    if 400 <= error.code < 500 and error.code not in _FOR_NOW:
        return BusError(f"the broker refused a message on {subject}: {text}")
    return text or "the broker refused it for a moment"
