"""Messages to bytes and back: MessagePack, typed by msgspec."""

import msgspec

from shoal.wire.messages import AnyMessage

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


class UndecodableError(ValueError):
    """Bytes that are no message of this version of the contract."""


def encode(message: AnyMessage) -> bytes:
    """Return the message's bytes; equal messages give equal bytes."""
    return _encoder.encode(message)


def decode(payload: bytes) -> AnyMessage:
    """Return the message in these bytes. Raises UndecodableError, saying what is wrong with them."""
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UndecodableError(str(error)) from error
