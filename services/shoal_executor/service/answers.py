"""What commands returned, by the id their trainer gave them: a repeated id is answered, never carried out again."""

from collections import OrderedDict
from typing import Final

import msgspec

from shoal.machine import ranges
from shoal.wire.asked import Answer, Asked
from shoal.wire.messages import CommandFinished, FileManaged, FileRead, FileWritten, GiveUp, Ranges, Step

Sandbox = tuple[str, int, int]
"""rollout, index, attempt"""

KEPT_BYTES: Final = 64 * 1024**2
_ENTRY: Final = 256
"""Bytes that an entry of a directory takes, about."""
_MOST_GIVEN_UP: Final = 64
"""How many commands of a sandbox without an answer are known to be given up: anybody may name what never comes."""


class _State(msgspec.Struct, frozen=True, array_like=True):
    kept: list[tuple[str, Answer]]
    ids: list[tuple[Sandbox, list[str]]]
    running: list[tuple[Asked, Step]]
    given_up: list[tuple[Sandbox, list[str]]] = []


class Answers:
    """Answers of live sandboxes, whose steps are numbered as they are begun.

    Beyond `limit` bytes the oldest lose their content, but never their id.
    """

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self._limit = limit
        self._bytes = 0
        self._kept: OrderedDict[tuple[Sandbox, str], Answer] = OrderedDict()
        self._ids: dict[Sandbox, dict[str, int]] = {}  # with the number of each, in their order
        self._running: dict[Sandbox, dict[str, tuple[Asked, Step]]] = {}
        self._given_up: dict[Sandbox, dict[str, None]] = {}  # those without an answer, also such as have not come yet

    @property
    def sandboxes(self) -> tuple[Sandbox, ...]:
        """Return those of which anything was asked."""
        return (*self._ids, *self._running, *self._given_up)

    def begin(self, asked: Asked, asked_ms: int = 0, executor: str = "", sequence: int = 0) -> bool:
        """Note that a command is being carried out; returns False when it was already begun.

        It was asked at that moment, in the inbox of that executor, as the message of that sequence.
        """
        sandbox = sandbox_of(asked)
        ids = self._ids.setdefault(sandbox, {})
        if asked.id in ids:
            return False
        beside = ranges.collect(step.number for _, step in self.under_way_in(sandbox))
        ids[asked.id] = len(ids) + 1
        step = Step(len(ids), asked_ms, executor, sequence, getattr(asked, "idempotent", True), beside)
        self._running.setdefault(sandbox, {})[asked.id] = (asked, step)
        return True

    def give_up(self, told: GiveUp) -> bool:
        """Note that nobody waits for a command; returns False when it has its answer. It may come later than this."""
        sandbox = (told.rollout, told.index, told.attempt)
        if told.id in self._ids.get(sandbox, ()) and told.id not in self._running.get(sandbox, ()):
            return False
        ids = self._given_up.setdefault(sandbox, {})
        ids[told.id] = None
        if len(ids) > _MOST_GIVEN_UP:
            del ids[next(iter(ids))]
        return True

    def given_up(self, asked: Asked) -> bool:
        """Return whether nobody waits for a command that has no answer yet."""
        return asked.id in self._given_up.get(sandbox_of(asked), ())

    def running(self, asked: Asked) -> bool:
        """Return whether a command was begun and has no answer yet."""
        return asked.id in self._running.get(sandbox_of(asked), ())

    def step(self, asked: Asked) -> Step:
        """Return which step of its sandbox's a command is that has no answer yet."""
        known = self._running.get(sandbox_of(asked), {}).get(asked.id)
        return known[1] if known is not None else Step()

    def under_way(self) -> list[Asked]:
        """Return the commands that have no answer yet."""
        return [asked for each in self._running.values() for asked, _ in each.values()]

    def under_way_in(self, sandbox: Sandbox) -> list[tuple[Asked, Step]]:
        """Return the commands of one sandbox that have no answer yet."""
        return list(self._running.get(sandbox, {}).values())

    def done(self, sandbox: Sandbox) -> Ranges:
        """Return the numbers of a sandbox's steps that have their answer."""
        begun = len(self._ids.get(sandbox, ()))
        running = ranges.collect(step.number for _, step in self.under_way_in(sandbox))
        return ranges.without(((1, begun),) if begun else (), running)

    def recorded(self, asked: Asked) -> Answer | None:
        """Return the answer to a command that was begun: None while it runs, or when its content was let go."""
        return self._kept.get((sandbox_of(asked), asked.id))

    def record(self, answer: Answer) -> None:
        """Keep an answer."""
        sandbox = sandbox_of(answer)
        running = self._running.get(sandbox, {})
        running.pop(answer.id, None)
        if not running:
            self._running.pop(sandbox, None)
        if (given_up := self._given_up.get(sandbox)) is not None:
            given_up.pop(answer.id, None)
            if not given_up:
                del self._given_up[sandbox]
        if answer.id not in self._ids.get(sandbox, ()):
            return  # the sandbox is gone, and whoever asks is told that
        self._kept[sandbox, answer.id] = answer
        self._bytes += _weight(answer)
        while self._bytes > self._limit and self._kept:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= _weight(oldest)

    def forget(self, sandbox: Sandbox) -> None:
        """Drop what a sandbox that is gone has answered."""
        self._running.pop(sandbox, None)
        self._given_up.pop(sandbox, None)
        for id in self._ids.pop(sandbox, ()):
            answer = self._kept.pop((sandbox, id), None)
            if answer is not None:
                self._bytes -= _weight(answer)

    def dump(self) -> bytes:
        """Return all of it."""
        ids = [(sandbox, list(known)) for sandbox, known in self._ids.items()]
        running = [each for known in self._running.values() for each in known.values()]
        kept = [(id, answer) for (_, id), answer in self._kept.items()]
        given_up = [(sandbox, list(known)) for sandbox, known in self._given_up.items()]
        return msgspec.msgpack.encode(_State(kept, ids, running, given_up))

    def load(self, state: bytes) -> None:
        """Take over what was dumped. Raises ValueError."""
        found = msgspec.msgpack.decode(state, type=_State)
        self._ids = {sandbox: {id: number for number, id in enumerate(known, 1)} for sandbox, known in found.ids}
        for asked, step in found.running:
            self._running.setdefault(sandbox_of(asked), {})[asked.id] = (asked, step)
        self._given_up = {sandbox: dict.fromkeys(known) for sandbox, known in found.given_up}
        for id, answer in found.kept:
            self._kept[sandbox_of(answer), id] = answer
            self._bytes += _weight(answer)


def sandbox_of(message: Asked | Answer) -> Sandbox:
    """Return whose story something belongs to."""
    return (message.rollout, message.index, message.attempt)


def _weight(answer: Answer) -> int:
    size = 512
    if isinstance(answer, CommandFinished):
        size += len(answer.result.stdout) + len(answer.result.stderr) + len(answer.command.stdin)
    elif isinstance(answer, FileRead | FileWritten):
        size += len(answer.data)
    elif isinstance(answer, FileManaged):
        size += sum(_ENTRY + len(entry.name) for entry in answer.entries)
    return size
