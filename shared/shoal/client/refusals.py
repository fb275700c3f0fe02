"""What a sandbox's executor did not carry out, as its trainer's error."""

from typing import TYPE_CHECKING

from shoal.client.errors import (
    BadRequest,
    FileError,
    RolledBack,
    ShoalError,
    SnapshotError,
    Timeout,
    sandbox_error,
)
from shoal.client.requests import shown
from shoal.wire.asked import Answer
from shoal.wire.messages import CommandRefused, EndReason, OnLost

if TYPE_CHECKING:
    from shoal.client.sandbox import Sandbox


async def log_has_it(sandbox: "Sandbox", answer: Answer) -> None:
    """Wait for what the log says of a loss that an executor has told of first, and raise that: it may start again.

    Returns where the log says nothing of it for so long as an answer may take, and for any other answer.
    """
    if not isinstance(answer, CommandRefused) or answer.code != "sandbox_gone":
        return
    reason = answer.reason or EndReason.NODE_LOST  # an executor that knows nothing of it was restarted without it
    if reason.lost and sandbox.rollout.spec.on_lost is OnLost.RESTART:
        await sandbox.presence.end(answer.attempt, sandbox.rollout.link.grace_s)
    if not sandbox.presence.lives:
        await sandbox.presence.here()


def error(sandbox: "Sandbox", answer: CommandRefused, path: str | None) -> ShoalError:
    """Return the error that a refusal stands for. `path`: of the file that was asked for, if any."""
    match answer.code:
        case "sandbox_gone":
            reason = sandbox.ended or answer.reason or EndReason.NODE_LOST
            if reason.lost and sandbox.ended is None and sandbox.rollout.spec.on_lost is OnLost.RESUME:
                sandbox.steps.undone()
                return sandbox.presence.lost(reason, answer.detail, told=True, attempt=answer.attempt)
            sandbox.ended_by(reason, answer.detail)
            return sandbox_error(
                sandbox.name, reason, answer.detail, advice=sandbox.rollout.after_loss(sandbox.index, reason)
            )
        case "file_error":
            return FileError(sandbox.name, path or "", answer.detail)
        case "busy" if path is None and answer.what == "run":
            what = shown(answer.command) if answer.command is not None else ""
            return Timeout(f"command {what!r} in sandbox {sandbox.name}: {answer.detail}", answer.id.partition(":")[2])
        case "given_up":
            return BadRequest("id", f"{answer.detail}; ask again under another id")
        case "unsupported" | "snapshot_failed" | "busy":
            return SnapshotError(sandbox.name, answer.code, answer.detail)
        case "rolled_back":
            return RolledBack(sandbox.name)
        case "answer_gone":
            return BadRequest(
                "id", f"this command ran before and its answer is no longer kept: {answer.detail}; `shoal events`"
            )
        case _:
            return BadRequest("command" if path is None else "path", answer.detail)
