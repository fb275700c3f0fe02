"""Messages in words of the field: one alone, and many of a kind at once."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from shoal.archive.happenings import Happening, indices_of
from shoal.machine import ranges
from shoal.machine.ledger import HEDGE
from shoal.wire import messages as m
from shoal.wire.messages import AnyMessage, EndReason, Ranges
from shoal.wire.quantities import format_bytes
from shoal.wire.values import APPEND

_LONGEST: Final = 100
_ENDS: Final = {
    EndReason.NODE_LOST: "lost with its node",
    EndReason.START_FAILED: "could not be started",
    EndReason.DIED: "died: its first process was killed",
    EndReason.PREEMPTED: "made room",
    EndReason.OUT_OF_MEMORY: "ran out of memory",
    EndReason.OUT_OF_PROCESSES: "used up its processes",
    EndReason.NOT_STARTED: "not started in time",
    EndReason.DEADLINE: "was there for less than half of its rollout's time",
    EndReason.BAD_INPUT: "was given what cannot be used",
}


def sandboxes(indices: Ranges) -> str:
    """Return which sandboxes these are: `0-2, 7`."""
    if not indices:
        return "all"
    parts = [str(first) if count == 1 else f"{first}-{first + count - 1}" for first, count in indices]
    text = ", ".join(parts[:6])
    return text if len(parts) <= 6 else f"{text} and {ranges.count(indices[6:])} more"


def attempt(number: int) -> str:
    """Return which try of a sandbox it is, where it is not the first."""
    if not number:
        return ""
    return f", attempt {(number & (HEDGE - 1)) + 1}{', hedged' if number & HEDGE else ''}"


def duration(ms: float) -> str:
    """Return a duration as people read it."""
    if ms < 1000:
        return f"{ms:.0f} ms" if ms >= 1 or ms == 0 else f"{ms:.1f} ms"
    seconds = ms / 1000
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def command(given: m.Command) -> str:
    """Return a command as it was given, shortened."""
    text = " ".join(given.argv) or given.line or (f"python: {given.python}" if given.python else "")
    return short(" ".join(text.split()))


def end(found: m.CommandResult) -> str:
    """Return how a command ended."""
    return "given up" if found.given_up else "timed out" if found.timed_out else f"exit {found.exit_code}"


def result(found: m.CommandResult) -> str:
    """Return what a command did."""
    text = end(found)
    text += ", out of memory" if found.out_of_memory else ""
    text += ", disk full" if found.disk_full else ""
    return f"{text} in {duration(found.duration_us / 1000)}"


def short(text: str) -> str:
    """Return a text of one line, cut where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def digest(value: str) -> str:
    """Return the beginning of a digest, which tells it from others."""
    return value[:12]


def ended(reason: EndReason, detail: str) -> str:
    """Return why a sandbox ended."""
    return _ENDS.get(reason, str(reason).replace("_", " ")) + (f": {short(detail)}" if detail else "")


def _spec(spec: m.RolloutSpec) -> str:
    parts = [f"{spec.n} sandbox{'es' if spec.n > 1 else ''} of {spec.template}"]
    if spec.commands:
        parts.append(f"to run {command(spec.commands[0])}" + (" and others" if len(spec.commands) > 1 else ""))
    parts += [f"priority {spec.priority}"] if spec.priority else []
    parts += ["as a gang" if spec.min_ready == spec.n else f"{spec.min_ready} at once"] if spec.min_ready else []
    parts += [f"isolation {spec.isolation}"] if spec.isolation else []
    return ", ".join(parts)


def _made(what: str, snapshot: m.Snapshot | None, error: str) -> str:
    return (
        f"{what} is {digest(snapshot.digest)}" if snapshot is not None else f"{what} could not be made: {short(error)}"
    )


def _template(message: m.TemplateResolved | m.TemplateInspected) -> str:
    found = digest(message.snapshot.digest) if message.snapshot is not None else f"nothing: {message.error}"
    return f"template {message.template} is {found}"


def _concluded(message: m.RolloutConcluded) -> str:
    counts = ", ".join(f"{count} {str(reason).replace('_', ' ')}" for reason, count in message.counts)
    return f"concluded, {message.reason.replace('_', ' ')}: {counts or 'nothing was started'}"


def _finished(message: m.SandboxesFinished) -> str:
    if len(message.results) == 1:
        (one,) = message.results
        return f"{one.index} done on {message.node}: {result(one.result)}{attempt(message.attempt)}"
    outcomes = Counter(end(each.result) for each in message.results)
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    return f"{sandboxes(indices_of(message))} done on {message.node}: {counts}{attempt(message.attempt)}"


def _given_up(steps: Sequence[m.StepGivenUp]) -> str:
    return ", ".join(f"step {step.id} of {step.index}" for step in steps)


_SAYERS: Final[dict[type[Any], Callable[[Any], str]]] = {
    m.RolloutSubmitted: lambda e: f"submitted: {_spec(e.spec)}, run {e.run} of {e.tenant}",
    m.RolloutReleased: lambda e: f"its trainer has no more use for {sandboxes(e.indices)}",
    m.RolloutCancelled: lambda e: f"cancelled{f' by {e.by}' if e.by else ''}",
    m.SandboxesWanted: lambda e: f"{sandboxes(e.indices)} wanted again",
    m.StepsGivenUp: lambda e: f"its trainer gave up {_given_up(e.steps)}",
    m.SandboxesReady: lambda e: f"{sandboxes(e.indices)} ready on {e.node}{attempt(e.attempt)}",
    m.SandboxesFinished: _finished,
    m.SandboxesEnded: lambda e: f"{sandboxes(e.indices)} {ended(e.reason, e.detail)} ({e.node or 'nowhere'})",
    m.SandboxSaved: lambda e: f"{e.index} goes on from snapshot {digest(e.snapshot.digest)}, should it be lost",
    m.SandboxSlept: lambda e: f"{e.index} sleeps, and left {e.node}{' to make room' if e.preempted else ''}",
    m.RolloutQueued: lambda e: f"queued: {e.waiting} wait behind {e.ahead} others, {e.reason}",
    m.RolloutDispatched: lambda _: "all of it is given to placement",
    m.RolloutRejected: lambda e: f"rejected ({e.code}): {e.detail}",
    m.SandboxesHedged: lambda e: f"{sandboxes(e.indices)} take long to start, and are started elsewhere as well",
    m.SandboxesClosed: lambda e: f"{sandboxes(e.indices)} given up: {ended(e.reason, e.detail)}",
    m.RolloutConcluded: _concluded,
    m.TemplateResolved: _template,
    m.TemplateInspected: _template,
    m.ResolveTemplate: lambda e: f"what is template {e.template}?",
    m.CellCapacity: lambda e: f"the cell has room for {e.slots} on {e.nodes} nodes",
    m.TenantAdded: lambda e: f"tenant {e.tenant} added",
    m.TenantRemoved: lambda e: f"tenant {e.tenant} removed",
    m.TenantSet: lambda e: f"tenant {e.tenant} has other limits",
    m.TenantLimited: lambda e: f"tenant {e.tenant} has other limits",
    m.SettingsChanged: lambda e: f"decides from now on with {dict(e.settings)}",
    m.QuotaWanted: lambda e: f"cell {e.cell} could use more of what tenant {e.tenant} may have",
    m.QuotaLent: lambda e: f"cell {e.cell} gives a part of what tenant {e.tenant} may have away",
    m.RoomWanted: lambda e: f"cell {e.cell} wants room for {e.spec.n} of tenant {e.tenant}",
    m.RoomLent: lambda e: f"cell {e.cell} lends room: tickets {sandboxes(e.tickets)}",
    m.RoomReturned: lambda e: f"cell {e.cell} {'has no room after all' if e.declined else 'has no more use for room'}",
    m.ExecutorDismissed: lambda _: "the executor is to leave: all its nodes are drained and empty",
    m.ExecutorReplaced: lambda _: "the executor is to end: another has joined under its name",
    m.Tick: lambda _: "time passed",
    m.PlaceRequested: lambda e: f"{sandboxes(e.indices)} to be placed{attempt(e.attempt)}"
    + (f", not on {', '.join(e.avoid)}" if e.avoid else "") + (", all at once" if e.together else ""),
    m.ReleaseRequested: lambda e: f"{sandboxes(e.indices)} to be released: {ended(e.reason, '')}",
    m.PreemptRequested: lambda e: f"{sandboxes(e.indices)} to make room: {e.how}",
    m.NodeDrained: lambda e: f"node {e.node} takes {'no more sandboxes' if e.drained else 'sandboxes again'}"
    + (", and what can sleep does" if e.hibernate else ""),
    m.ExecutorJoined: lambda e: f"executor {e.executor} joined with {_nodes(e.nodes)}, {e.isolation}, boot {e.boot}",
    m.ExecutorBeat: lambda e: f"executor {e.executor} lives",
    m.ExecutorHolds: lambda e: f"executor {e.executor} has {len(e.blobs)} blobs at hand",
    m.ExecutorLeft: lambda e: f"executor {e.executor} left",
    m.SlotsReleased: lambda e: f"room of {sandboxes(e.indices)} on {e.node} is free again",
    m.PrefetchSnapshot: lambda e: f"snapshot {digest(e.snapshot.digest)} to be fetched",
    m.StartSandboxes: lambda e: f"{sandboxes(e.indices)} placed on {e.node}{attempt(e.attempt)}",
    m.DestroySandboxes: lambda e: f"{sandboxes(e.indices)} to end: {ended(e.reason, '')}",
    m.PreemptSandboxes: lambda e: f"{sandboxes(e.indices)} to make room: {e.how}",
    m.RunCommand: lambda e: f"{e.index}: {command(e.command)}",
    m.WriteFile: lambda e: f"{e.index}: write {e.path}, {format_bytes(len(e.data))} {_where(e.offset)}",
    m.ReadFile: lambda e: f"{e.index}: read {e.path} from {e.offset}",
    m.ManageFile: lambda e: f"{e.index}: {_DONE_WITH_FILES[e.op]} {e.path}"
    + (f" to {e.to}" if e.to else "") + (", with all that is in it" if e.recursive else ""),
    m.TakeSnapshot: lambda e: f"{e.index}: take a snapshot{f' called {e.name}' if e.name else ''}",
    m.RollBack: lambda e: f"{e.index}: go back to snapshot {digest(e.snapshot.digest)}",
    m.Hibernate: lambda e: f"{e.index}: go to sleep",
    m.GiveUp: lambda e: f"{e.index}: command {short(e.id.partition(':')[2] or e.id)} is given up",
    m.CommandOutput: lambda e: f"{e.index}: {format_bytes(len(e.data))} of output",
    m.CommandFinished: lambda e: result(e.result),
    m.FileWritten: lambda e: f"written, {format_bytes(e.size)}",
    m.FileRead: lambda e: f"read, {format_bytes(len(e.data))} of {format_bytes(e.size)}",
    m.FileManaged: lambda e: _managed(e),
    m.SnapshotTaken: lambda e: f"snapshot {digest(e.snapshot.digest)} taken, stood still {duration(e.took_us / 1000)}",
    m.RolledBack: lambda e: f"is as snapshot {digest(e.digest)} has it",
    m.Hibernated: lambda e: f"sleeps as snapshot {digest(e.digest)}",
    m.CommandRefused: lambda e: f"refused ({e.code}): {short(e.detail)}",
    m.SnapshotAdded: lambda e: f"snapshot {digest(e.snapshot.digest)} of {e.origin or '-'} is stored"
    + (f", called {e.name}" if e.name else ""),
    m.SnapshotHeld: lambda e: f"snapshot {digest(e.digest)} is in use",
    m.SnapshotsSealed: lambda e: f"{len(e.seals)} snapshots are sealed",
    m.SnapshotLetGo: lambda _: "its snapshot is in use no more",
    m.SandboxesBegan: lambda e: f"{sandboxes(e.indices)} take commands on {e.node}{attempt(e.attempt)}",
    m.StepBegun: lambda e: f"{e.index}: {e.what or 'step'} begins, once: "
    + (command(e.command) if e.command is not None else e.path),
    m.ReadBlob: lambda e: f"read output {digest(e.blob.digest)} from {e.offset}",
    m.BlobRead: lambda e: e.error or f"read, {format_bytes(len(e.data))} of {format_bytes(e.size)}",
    m.BlobKept: lambda e: (
        f"an output of tenant {e.tenant} is stored as {digest(e.blob.digest)}"
        if e.until_ms
        else f"what is stored as {digest(e.blob.digest)} came to nothing"
    ),
    m.BuildTemplate: lambda e: f"template {e.name} to be made",
    m.BuildBegun: lambda _: "it is being made",
    m.BuildProgress: lambda e: f"{e.step}{f': {short(e.line)}' if e.line else ''}",
    m.TemplateMade: lambda e: _made("a template", e.snapshot, e.error),
    m.TemplateBuilt: lambda e: _made(f"template {e.name}", e.snapshot, "") + (", as before" if e.cached else ""),
    m.ListSnapshots: lambda e: f"what snapshots has tenant {e.tenant}?",
    m.SnapshotsListed: lambda e: f"{len(e.entries)} snapshots{', and more' if e.more else ''}",
    m.PinSnapshot: lambda e: f"keep snapshot {short(e.snapshot)} {'for good' if e.pinned else 'no longer for good'}",
    m.RemoveSnapshot: lambda e: f"snapshot {short(e.snapshot)} is of no use any more",
    m.SnapshotChanged: lambda e: e.error or f"snapshot {digest(e.digest)} is so"
    + (f", and kept: {e.needed}" if e.needed else ""),
    m.BlobsCollected: lambda e: f"{len(e.digests)} blobs are in the store no longer",
    m.DeadLetter: lambda e: f"message {e.sequence} of {e.stream} put aside by {e.reader}: {short(e.reason)}",
}  # fmt: skip


def _where(offset: int) -> str:
    return "at its end" if offset == APPEND else f"at {offset}"


_DONE_WITH_FILES: Final[dict[m.FileOp, str]] = {
    m.FileOp.LIST: "list", m.FileOp.STAT: "look at", m.FileOp.REMOVE: "remove", m.FileOp.MAKE_DIR: "make directory",
    m.FileOp.RENAME: "rename",
}  # fmt: skip


def _managed(told: m.FileManaged) -> str:
    match told.op:
        case m.FileOp.LIST:
            count = len(told.entries)
            return f"{count} {'entry' if count == 1 else 'entries'}{', and more' if told.more else ''}"
        case m.FileOp.STAT:
            entry = told.entries[0] if told.entries else None
            return f"a {entry.kind} of {format_bytes(entry.size)}" if entry is not None else "nothing is there"
        case m.FileOp.REMOVE:
            return "removed"
        case m.FileOp.MAKE_DIR:
            return "is a directory"
    return f"renamed to {told.to}"


_MANY_MANAGED: Final[dict[m.FileOp, tuple[str, str]]] = {
    m.FileOp.LIST: ("directories to list", "listed"), m.FileOp.STAT: ("files to look at", "looked at"),
    m.FileOp.REMOVE: ("files to remove", "removed"), m.FileOp.MAKE_DIR: ("directories to make", "made"),
    m.FileOp.RENAME: ("files to rename", "renamed"),
}  # fmt: skip


def _managed_many(found: Sequence[AnyMessage]) -> str:
    counts: Counter[str] = Counter()
    for message in found:
        if isinstance(message, m.ManageFile | m.FileManaged):
            counts[_MANY_MANAGED[message.op][isinstance(message, m.FileManaged)]] += 1
    return ", ".join(f"{count} {what}" for what, count in counts.items())


def _nodes(nodes: Sequence[m.NodeSpec]) -> str:
    if len(nodes) < 2:
        return nodes[0].node if nodes else "no node"
    return f"{len(nodes)} nodes, {nodes[0].node} the first"


def said(message: AnyMessage) -> str:
    """Return what a message says, in a few words."""
    return _SAYERS[type(message)](message)


def summed(group: Sequence[Happening]) -> str:
    """Return what many messages of a kind say together."""
    found = [each.message for each in group]
    kind = type(found[0])
    about = sum(ranges.count(indices_of(message)) for message in found)
    nodes = {node for message in found if (node := getattr(message, "node", ""))}
    on = f" on {len(nodes)} node{'s' if len(nodes) > 1 else ''}" if nodes else ""
    done = [each.result for message in found if isinstance(message, m.SandboxesFinished) for each in message.results]
    if done:
        return f"{len(done)} done{on}: {_outcomes(done)}"
    results = [message.result for message in found if isinstance(message, m.CommandFinished)]
    if results:
        return _outcomes(results)
    ends: Counter[str] = Counter()
    for message in found:
        if isinstance(message, m.SandboxesEnded):
            ends[ended(message.reason, "")] += ranges.count(message.indices)
    if ends:
        return f"{about} ended{on}: {', '.join(f'{count} {reason}' for reason, count in ends.most_common())}"
    if isinstance(found[0], m.ManageFile | m.FileManaged):
        return _managed_many(found)
    what = _MANY.get(kind)
    if what is not None:
        return f"{about or 'all'} {what}{on}"
    return f"{len(found)} times {said(found[0])}"


_MANY: Final[dict[type[Any], str]] = {
    m.StartSandboxes: "placed",
    m.SandboxesReady: "ready",
    m.SlotsReleased: "rooms free again",
    m.SandboxesBegan: "take commands",
    m.ReleaseRequested: "to be released",
    m.DestroySandboxes: "to end",
    m.PlaceRequested: "to be placed",
    m.SandboxSlept: "asleep",
    m.SandboxSaved: "have a snapshot to go on from",
    m.RunCommand: "commands",
    m.GiveUp: "commands given up",
    m.WriteFile: "pieces of files to write",
    m.ReadFile: "pieces of files to read",
    m.FileWritten: "written",
    m.FileRead: "read",
    m.TakeSnapshot: "snapshots to take",
    m.SnapshotTaken: "snapshots taken",
    m.SandboxesWanted: "wanted again",
    m.RolloutReleased: "no more use for",
}


def _outcomes(results: Sequence[m.CommandResult]) -> str:
    outcomes = Counter(map(end, results))
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    return f"{counts}; {spread([each.duration_us / 1000 for each in results])}"


def spread(values: Iterable[float]) -> str:
    """Return how long something took, of many: the shortest, the median, the longest."""
    ordered = sorted(values)
    low, high = duration(ordered[0]), duration(ordered[-1])
    return low if low == high else f"{low} to {high}, half of them within {duration(statistics.median(ordered))}"
