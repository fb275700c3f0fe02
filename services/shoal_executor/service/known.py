"""What an executor knows: its roster, its answers and what it has said, folded from what happened.

Everything that happens goes through `happened`: it is written into the journal, folded, and what it makes the executor
say is numbered. A process that folds the same journal knows the same and would say the same under the same numbers, so
an executor that was killed goes on in the middle of a sentence, and the broker drops what it hears twice.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import structlog

from shoal.machine import ranges
from shoal.runtime.steady import SteadyPublisher
from shoal.wire import subjects
from shoal.wire.asked import Answer, changes, path_of, word
from shoal.wire.messages import (
    Command,
    CommandRefused,
    DestroySandboxes,
    EndReason,
    GiveUp,
    PreemptSandboxes,
    Ranges,
    RunCommand,
    Snapshot,
    StartSandboxes,
    Step,
)
from shoal_executor.core import (
    Asked,
    CarryOut,
    CutShort,
    Destroy,
    Effect,
    ExecutorCore,
    Key,
    LetSleep,
    Refuse,
    RunJobs,
    Start,
)
from shoal_executor.service.answers import Answers
from shoal_executor.service.journal import (
    LARGE,
    Answered,
    AnyRecord,
    Began,
    Exited,
    Expired,
    Failed,
    Flushed,
    Freed,
    Gone,
    JobsDone,
    Journal,
    Knew,
    Left,
    Returned,
    Slept,
    Stored,
    Took,
    Up,
)
from shoal_executor.service.outgoing import Outgoing
from shoal_executor.service.reports import Reports

_STORED_EVERY: Final = 64

ToDo = Start | RunJobs | Destroy | LetSleep | CarryOut | CutShort
"""What must be carried out, and is not only said."""

log = structlog.get_logger()


class Known:
    """See the module. Without a journal, nothing outlives the process."""

    def __init__(self, publisher: SteadyPublisher, began: Began, journal: Journal | None) -> None:
        self._began = began
        self._journal = journal
        self._recovering = False
        self._noted = 0
        self._large = LARGE
        self.core = ExecutorCore(began.boot)
        self.answers = Answers()
        self.outgoing = Outgoing(publisher, "")
        self.outgoing.on_stored = self._stored
        self.reports = Reports(self.outgoing, began.executor, began.isolation, began.cell, self._flush, self._free)
        self._origins: dict[tuple[str, int, int], Snapshot] = {}
        self._commands: dict[tuple[str, int, int], int] = {}
        self._used: dict[tuple[str, int], int] = {}  # by rollout and attempt, which sandboxes have any of all this
        self.inbox: int | None = None
        """The last sequence of the inbox that was taken; None for an executor that begins anew."""

    @property
    def boot(self) -> str:
        """The boot this executor goes by: an earlier one where its sandboxes may be found again."""
        return self._began.boot

    @property
    def first_part(self) -> int:
        """The number that a command's first piece of output has here: above whatever an earlier process has sent."""
        return (self._began.processes - 1) << 32

    # --- recovery

    def recover(self) -> bool:
        """Fold the journal; returns whether an earlier process is continued. Raises JournalError, OSError."""
        records = self._journal.open() if self._journal else []
        began = records[0] if records else None
        left = any(isinstance(record, Left) for record in records)
        continued = isinstance(began, Began) and self._same(began) and not left and _readable(records)
        if isinstance(began, Began) and continued:
            self._began = msgspec.structs.replace(began, processes=began.processes + 1)
            self.core = ExecutorCore(began.boot)
            self.reports.boot = began.boot
            self._recovering = True
            for record in records[1:]:
                self._replay(record)
            self._recovering = False
            log.info("journal read", records=len(records), boot=self.boot, live=self.core.live)
        elif left:
            log.info("an earlier process has said that it left: beginning anew")
        elif records:
            why = self._another(began) if isinstance(began, Began) else "its beginning cannot be read"
            log.warning("an earlier process is not continued: what is left of it is ended, and lost", why=why)
        self.reports.boot = self.boot
        self.compact()
        return continued

    def _same(self, began: Began) -> bool:
        return not self._differs(began)

    def _differs(self, began: Began) -> list[str]:
        mine = self._began
        names = ("executor", "cell", "machine", "isolation", "nodes", "version")
        return [name for name in names if getattr(began, name) != getattr(mine, name)]

    def _another(self, began: Began) -> str:
        if began.version != self._began.version:
            return f"its journal is of version {began.version}, and this program's is {self._began.version}"
        return f"another {' and '.join(self._differs(began)) or 'state of it'} than now"

    def _replay(self, record: AnyRecord) -> None:
        match record:
            case Began():
                log.error("a journal begins twice", boot=record.boot)
            case Knew():
                self.inbox = record.inbox
                self.core.load(record.core)
                self.answers.load(record.answers)
                self.outgoing.resume(record.sent, record.unsent)
                self._origins = {(rollout, index, attempt): each for rollout, index, attempt, each in record.origins}
                self._commands = {(rollout, index, attempt): n for rollout, index, attempt, n in record.commands}
                for sandbox in (*self._origins, *self._commands, *self.answers.sandboxes):
                    self._use(*sandbox)
                self.reports.hold(record.held, [number for number, _, _ in record.unsent])
            case Stored(number=number):
                self.outgoing.settle(number)
            case Flushed(promoted=promoted):
                self.reports.flush(promoted)
            case Freed(groups=groups):
                self.reports.free(groups)
            case Took():
                try:
                    self._fold(record)
                except ValueError as error:  # as it was when it came: an executor that nobody can start is worse
                    log.error("a message that was taken is passed over", sequence=record.sequence, error=str(error))
            case _:
                self._fold(record)

    def compact(self) -> None:
        """Write the journal anew with only what still matters."""
        if self._journal is None:
            return
        for _ in range(2):  # nothing gathered is left then
            self.reports.flush(promoted=True)
        unsent = self.outgoing.unstored
        knew = Knew(
            self.inbox, self.core.dump(), self.answers.dump(), self.outgoing.sent, unsent, self.reports.held,
            tuple((*sandbox, snapshot) for sandbox, snapshot in self._origins.items()),
            tuple((*sandbox, count) for sandbox, count in self._commands.items()),
        )  # fmt: skip
        self._journal.rewrite(self._began, knew)
        self._large = max(LARGE, 4 * self._journal.size)

    def begin_at(self, sequence: int) -> None:
        """Begin anew with what comes into the inbox after this sequence."""
        self.inbox = sequence
        self.compact()

    def go(self) -> None:
        """Say what was not said yet, and from now on everything at once."""
        self.outgoing.go(f"{self._began.executor}:{self.boot}")
        self.reports.go()

    # --- what happens

    def happened(self, record: AnyRecord) -> list[ToDo]:
        """Write down what happened, say what follows from it, and return what is to be carried out."""
        if self._journal is not None:
            self._journal.append(record)
            if self._journal.size > self._large:
                todo = self._fold(record)
                self.compact()
                return todo
        return self._fold(record)

    def _fold(self, record: AnyRecord) -> list[ToDo]:
        return self._say(_FOLDS[type(record)](self, record))

    def _took(self, record: Took) -> Sequence[Effect]:
        self.inbox = record.sequence
        message = record.message
        if isinstance(message, StartSandboxes):
            return self.core.start(message, record.at_ms + message.deadline_ms - record.time_ms)
        if isinstance(message, DestroySandboxes):
            return self.core.destroy(message)
        if isinstance(message, PreemptSandboxes):
            return self.core.preempt(message)
        if isinstance(message, GiveUp):
            return self._give_up(message)
        return self._asked(message, record)

    def _gone(self, record: Gone) -> Sequence[Effect]:
        rollout, attempt, _ = record.group
        used = self._used.get((rollout, attempt), 0)
        gone = used & ranges.mask(record.indices)
        for index in ranges.indices(ranges.unmask(gone)):
            self.answers.forget((rollout, index, attempt))
            self._origins.pop((rollout, index, attempt), None)
            self._commands.pop((rollout, index, attempt), None)
        if used and used == gone:
            del self._used[rollout, attempt]
        elif gone:
            self._used[rollout, attempt] = used ^ gone
        return self.core.destroyed(record.group, record.indices)

    def _returned(self, record: Returned) -> Sequence[Effect]:
        self._origins[record.rollout, record.index, record.attempt] = record.snapshot
        self._use(record.rollout, record.index, record.attempt)
        return ()

    def _use(self, rollout: str, index: int, attempt: int) -> None:
        self._used[rollout, attempt] = self._used.get((rollout, attempt), 0) | 1 << index

    def used(self, key: Key, indices: Ranges) -> Ranges:
        """Return those of which anything was asked."""
        used = self._used.get(key[:2], 0)
        return ranges.unmask(used & ranges.mask(indices)) if used else ()

    def origin(self, rollout: str, index: int, attempt: int) -> Snapshot | None:
        """Return what a sandbox that is here started from."""
        key = self.core.find(rollout, index, attempt)
        if key is None:
            return None
        return self._origins.get((rollout, index, attempt), self.core.groups[key].order_of(index).snapshot)

    def commands(self, rollout: str, index: int, attempt: int) -> int:
        """Return how many commands and changes of files a sandbox that is here has carried out."""
        return self._commands.get((rollout, index, attempt), 0)

    def _answered(self, record: Answered) -> Sequence[Effect]:
        answer = record.answer
        self.answers.record(answer)
        if changes(answer):
            sandbox = (answer.rollout, answer.index, answer.attempt)
            if self.core.find(*sandbox) is not None:
                self._commands[sandbox] = self._commands.get(sandbox, 0) + 1
        self.outgoing.send(subjects.trajectory(record.cell, record.tenant, record.run), record.answer)
        return ()

    def _asked(self, asked: Asked, took: Took) -> Sequence[Effect]:
        effects = self.core.command(asked)
        place = (took.time_ms, self._began.executor, took.sequence)
        if not isinstance(effects[0], CarryOut):
            return effects
        self._use(asked.rollout, asked.index, asked.attempt)
        if self.answers.begin(asked, *place):
            return effects
        recorded = self.answers.recorded(asked)
        if recorded is not None:
            self._answer(asked, recorded)
        elif not self.answers.running(asked):
            self._answer(asked, refusal(asked, "answer_gone", ANSWERED, None))
        return ()  # else it is under way, and its answer will come

    def _give_up(self, told: GiveUp) -> Sequence[Effect]:
        effects = self.core.give_up(told)
        if not effects or not self.answers.give_up(told):
            return ()
        self._use(told.rollout, told.index, told.attempt)
        return effects

    def _say(self, effects: Sequence[Effect]) -> list[ToDo]:
        todo: list[ToDo] = []
        for effect in effects:
            if isinstance(effect, ToDo):
                todo.append(effect)
            elif isinstance(effect, Refuse):
                reason = effect.reason
                answer = refusal(effect.asked, "sandbox_gone", gone_text(reason), reason)
                if effect.asleep:
                    answer = refusal(effect.asked, "asleep", SLEEPS, None)
                self._answer(effect.asked, answer)
            else:
                self.reports.add(effect)
        return todo

    def _answer(self, asked: Asked, answer: Answer) -> None:
        self.outgoing.send(subjects.trajectory(asked.cell, asked.tenant, asked.run), answer)

    # --- what is said

    def _flush(self, promoted: bool) -> None:
        """Reports are about to be put into messages: written down first, or another process would divide them anew."""
        if self._journal is not None and not self._recovering:
            self._journal.append(Flushed(promoted))

    def _free(self, groups: tuple[Key, ...]) -> None:
        if self._journal is not None and not self._recovering:
            self._journal.append(Freed(groups))

    def _stored(self, number: int) -> None:
        self.reports.stored(number)
        stored = self.outgoing.stored
        if self._journal is not None and (stored - self._noted >= _STORED_EVERY or not self.outgoing.outstanding):
            self._noted = stored
            self._journal.append(Stored(stored))

    def look(self) -> None:
        """See that the journal is still where it was. Raises OSError, or ends this process, where it is not."""
        if self._journal is not None:
            self._journal.look()

    def leave(self) -> None:
        """This boot is over as soon as anybody hears of that: no other process goes on with it."""
        if self._journal is not None:
            self._large = sys.maxsize  # nothing is left out any more, this least of all
            self._journal.append(Left())

    def close(self, *, forget: bool) -> None:
        """Let go of the journal; `forget` it when nothing is left that it tells of."""
        self.outgoing.on_stored = lambda _: None
        if self._journal is not None:
            self._journal.close(remove=forget)
            self._journal = None


_FOLDS: Final[dict[type[AnyRecord], Callable[[Known, Any], Sequence[Effect]]]] = {
    Took: Known._took,
    Up: lambda known, r: known.core.started(r.group, r.indices, r.since_ms),
    Failed: lambda known, r: known.core.start_failed(r.group, r.indices, r.detail, r.reason),
    JobsDone: lambda known, r: known.core.jobs_done(r.group, r.results),
    Exited: lambda known, r: known.core.exited(r.group, r.index, r.reason, r.detail),
    Gone: Known._gone,
    Returned: Known._returned,
    Slept: lambda known, r: known.core.slept(r.group, r.index, r.snapshot, preempted=r.preempted),
    Expired: lambda known, r: known.core.expire(r.group),
    Answered: Known._answered,
}
"""By the record's type, because this is done several times for each sandbox."""


def _readable(records: Sequence[AnyRecord]) -> bool:
    """Return whether this version of the program can go on from what a journal knew."""
    try:
        for record in records:
            if isinstance(record, Knew):
                ExecutorCore("").load(record.core)
                Answers().load(record.answers)
    except ValueError:
        return False
    return True


_NOT_BEGUN: Final = Step()
ANSWERED: Final = "it was carried out before; its result is in the trajectory, no longer here"
SLEEPS: Final = "the sandbox sleeps: wake it, then ask again"


def gone_text(reason: EndReason | None) -> str:
    """Return what a trainer is told of a sandbox that is not here."""
    return f"the sandbox is gone: {reason}" if reason else "no such sandbox lives here"


def refusal(asked: Asked, code: str, detail: str, reason: EndReason | None, step: Step = _NOT_BEGUN) -> CommandRefused:
    """Return the answer to what is not carried out."""
    command = without_input(asked.command) if isinstance(asked, RunCommand) else None
    head = (asked.id, asked.rollout, asked.index, asked.attempt)
    return CommandRefused(*head, code, detail, reason, step, word(asked), command, path_of(asked))


def without_input(command: Command) -> Command:
    """Return a command with its standard input left out: it may be as large as a message can be."""
    return msgspec.structs.replace(command, stdin=b"")
