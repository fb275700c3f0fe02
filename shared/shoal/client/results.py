"""What a trainer gets back, as plain values."""

from dataclasses import dataclass

import msgspec

from shoal.client.errors import BadRequest, ShoalError, sandbox_error
from shoal.wire import messages
from shoal.wire.messages import AnyMessage, EndReason


class CommandResult(msgspec.Struct, frozen=True):
    """What a command did. `duration` in seconds. Death by signal N is exit code 128 + N; not startable: 126 or 127.

    `stdout` and `stderr` are text, with undecodable bytes replaced; the bytes are in `stdout_bytes`, `stderr_bytes`.
    Of more than the command's `output_limit` they have the beginning and the end, half of it each: between them
    `stdout_dropped` bytes are left out, and the last `stdout_tail` bytes come after those. `marked()` is text that says
    so in their place. Earlier versions have kept the beginning only.
    """

    exit_code: int
    stdout_bytes: bytes
    stderr_bytes: bytes
    duration: float
    timed_out: bool = False
    out_of_memory: bool = False
    stdout_dropped: int = 0  # bytes left out: what was written beyond the output limit
    stderr_dropped: int = 0
    disk_full: bool = False  # it failed, and there was no room left on the disk
    stdout_tail: int = 0  # how many of the last bytes come after what was left out
    stderr_tail: int = 0
    given_up: bool = False  # it was killed because nobody waited for it any more

    @property
    def stdout(self) -> str:
        """Standard output as text."""
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """Standard error as text."""
        return self.stderr_bytes.decode(errors="replace")

    @property
    def ok(self) -> bool:
        """Whether it exited with 0, by itself."""
        return self.exit_code == 0 and not self.timed_out and not self.given_up

    @property
    def truncated(self) -> bool:
        """Whether output beyond the limit was dropped."""
        return bool(self.stdout_dropped or self.stderr_dropped)

    def marked(self, channel: str = "stdout") -> str:
        """Return stdout or stderr as text for people: a line says where how many bytes are left out, if any are."""
        if channel not in ("stdout", "stderr"):
            raise BadRequest("channel", f"{channel!r} is no output; write 'stdout' or 'stderr'")
        if channel == "stdout":
            return marked(self.stdout_bytes, self.stdout_dropped, self.stdout_tail)
        return marked(self.stderr_bytes, self.stderr_dropped, self.stderr_tail)

    @classmethod
    def of(cls, result: messages.CommandResult) -> "CommandResult":
        """Return the wire's result in a trainer's terms."""
        return cls(
            result.exit_code,
            result.stdout,
            result.stderr,
            result.duration_us / 1_000_000,
            result.timed_out,
            result.out_of_memory,
            result.stdout_dropped,
            result.stderr_dropped,
            result.disk_full,
            0 if result.stdout_blob else result.stdout_tail,  # of a blob, here is the beginning
            0 if result.stderr_blob else result.stderr_tail,
            result.given_up,
        )


def marked(output: bytes, dropped: int, tail: int) -> str:
    """Return an output as text, with a line in the place of what was left out of it."""
    if not dropped:
        return output.decode(errors="replace")
    begin, end = output[: len(output) - tail].decode(errors="replace"), output[len(output) - tail :]
    line = "" if not begin or begin.endswith("\n") else "\n"
    return f"{begin}{line}[... {dropped} bytes left out ...]\n{end.decode(errors='replace')}"


class SandboxOutcome(msgspec.Struct, frozen=True):
    """How one sandbox ended. `result` is None when no command of its rollout came to its end.

    `exit_code`, `stdout` and `stderr` are the result's; where there is none they raise SandboxLost or SandboxEnded, so
    that a sandbox the platform lost cannot pass for one whose command failed. Times in ms since submission, by the
    broker's clock; None where it did not come to that.
    """

    sandbox: str
    index: int
    attempt: int
    reason: EndReason
    node: str = ""
    isolation: str = ""
    result: CommandResult | None = None
    detail: str = ""
    ready_ms: float | None = None
    first_command_ms: float | None = None

    @property
    def infrastructure(self) -> bool:
        """Whether the platform failed: never a verdict on what ran inside."""
        return self.reason.infrastructure

    @property
    def ok(self) -> bool:
        """Whether its command succeeded.

        Raises SandboxLost where the platform lost it, and SandboxEnded where it was released or cancelled first: what
        ran inside is not to blame for either.
        """
        if self.infrastructure or self.reason in (EndReason.RELEASED, EndReason.CANCELLED):
            raise self.error()
        return self.reason is EndReason.SUCCEEDED

    @property
    def exit_code(self) -> int:
        """The command's exit code. Raises SandboxLost or SandboxEnded where there is no result."""
        return self._result().exit_code

    @property
    def stdout(self) -> str:
        """The command's output. Raises SandboxLost or SandboxEnded where there is no result."""
        return self._result().stdout

    @property
    def stderr(self) -> str:
        """The command's error output. Raises SandboxLost or SandboxEnded where there is no result."""
        return self._result().stderr

    def error(self) -> ShoalError:
        """Return the error that says how this sandbox ended without a result."""
        return sandbox_error(self.sandbox, self.reason, self.detail)

    def _result(self) -> CommandResult:
        if self.result is None:
            raise self.error()
        return self.result


@dataclass(frozen=True, slots=True)
class RolloutSummary:
    """How a rollout ended. `reason` is finished, released, cancelled or timed_out."""

    rollout: str
    n: int
    counts: dict[EndReason, int]
    reason: str

    @property
    def succeeded(self) -> int:
        """How many sandboxes' commands exited with 0."""
        return self.counts.get(EndReason.SUCCEEDED, 0)

    @property
    def lost(self) -> int:
        """How many the platform failed."""
        return sum(count for reason, count in self.counts.items() if reason.infrastructure)

    @property
    def failed(self) -> int:
        """How many ended neither with success, nor lost, nor because they were released."""
        return sum(self.counts.values()) - self.succeeded - self.lost - self.counts.get(EndReason.RELEASED, 0)


@dataclass(frozen=True, slots=True)
class RolloutStatus:
    """A rollout at one moment.

    `state` is submitted (no word yet), queued, running, rejected, or its conclusion: finished, released, cancelled,
    timed_out. While sandboxes wait for room, `waiting` counts them, `ahead` those before them, `waiting_reason` says
    why, and `start_ms` when the last of them may start (ms since the epoch; None: unknown), going by how fast room came
    free lately. Those that are `asleep` are kept and run nowhere; their next command wakes them. `key`: what the run
    calls it, where it has a name there.
    """

    rollout: str
    tenant: str
    run: str
    template: str
    n: int
    state: str
    pending: int
    ready: int
    ended: int
    counts: dict[EndReason, int]
    waiting: int = 0
    ahead: int = 0
    waiting_reason: str = ""
    asleep: int = 0
    start_ms: int | None = None
    key: str = ""


@dataclass(frozen=True, slots=True)
class RolloutInfo(RolloutStatus):
    """A rollout in a listing. `submitted_ms`: when, in ms since the epoch, by the broker's clock."""

    submitted_ms: int = 0


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A node. `state`: alive, draining, drained, silent or left. `live`, `starting`: of its whole executor."""

    node: str
    executor: str
    isolation: str
    state: str
    slots: int
    memory: int
    live: int
    starting: int
    last_seen_ms: int
    labels: tuple[tuple[str, str], ...] = ()
    unenforced: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """One message of the log. `message` is None where this version cannot decode it."""

    stream: str
    sequence: int
    time_ms: int
    subject: str
    id: str
    message: AnyMessage | None
