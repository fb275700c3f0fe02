"""Dead letters: messages that nobody could use."""

from typing import Final

from shoal.wire.bounds import Integer
from shoal.wire.messages.base import Message

DEAD_PAYLOAD_KEPT: Final = 256 * 1024
"""Bytes of a dead message's payload that its dead letter keeps, so that the letter itself can be stored."""


class DeadLetter(Message, frozen=True):
    """A message nobody could use, kept with where it came from and why it was given up.

    `size`: bytes of the whole payload, of which at most `DEAD_PAYLOAD_KEPT` are here; 0 where its writer did not say.
    """

    stream: str
    sequence: Integer
    subject: str
    reader: str
    reason: str
    payload: bytes
    size: Integer = 0

    @property
    def whole(self) -> bool:
        """Whether the payload is all of it, as far as the letter tells."""
        return len(self.payload) == self.size or (not self.size and len(self.payload) < DEAD_PAYLOAD_KEPT)
