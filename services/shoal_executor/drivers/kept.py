"""What is kept of an output: its beginning and its end, half of the limit each, where it is more than that."""


class Kept:
    """One output stream of a command, of which at most `limit` bytes are kept."""

    def __init__(self, limit: int) -> None:
        self._limit = max(limit, 0)
        self._beginning = bytearray()
        self._end = bytearray()
        self._taken = 0

    def take(self, data: bytes) -> bytes:
        """Take what was written; returns what of it is among the first bytes, up to the limit: those are streamed."""
        within = data[: max(self._limit - self._taken, 0)]
        self._taken += len(data)
        room = self._limit - self._limit // 2 - len(self._beginning)
        self._beginning += data[:room]
        self._end += data[room:]
        # What is cut off at its front is not moved each time: a bytearray only notes where it begins.
        del self._end[: max(len(self._end) - self._limit // 2, 0)]
        return within

    @property
    def content(self) -> bytes:
        """What is kept, in the order in which it came."""
        return bytes(self._beginning + self._end)

    @property
    def dropped(self) -> int:
        """How many bytes are left out."""
        return self._taken - len(self._beginning) - len(self._end)

    @property
    def tail(self) -> int:
        """How many of the last bytes of the content come after those that are left out; 0 where none are."""
        return len(self._end) if self.dropped else 0


def cut(output: bytes, limit: int) -> Kept:
    """Return what is kept of a whole output."""
    kept = Kept(limit)
    kept.take(output)
    return kept
