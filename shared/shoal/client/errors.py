"""Everything that can go wrong for a trainer, as one tree. Every text says what happened and what to do."""

from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from shoal.bus.address import advice, shown
from shoal.bus.protocol import BusError, NotAllowedError, UnreachableError
from shoal.wire.messages import EndReason

if TYPE_CHECKING:
    from shoal.client.results import CommandResult


E = TypeVar("E", bound="ShoalError")


class ShoalError(Exception):
    """Anything Shoal reports to a trainer. It can be pickled, as between a pool's processes, with all it says."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.args, self._kept())

    def __copy__(self) -> Self:
        return _again(type(self), self.args, self.__dict__)

    def _kept(self) -> dict[str, Any]:
        """Return the attributes that go along to another process."""
        return dict(self.__dict__)


def _again(kind: type[E], args: tuple[object, ...], attributes: dict[str, Any]) -> E:
    """Return an error as it was: its text is there already, so that what its `__init__` makes it of is not asked."""
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(attributes)
    return error


class BadRequest(ShoalError, ValueError):
    """A value given is not usable; nothing was published. `field` names it, `problem` says what would be right."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class Rejected(ShoalError):
    """The scheduler did not admit a rollout. `code` is for programs, `detail` says what would be right."""

    def __init__(self, rollout: str, code: str, detail: str) -> None:
        super().__init__(f"the cluster rejected rollout {rollout} ({code}): {detail}")
        self.rollout = rollout
        self.code = code
        self.detail = detail


class QueueFull(Rejected):
    """As many sandboxes of the tenant wait for room as may; try again after `retry_after` seconds."""

    def __init__(self, rollout: str, code: str, detail: str, retry_after: float) -> None:
        super().__init__(rollout, code, f"{detail}; try again in {retry_after:.0f} s")
        self.retry_after = retry_after


class InfrastructureError(ShoalError):
    """The platform failed. Never a verdict on what ran inside a sandbox: do not score it, try again."""


_ANOTHER: Final = "ask for another, or have the platform start it again: on_lost='restart' or 'resume', retries="
_LONGER: Final = (
    "try again with a longer timeout=, of which waiting takes its part; command_timeout= and lifetime= limit the work"
    " alone"
)


class SandboxLost(InfrastructureError):
    """The platform lost a sandbox. `restarting`: it is being started again, empty, and `ready()` will yield it.

    `advice`: what can be done, where more is known than that it was lost; it is a part of the text.
    """

    def __init__(
        self, sandbox: str, reason: EndReason, detail: str = "", *, restarting: bool = False, advice: str = ""
    ) -> None:
        text = {
            EndReason.NODE_LOST: "its node was lost",
            EndReason.START_FAILED: "it could not be started",
            EndReason.DIED: "its first process was killed though nobody asked",
            EndReason.PREEMPTED: "it made room for what has a higher priority",
            EndReason.NOT_STARTED: "it was not started in the time it was given",
            EndReason.DEADLINE: "its rollout's time was up, and most of that went by before it was there",
        }.get(reason, str(reason))
        todo = _LONGER if reason is EndReason.DEADLINE else advice or _ANOTHER
        todo = (
            "it is being started again, empty: take it from ready()"
            if restarting
            else f"this says nothing about what ran in it: do not score it; {todo}"
        )
        super().__init__(f"sandbox {sandbox} is lost: {text}{f' ({detail})' if detail else ''}; {todo}")
        self.sandbox = sandbox
        self.reason = reason
        self.detail = detail
        self.restarting = restarting


class SandboxResumed(InfrastructureError):
    """The platform lost a sandbox and brings it back as its last snapshot has it: what was done since is undone.

    Raised once for each loss that took something: by whatever was under way (`under_way` operations, which may or may
    not have been carried out before), else by the next operation, which is then not carried out. The handle goes on:
    do again what is still wanted. `undone` names the last of the `count` commands and file writes that were undone.
    """

    def __init__(
        self, sandbox: str, reason: EndReason, detail: str, undone: tuple[str, ...], count: int, under_way: int
    ) -> None:
        what = f"{count} commands or file writes done since its last snapshot are undone"
        last = f", the last was {undone[-1]!r}" if undone else ""
        under = f", and what became of {under_way} under way is not known" if under_way else ""
        super().__init__(
            f"sandbox {sandbox} was lost ({reason}{f': {detail}' if detail else ''}) and goes on from its last"
            f" snapshot: {what}{last}{under}; do again what is still wanted"
        )
        self.sandbox = sandbox
        self.reason = reason
        self.detail = detail
        self.undone = undone
        self.count = count
        self.under_way = under_way


class OutputGone(InfrastructureError):
    """A command's output is kept as a blob that nobody gives at the moment. `result` has the beginning of it.

    The command was carried out: ask for its result again, under the same id=, when its executors are there.
    """

    def __init__(self, sandbox: str, detail: str, result: "CommandResult") -> None:
        super().__init__(f"the whole output of a command in sandbox {sandbox} cannot be fetched: {detail}")
        self.sandbox = sandbox
        self.detail = detail
        self.result = result


class LogGone(InfrastructureError):
    """The log of the cluster at `address` is not the one that was followed: it was made anew, or has lost its end.

    What was under way is gone with it. A rollout that is begun now, in the same connection, goes well.
    """

    def __init__(self, address: str, detail: str) -> None:
        super().__init__(f"the cluster at {address} has lost its log: {detail}; begin anew what was under way")
        self.address = address
        self.detail = detail


class StreamFull(InfrastructureError):
    """A stream takes no new messages: what was asked was not stored and will not happen. Ask again when there is room.

    `stream` is its name, `detail` says which limit it has reached and how to make room.
    """

    def __init__(self, stream: str, detail: str) -> None:
        super().__init__(f"{detail}; what was asked now was not stored: ask again when there is room")
        self.stream = stream
        self.detail = detail


class SandboxEnded(ShoalError):
    """A sandbox ended for a reason of its own or its trainer's: released, cancelled, out of memory, processes or

    time, or given files or code (`files=`, `warm=`) that cannot be used.
    """

    def __init__(self, sandbox: str, reason: EndReason, detail: str = "") -> None:
        text, todo = {
            EndReason.RELEASED: ("it was released", "use it before it is released"),
            EndReason.CANCELLED: ("its rollout was cancelled", "submit a new one"),
            EndReason.TIMED_OUT: (
                "its time was up",
                "ask for more, such as '2h': timeout= is its rollout's time, lifetime= its own",
            ),
            EndReason.OUT_OF_MEMORY: ("it exceeded its memory limit", "ask for more: Resources(memory='1GiB')"),
            EndReason.OUT_OF_PROCESSES: ("it used up its processes", "ask for more: Resources(pids=1024)"),
            EndReason.BAD_INPUT: (
                "what it was given cannot be used",
                "put that right, or count it as a failure of whoever wrote it: another attempt comes to the same",
            ),
        }.get(reason, (str(reason), "look at its outcome"))
        super().__init__(f"sandbox {sandbox} has ended: {text}{f' ({detail})' if detail else ''}; {todo}")
        self.sandbox = sandbox
        self.reason = reason
        self.detail = detail


class RolloutEnded(ShoalError):
    """A rollout was stopped (`reason`: cancelled) before every sandbox of it was ready."""

    def __init__(self, rollout: str, reason: str, missing: int) -> None:
        super().__init__(
            f"rollout {rollout} was {reason} while {missing} of its sandboxes were not ready; submit a new one"
        )
        self.rollout = rollout
        self.reason = reason
        self.missing = missing


class CommandFailed(ShoalError):
    """A command's exit code was not 0, and `check=True` asked for an error. `result` has all of it."""

    def __init__(self, sandbox: str, command: str, result: "CommandResult") -> None:
        last = result.stderr.strip().splitlines()[-1:] or [""]
        what = (
            "was given up"
            if result.given_up
            else "timed out"
            if result.timed_out
            else f"exited with {result.exit_code}"
        )
        super().__init__(f"command {command!r} in sandbox {sandbox} {what}{': ' + last[0] if last[0] else ''}")
        self.sandbox = sandbox
        self.command = command
        self.result = result


class FileError(ShoalError):
    """A file in a sandbox cannot be read or written as asked."""

    def __init__(self, sandbox: str, path: str, detail: str) -> None:
        super().__init__(f"file {path!r} in sandbox {sandbox}: {detail}")
        self.sandbox = sandbox
        self.path = path
        self.detail = detail


class SnapshotError(ShoalError):
    """A sandbox could not be kept, or brought back to what was kept: by its driver, or for want of room.

    `code` is `unsupported`, `busy` or `snapshot_failed`; the sandbox goes on as it was.
    """

    def __init__(self, sandbox: str, code: str, detail: str) -> None:
        super().__init__(f"snapshot of sandbox {sandbox}: {detail}")
        self.sandbox = sandbox
        self.code = code
        self.detail = detail


class BuildFailed(ShoalError):
    """A template could not be made. The text has the failing command's output."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"template {name} could not be made: {detail}")
        self.name = name
        self.detail = detail


class NoSuchSnapshot(ShoalError):
    """This tenant has no such template or snapshot."""


class RolledBack(ShoalError):
    """A command was cut off, for its sandbox was rolled back while it ran."""

    def __init__(self, sandbox: str) -> None:
        super().__init__(f"sandbox {sandbox} was rolled back while this ran: run it again if it is still wanted")
        self.sandbox = sandbox


class Timeout(ShoalError, TimeoutError):
    """No answer in time. A command that exceeds its own timeout is a result with `timed_out`, not this.

    Itself it is a limit of the trainer's, as of `Rollout.wait(timeout)`: what is waited for goes on. Where the platform
    did not do its part in time it is a PlatformTimeout.

    `id`: what a command, or what was done with a file, had as `id=`; empty for anything else.
    """

    def __init__(self, text: str, id: str = "") -> None:
        super().__init__(text)
        self.id = id


class PlatformTimeout(Timeout, InfrastructureError):
    """The platform did not answer in its time, or had not all sandboxes of a rollout ready within the rollout's."""


class Unreachable(InfrastructureError, ConnectionError):
    """No cluster answers at `address`."""

    def __init__(self, address: str, detail: str) -> None:
        address = shown(address)
        super().__init__(f"no Shoal answers at {address}: {detail}; {advice(address)}")
        self.address = address
        self.detail = detail


class NotAllowed(ShoalError, PermissionError):
    """The broker at `address` does not let this client in, or its permissions forbid what was asked.

    It is no InfrastructureError: it comes again until somebody changes the address or the permissions.
    """

    def __init__(self, address: str, detail: str) -> None:
        super().__init__(detail)
        self.address = shown(address)
        self.detail = detail


def without_answer(address: str, error: BusError) -> ShoalError:
    """Return the error for an address where a trouble of the bus left nothing to work with."""
    if isinstance(error, NotAllowedError):
        return NotAllowed(address, str(error))
    return Unreachable(address, error.reason if isinstance(error, UnreachableError) else str(error))


class NotConnected(Unreachable, RuntimeError):
    """A connection cannot be used here: it was closed, or another process or event loop has it. Connect again."""

    def __init__(self, address: str, detail: str) -> None:
        ShoalError.__init__(self, detail)
        self.address = address
        self.detail = detail


def sandbox_error(
    sandbox: str, reason: EndReason, detail: str = "", *, restarting: bool = False, advice: str = ""
) -> ShoalError:
    """Return the error for using a sandbox that ended so: lost by the platform, or ended otherwise."""
    if reason.infrastructure:
        return SandboxLost(sandbox, reason, detail, restarting=restarting, advice=advice)
    return SandboxEnded(sandbox, reason, detail)
