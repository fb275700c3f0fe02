"""Who did what, when, to which sandbox: what people and trainers asked for, and what came of it.

Who it was is what the broker lets somebody say it as: the tenant and run of a message's subject; what is not a
tenant's to say, an operator did. That nothing was changed afterwards, the chain of an archive shows
(`shoal archive verify`).
"""

import shlex
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Final

from shoal.archive.happenings import Happening, happening
from shoal.archive.planning import in_order
from shoal.archive.source import History, merged
from shoal.archive.words import ended, sandboxes, short
from shoal.machine.ledger import reason_of
from shoal.wire import messages as m
from shoal.wire.subjects import SYSTEM

OPERATOR: Final = "operator"
_ANSWERED: Final = (m.CommandFinished, m.FileWritten, m.FileRead, m.FileManaged, m.SnapshotTaken, m.RolledBack,
                    m.Hibernated, m.CommandRefused)  # fmt: skip
_ASKED: Final = (m.RunCommand, m.WriteFile, m.ReadFile, m.ManageFile, m.TakeSnapshot, m.RollBack, m.Hibernate)
_SUBMITTED: Final = m.RolloutSubmitted.__name__.encode()
Asked = m.RunCommand | m.WriteFile | m.ReadFile | m.ManageFile | m.TakeSnapshot | m.RollBack | m.Hibernate


@dataclass(frozen=True, slots=True)
class Deed:
    """Something that was done. `who`: a tenant, or an operator; `run` is empty where there is none.

    `what` is one word for programs, `detail` says it for people; `outcome` what came of it, `ended_ms` when, where that
    was said. `stream`, `sequence`: the message that asked for it, or, of a command that travelled with its
    rollout, that told of its end.
    """

    time_ms: int
    who: str
    run: str
    what: str
    subject: str
    detail: str
    outcome: str = ""
    ended_ms: int | None = None
    exit_code: int | None = None
    stream: str = ""
    sequence: int = 0
    id: str = ""
    values: dict[str, Any] = field(default_factory=dict)


async def audit(
    history: History,
    *,
    tenant: str = "",
    since_ms: int | None = None,
    until_ms: int | None = None,
    tell: Callable[[str, int], None] = lambda _, __: None,
) -> AsyncGenerator[Deed, None]:
    """Yield what was done within a time, by one tenant or by all, in the order in which it ended or was asked for.

    What has no answer comes last, when all is read. Raises ArchiveError, BusError.
    """
    names = in_order(await history.streams())
    book = _Book(since_ms or 0)
    if since_ms is not None:
        for name in names:
            if name.startswith("SHOAL_ROLLOUT_"):
                await _remember(history, name, since_ms, book)
    async with aclosing(merged(history, names, since_ms=since_ms, until_ms=until_ms)) as found:
        async for stream, delivery in found:
            if delivery.sequence % 1024 == 0:
                tell(stream, delivery.sequence)
            each = happening(stream, delivery)
            if each is not None:
                for deed in book.take(each, *_owner(delivery.subject)):
                    if tenant in ("", deed.who):
                        yield deed
    for deed in book.unanswered():
        if tenant in ("", deed.who):
            yield deed


async def _remember(history: History, stream: str, since_ms: int, book: "_Book") -> None:
    """Note the commands of rollouts that were submitted before."""
    async with aclosing(history.read(stream)) as found:
        async for delivery in found:
            if delivery.time_ms >= since_ms:
                return
            if _SUBMITTED in delivery.payload[:32]:
                each = happening(stream, delivery)
                if each is not None and isinstance(each.message, m.RolloutSubmitted):
                    book.commands[each.message.rollout] = each.message.spec.commands
            elif delivery.subject.endswith(".outcome"):
                each = happening(stream, delivery)
                if each is not None and isinstance(each.message, m.RolloutConcluded):
                    book.commands.pop(each.message.rollout, None)


def _owner(subject: str) -> tuple[str, str]:
    """Return tenant and run that a subject is of; an operator's has neither."""
    kind, *tokens = subject.split(".")[1:]
    tenant, run = SYSTEM, ""
    if kind in ("rollout", "trajectory") and len(tokens) > 2:
        tenant, run = tokens[1:3]
    elif kind == "executor" and tokens[-1] == "command":
        tenant = tokens[1]
    elif kind == "snapshot":
        tenant = tokens[0]
    elif kind == "placement" and tokens[-1] == "prefetch":
        tenant = tokens[1]
    return (OPERATOR, "") if tenant == SYSTEM else (tenant, run)


class _Book:
    """What is under way: commands without an answer, templates being made, the commands of rollouts."""

    def __init__(self, since_ms: int) -> None:
        self._since_ms = since_ms
        self.commands: dict[str, tuple[m.Command, ...]] = {}
        self._asked: dict[str, Deed] = {}
        self._answered: dict[str, set[str]] = {}  # by rollout, while it is not over: what comes again is no news
        self._builds: dict[str, tuple[Happening, m.BuildTemplate]] = {}
        self._operated: set[str] = set()

    def take(self, each: Happening, who: str, run: str) -> Iterator[Deed]:
        """Note a message; yield what it says was done."""
        message = each.message
        if isinstance(message, _ASKED):
            if message.id not in self._answered.get(message.rollout, ()):
                self._asked.setdefault(message.id, _asked(each, message, who))
        elif isinstance(message, _ANSWERED):
            asked = self._asked.pop(message.id, None)
            again = message.id in self._answered.get(message.rollout, ())
            if message.rollout in self.commands:
                self._answered.setdefault(message.rollout, set()).add(message.id)
            if asked is not None:
                yield _done(asked, each)
            elif isinstance(message, m.CommandFinished) and not again:
                found = _alone(each, message, who, run)
                if found.time_ms < self._since_ms:  # it was asked for before what is read
                    yield found
        elif isinstance(message, m.SandboxesFinished):
            yield from self._finished(each, message, who, run)
        elif isinstance(message, m.BuildTemplate):
            self._builds[message.id] = (each, message)
        elif isinstance(message, m.TemplateBuilt):
            build = self._builds.pop(message.id, None)
            if build is not None:
                yield _built(*build, each, message)
        elif each.id not in self._operated:
            for deed in self._other(each, who, run):
                if deed.who == OPERATOR:  # it is told to every cell, under one id
                    self._operated.add(each.id)
                yield deed

    def _other(self, each: Happening, who: str, run: str) -> Iterator[Deed]:
        match each.message:
            case m.RolloutSubmitted(rollout=rollout, spec=spec):
                self.commands[rollout] = spec.commands
                given = [shell(command) for command in spec.commands]
                detail = f"{spec.n} sandboxes of {spec.template}" + (f" to run {short(given[0])}" if given else "")
                values = {"n": spec.n, "template": spec.template, "commands": given}
                yield _deed(each, who, run, "submitted", rollout, detail, **values)
            case m.RolloutRejected(rollout=rollout, code=code, detail=detail):
                self.commands.pop(rollout, None)
                yield _deed(each, who, run, "rejected", rollout, f"{code}: {detail}")
            case m.RolloutCancelled(rollout=rollout, by=by):
                yield _deed(each, who, run, "cancelled", rollout, f"by {by}" if by else "")
            case m.RolloutReleased(rollout=rollout, indices=indices):
                yield _deed(each, who, run, "released", rollout, sandboxes(indices), indices=list(indices))
            case m.RolloutConcluded(rollout=rollout):
                self.commands.pop(rollout, None)
                self._answered.pop(rollout, None)
            case m.SandboxesWanted(rollout=rollout, indices=indices):
                yield _deed(each, who, run, "woken", rollout, sandboxes(indices), indices=list(indices))
            case m.TenantAdded(tenant=tenant):
                yield _deed(each, OPERATOR, "", "tenant_added", tenant, "")
            case m.TenantRemoved(tenant=tenant):
                yield _deed(each, OPERATOR, "", "tenant_removed", tenant, "")
            case m.TenantSet(tenant=tenant, limits=limits) | m.TenantLimited(tenant=tenant, limits=limits):
                known = {name: getattr(limits, name) for name in limits.__struct_fields__}
                text = ", ".join(f"{name} {value:g}" for name, value in known.items() if value)
                yield _deed(each, OPERATOR, "", "tenant_limited", tenant, text, limits=known)
            case m.SettingsChanged(settings=settings):
                text = ", ".join(f"{name} {value}" for name, value in settings)
                yield _deed(each, OPERATOR, "", "settings_changed", each.stream, text, settings=dict(settings))
            case m.NodeDrained(node=node, drained=drained, hibernate=hibernate):
                text = "and hibernated" if hibernate else ""
                yield _deed(each, OPERATOR, "", "node_drained" if drained else "node_undrained", node, text)
            case m.PinSnapshot(snapshot=snapshot, pinned=pinned):
                yield _deed(each, who, run, "snapshot_pinned" if pinned else "snapshot_unpinned", snapshot, "")
            case m.RemoveSnapshot(snapshot=snapshot):
                yield _deed(each, who, run, "snapshot_removed", snapshot, "")
            case m.PrefetchSnapshot(snapshot=found) if each.stream.startswith("SHOAL_PLACEMENT_"):
                yield _deed(each, who, run, "snapshot_prefetched", found.digest, "")

    def _finished(self, each: Happening, message: m.SandboxesFinished, who: str, run: str) -> Iterator[Deed]:
        """Yield the commands that travelled with a rollout."""
        commands = self.commands.get(message.rollout, ())
        for one in message.results:
            command = commands[one.index if len(commands) > 1 else 0] if commands else None
            text = shell(command) if command is not None else "(submitted before what is read)"
            yield Deed(
                each.time_ms - one.run_us // 1000, who, run, "command", f"{message.rollout}-{one.index}", text,
                _result(one.result), each.time_ms, one.result.exit_code, each.stream, each.sequence, each.id,
                {"node": message.node, "attempt": message.attempt, "reason": str(reason_of(one.result)),
                 "duration_us": one.result.duration_us},
            )  # fmt: skip

    def unanswered(self) -> Iterator[Deed]:
        """Yield what was asked for and has no answer."""
        yield from self._asked.values()
        for build in self._builds.values():
            yield _built(*build, None, None)


def _deed(each: Happening, who: str, run: str, what: str, subject: str, detail: str, **values: Any) -> Deed:
    return Deed(
        each.time_ms, who, run, what, subject, detail, stream=each.stream, sequence=each.sequence, id=each.id,
        values=values,
    )  # fmt: skip


def shell(command: m.Command) -> str:
    """Return a command as it was given, all of it."""
    return shlex.join(command.argv) or command.line or f"python: {command.python}"


def _result(found: m.CommandResult) -> str:
    return "given up" if found.given_up else "timed out" if found.timed_out else f"exit {found.exit_code}"


_WHAT: Final[dict[type[Any], str]] = {
    m.RunCommand: "command", m.WriteFile: "file_written", m.ReadFile: "file_read", m.TakeSnapshot: "snapshot_taken",
    m.RollBack: "rolled_back", m.Hibernate: "hibernated",
}  # fmt: skip
_MANAGED: Final = {
    m.FileOp.LIST: "files_listed", m.FileOp.STAT: "file_looked_at", m.FileOp.REMOVE: "file_removed",
    m.FileOp.MAKE_DIR: "directory_made", m.FileOp.RENAME: "file_renamed",
}  # fmt: skip


def _detail(asked: Asked) -> tuple[str, dict[str, Any]]:
    match asked:
        case m.RunCommand(command=command):
            values = {"argv": list(command.argv), "line": command.line, "python": command.python, "user": command.user}
            return shell(command), values
        case m.WriteFile(path=path, data=data, offset=offset):
            return path, {"path": path, "offset": offset, "bytes": len(data)}
        case m.ReadFile(path=path, offset=offset):
            return path, {"path": path, "offset": offset}
        case m.ManageFile(path=path, to=to, recursive=recursive):
            return f"{path} to {to}" if to else path, {"path": path, "to": to, "recursive": recursive}
        case m.TakeSnapshot(name=name):
            return name, {"name": name}
        case m.RollBack(snapshot=snapshot):
            return snapshot.digest, {"digest": snapshot.digest}
    return "", {}


def _asked(each: Happening, asked: Asked, who: str) -> Deed:
    """Return what a trainer wants done in a sandbox."""
    detail, values = _detail(asked)
    what = _MANAGED[asked.op] if isinstance(asked, m.ManageFile) else _WHAT[type(asked)]
    return Deed(
        each.time_ms, who, asked.run, what, f"{asked.rollout}-{asked.index}", detail, "no answer",
        stream=each.stream, sequence=each.sequence, id=asked.id, values={"attempt": asked.attempt, **values},
    )  # fmt: skip


def _done(asked: Deed, answer: Happening) -> Deed:
    """Return it with what came of it."""
    outcome, code, values = "done", None, dict(asked.values)
    match answer.message:
        case m.CommandFinished(result=result):
            outcome, code = _result(result), result.exit_code
            values["duration_us"] = result.duration_us
        case m.CommandRefused(code=refused, detail=why, reason=reason):
            outcome = f"refused, {refused}: {why or (ended(reason, '') if reason is not None else '')}"
        case m.SnapshotTaken(snapshot=snapshot):
            values["digest"] = snapshot.digest
        case m.FileRead(data=data):
            values["bytes"] = len(data)
        case m.FileManaged(op=m.FileOp.LIST, entries=entries):
            values["entries"] = len(entries)
    return replace(asked, outcome=outcome, ended_ms=answer.time_ms, exit_code=code, values=values)


def _alone(each: Happening, message: m.CommandFinished, who: str, run: str) -> Deed:
    """Return a command whose beginning is not in what is read: its answer has it, too."""
    name = f"{message.rollout}-{message.index}"
    return Deed(
        each.time_ms - message.result.duration_us // 1000, who, run, "command", name, shell(message.command),
        _result(message.result), each.time_ms, message.result.exit_code, each.stream, each.sequence, message.id,
        {"attempt": message.attempt, "duration_us": message.result.duration_us},
    )  # fmt: skip


def _built(
    each: Happening, asked: m.BuildTemplate, answer: Happening | None, built: m.TemplateBuilt | None
) -> Deed:  # fmt: skip
    outcome = "no answer"
    if built is not None:
        outcome = f"failed: {short(built.error)}" if built.error else "was there already" if built.cached else "done"
    values = {"source": asked.recipe.source, "setup": list(asked.recipe.setup)}
    digest = built.snapshot.digest if built is not None and built.snapshot is not None else None
    return Deed(
        each.time_ms, asked.tenant, "", "template_built", asked.name, f"from {asked.recipe.source}", outcome,
        answer.time_ms if answer is not None else None, None, each.stream, each.sequence, asked.id,
        {**values, "digest": digest},
    )  # fmt: skip
