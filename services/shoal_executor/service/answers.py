"""What commands returned, by the id their trainer gave them: a repeated id is answered, never carried out again."""

from collections import OrderedDict
from typing import Final

import msgspec

from shoal.wire.messages import CommandFinished, FileRead
from shoal_executor.core import Asked
from shoal_executor.service.journal import Answer

Sandbox = tuple[str, int, int]
"""rollout, index, attempt"""

KEPT_BYTES: Final = 64 * 1024**2


class _State(msgspec.Struct, frozen=True, array_like=True):
    kept: list[tuple[str, Answer]]
    ids: list[tuple[Sandbox, list[str]]]
    running: list[Asked]


class Answers:
    """Answers of live sandboxes. Beyond `limit` bytes the oldest lose their content, but never their id."""

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self._limit = limit
        self._bytes = 0
        self._kept: OrderedDict[str, Answer] = OrderedDict()
        self._ids: dict[Sandbox, dict[str, None]] = {}
        self._running: dict[str, Asked] = {}

    def begin(self, asked: Asked) -> bool:
        """Note that a command is being carried out; returns False when it was already begun."""
        ids = self._ids.setdefault((asked.rollout, asked.index, asked.attempt), {})
        if asked.id in ids:
            return False
        ids[asked.id] = None
        self._running[asked.id] = asked
        return True

    def running(self, id: str) -> bool:
        """Return whether a command was begun and has no answer yet."""
        return id in self._running

    def under_way(self) -> list[Asked]:
        """Return the commands that have no answer yet."""
        return list(self._running.values())

    def recorded(self, id: str) -> Answer | None:
        """Return the answer to a command that was begun: None while it runs, or when its content was let go."""
        return self._kept.get(id)

    def record(self, id: str, answer: Answer) -> None:
        """Keep an answer."""
        self._running.pop(id, None)
        self._kept[id] = answer
        self._bytes += _weight(answer)
        while self._bytes > self._limit and self._kept:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= _weight(oldest)

    def forget(self, sandbox: Sandbox) -> None:
        """Drop what a sandbox that is gone has answered."""
        for id in self._ids.pop(sandbox, ()):
            self._running.pop(id, None)
            answer = self._kept.pop(id, None)
            if answer is not None:
                self._bytes -= _weight(answer)

    def dump(self) -> bytes:
        """Return all of it."""
        ids = [(sandbox, list(known)) for sandbox, known in self._ids.items()]
        return msgspec.msgpack.encode(_State(list(self._kept.items()), ids, self.under_way()))

    def load(self, state: bytes) -> None:
        """Take over what was dumped."""
        found = msgspec.msgpack.decode(state, type=_State)
        self._ids = {sandbox: dict.fromkeys(known) for sandbox, known in found.ids}
        self._running = {asked.id: asked for asked in found.running}
        for id, answer in found.kept:
            self._kept[id] = answer
            self._bytes += _weight(answer)


def _weight(answer: Answer) -> int:
    size = 512
    if isinstance(answer, CommandFinished):
        size += len(answer.result.stdout) + len(answer.result.stderr)
    elif isinstance(answer, FileRead):
        size += len(answer.data)
    return size


def without_input(finished: CommandFinished) -> CommandFinished:
    """Return the answer with its command's standard input left out: it may be as large as a message can be."""
    return msgspec.structs.replace(finished, command=msgspec.structs.replace(finished.command, stdin=b""))
