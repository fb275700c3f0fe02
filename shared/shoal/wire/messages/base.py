"""What every message is: a MessagePack array that begins with its type's name."""

import msgspec


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """One message on a subject."""
