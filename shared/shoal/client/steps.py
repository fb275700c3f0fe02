"""What a handle asks of its sandbox, step by step: under which id, and whether the log has the answer already."""

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from shoal.client.diverging import NotIdempotent, TrajectoryDiverged
from shoal.client.errors import BadRequest
from shoal.client.givenup import Recorded
from shoal.client.presence import Presence
from shoal.client.record import Record
from shoal.client.requests import shown, text
from shoal.client.results import CommandResult
from shoal.client.story import Story, Told
from shoal.wire.asked import Answer, Asked, same, word
from shoal.wire.messages import (
    Command,
    CommandFinished,
    CommandRefused,
    FileManaged,
    FileRead,
    FileWritten,
    ManageFile,
    ReadFile,
    RollBack,
    RolledBack,
    RunCommand,
    SnapshotTaken,
    StepBegun,
    TakeSnapshot,
    WriteFile,
)
from shoal.wire.values import APPEND

_MOST_ID: Final = 200
_OURS: Final = re.compile("~[0-9a-f]{16}")
_ID: Final = f"1 to {_MOST_ID} characters on one line; those with '#' or '~' first are Shoal's own"
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")  # an id is in a message's headers, which are lines
_SHOWN: Final = 200


@dataclass(frozen=True, slots=True)
class Policy:
    """How a run is resumed.

    `diverged`: what if the log has something else for a step than is asked: "raise" TrajectoryDiverged, or go on
    "live". `not_idempotent`: what if a step was undone that must not be done twice: "raise" NotIdempotent, or take what
    is "recorded".
    """

    diverged: str = "raise"
    not_idempotent: str = "raise"

    def __post_init__(self) -> None:
        if self.diverged not in ("raise", "live"):
            raise BadRequest("diverged", f"{self.diverged!r} is no policy; write 'raise' or 'live'")
        if self.not_idempotent not in ("raise", "recorded"):
            raise BadRequest("not_idempotent", f"{self.not_idempotent!r} is no policy; write 'raise' or 'recorded'")


class Steps:
    """The steps of one handle.

    In a run that can be resumed (`policy`), steps without an id of their own are numbered in the order in which they
    are asked: a trainer that was restarted and asks the same gets the same numbers. What diverges, if that is wanted,
    goes on under ids with a branch's number behind them.
    """

    def __init__(self, name: str, presence: Presence, policy: Policy | None) -> None:
        self._name = name
        self._presence = presence
        self._policy = policy
        self._next = self._first = 1
        self._branch = 0
        self._turns: dict[str, int] = {}  # by id that was handed in: how often it was asked for
        self.given_up: Recorded = {}
        """What was given up by the trainer before this one; each step of it is taken out when it is asked for."""
        self._undone = False  # a loss took some: which number comes next must be looked up
        self._waiting = 0
        self._turn = asyncio.Lock()

    async def id(self, given: str | None, known: Callable[[], Awaitable[Story]]) -> str:
        """Return the id of the next step: the one that is given, or one of our own. `known` waits for the story."""
        if given is not None:
            if not 0 < len(text(given, "id", _ID)) <= _MOST_ID or _CONTROL.search(given) or not self._may_give(given):
                raise BadRequest("id", f"{shortened(repr(given))} cannot be used; write {_ID}")
            return given
        if self._policy is None:
            return "~" + secrets.token_hex(8)
        if self._undone or self._waiting:  # whoever asked first comes first
            self._waiting += 1
            try:
                async with self._turn:
                    if self._undone:
                        await self._presence.here()
                        self._next = self._first_missing(await known())
                        self._undone = False
                    return self._number()
            finally:
                self._waiting -= 1
        return self._number()

    def turn(self, id: str, *, again: bool) -> int:
        """Return the how-manieth asking of an id this is. `again`: the trainer handed it in."""
        if not again:
            return 1
        turn = self._turns[id] = self._turns.get(id, int(id[0] == "#")) + 1
        return turn

    def _may_give(self, id: str) -> bool:
        """Return whether this may be handed in: of our own, only what an error has told of (`Timeout.id`)."""
        if id[0] == "#":
            return id[1:].isdecimal() and 0 < int(id[1:]) < self._next and self._policy is not None
        return id[0] != "~" or _OURS.fullmatch(id) is not None

    def _number(self) -> str:
        self._next += 1
        return f"#{self._next - 1}"

    def follow(self, before: "Steps") -> None:
        """Go on with the numbers of the handle that this one takes the place of."""
        self._next, self._first = before._next, before._next

    def undone(self) -> None:
        """A loss has undone steps: go on with the first of them."""
        self._undone = self._policy is not None
        self._turns.clear()
        self.given_up.clear()  # what is asked now was not there to be given up

    def _first_missing(self, story: Story) -> int:
        number, attempt = self._first, self._presence.attempt
        while any(
            story.recorded(f"{self._name}:{self._at(f'#{number}', branch)}", attempt)
            for branch in range(self._branch + 1)
        ):
            number += 1
        return number

    async def find(
        self, record: Record, story: Story, attempt: int, id: str, make: Callable[[str], Asked]
    ) -> tuple[str, Answer | None]:
        """Return the id to ask under, and the answer that the log has already.

        Raises TrajectoryDiverged, NotIdempotent.
        """
        branch = self._branch
        while story.recorded(make(self._at(id, branch + 1)).id, attempt) is not None:
            branch += 1
        asked = make(self._at(id, branch))
        told = story.recorded(asked.id, attempt)
        answer = None if told is None else await record.answer(told)
        if answer is not None and not same(asked, answer):
            if self._policy is None or self._policy.diverged == "raise":
                raise diverged(self._name, asked, answer)
            branch += 1
            answer, asked = None, make(self._at(id, branch))
        self._branch = max(self._branch, branch)
        if answer is None and self._presence.lives:
            answer = await self._once(record, story, attempt, asked)
        return self._at(id, branch), answer

    async def _once(self, record: Record, story: Story, attempt: int, asked: Asked) -> Answer | None:
        """Return what is to be taken for the answer, where a step must not be carried out again."""
        before = story.undone(asked.id, attempt)
        if before is None or before.step.idempotent:
            return None
        answer = await record.answer(before) if isinstance(before, Told) else None
        if answer is not None and self._policy is not None and self._policy.not_idempotent == "recorded":
            return answer
        result = CommandResult.of(answer.result) if isinstance(answer, CommandFinished) else None
        raise NotIdempotent(self._name, step_of(asked.id), described(asked), result)

    @staticmethod
    def _at(id: str, branch: int) -> str:
        return f"{id}~{branch}" if branch else id


def own(id: str) -> bool:
    """Return whether nobody can ask for a step again: its id was drawn, for a run that is not resumed."""
    return id.startswith("~")


def step_of(id: str) -> str:
    """Return a step's id as its trainer has it, of one on the wire."""
    return id.partition(":")[2]


def diverged(sandbox: str, asked: Asked, told: Answer | StepBegun) -> TrajectoryDiverged:
    """Return the error for a step that was something else before."""
    return TrajectoryDiverged(sandbox, step_of(asked.id), described(told), described(asked))


def described(message: Asked | Answer | StepBegun) -> str:
    """Return what was asked, as people would say it."""
    what = word(message)
    match message:
        case RunCommand(command=command) | CommandFinished(command=command):
            return _command(command)
        case CommandRefused(command=Command() as command) | StepBegun(command=Command() as command):
            return _command(command)
        case WriteFile() | FileWritten():
            size = len(message.data) if isinstance(message, WriteFile) else (message.content or message).size
            return f"{'append' if message.offset == APPEND else 'write'} {size} bytes to {message.path}"
        case ManageFile(path=path, to=to) | FileManaged(path=path, to=to):
            how = ", with all that is in it" if message.recursive else ""
            return f"{what} {path}{f' to {to}' if to else ''}{how}"
        case ReadFile(path=path) | FileRead(path=path) | CommandRefused(path=path) | StepBegun(path=path) if path:
            return f"{what} {path}"
        case TakeSnapshot(name=name) | SnapshotTaken(name=name) if name:
            return f"{what} {name}"
        case RollBack(snapshot=snapshot):
            return f"{what} {snapshot.digest[:12]}"
        case RolledBack(digest=digest):
            return f"{what} {digest[:12]}"
    return what


def _command(command: Command) -> str:
    kind = "python" if command.python else "session" if command.session else "run"
    return f"{kind} {shortened(repr(shown(command)))}"


def shortened(text: str) -> str:
    """Return a text, or the beginning of a long one, for people."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
