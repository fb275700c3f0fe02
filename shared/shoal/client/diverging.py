"""What can go wrong where a run goes on, or a sandbox is brought back: what is done again is not what was done."""

from typing import TYPE_CHECKING, Any

from shoal.client.errors import ShoalError

if TYPE_CHECKING:
    from shoal.client.replaying import Divergence, Replay
    from shoal.client.results import CommandResult


class TrajectoryDiverged(ShoalError):
    """A step was something else when it was carried out: this trainer does not do what the one before it did.

    `step` is its id, `recorded` what the log has for it, `asked` what was asked now. Nothing was carried out. Without a
    `sandbox`, it was a rollout that was submitted as something else.
    """

    def __init__(self, sandbox: str, step: str, recorded: str, asked: str) -> None:
        if sandbox:
            text = f"step {step} of sandbox {sandbox} was {recorded}, and is now asked to be {asked}; ask the same in"
            todo = "the same order, give it another id=, or resume with diverged='live' to go on from here"
        else:
            text = f"rollout {step!r} of this run was submitted as {recorded}, and is now asked for as {asked}; ask for"
            todo = "the same, or under another key="
        super().__init__(f"{text} {todo}")
        self.sandbox = sandbox
        self.step = step
        self.recorded = recorded
        self.asked = asked


class NotIdempotent(ShoalError):
    """A step that must not be done twice was begun before, and what it did to its sandbox is undone by a loss.

    `result` is what is recorded of it; None where it was not heard how it ended, or where it was no command.
    """

    def __init__(self, sandbox: str, step: str, what: str, result: "CommandResult | None") -> None:
        told = "its recorded result is in `result`" if result else "no result of it is recorded"
        super().__init__(
            f"step {step} of sandbox {sandbox} ({what}) was begun before and is marked idempotent=False: it is not"
            f" carried out again; {told}; give it another id= to carry it out all the same"
        )
        self.sandbox = sandbox
        self.step = step
        self.what = what
        self.result = result


class ReplayDiverged(ShoalError):
    """A step gave something else when it was done again in a sandbox that was brought back.

    `divergence` says which, what it had given and what it gave now; `replay` has the new sandbox, as it is after that:
    use it, or release it. Pickled, the error has None there: a live handle belongs to its process.
    """

    def __init__(self, sandbox: str, divergence: "Divergence", replay: "Replay") -> None:
        super().__init__(
            f"sandbox {sandbox} cannot be brought back as it was: {divergence}; the new sandbox is"
            " error.replay.sandbox; resume(diverged='report') goes on and lists all that diverges"
        )
        self.sandbox = sandbox
        self.divergence = divergence
        self.replay = replay

    def _kept(self) -> dict[str, Any]:
        return {**self.__dict__, "replay": None}


class ReplayStopped(ShoalError):
    """A step is not done again in a sandbox that was brought back: it must not be, or its input is not kept.

    `replay` has the new sandbox, with everything before that step: use it, or release it. Pickled, the error has None
    there: a live handle belongs to its process.
    """

    def __init__(self, sandbox: str, step: str, what: str, why: str, replay: "Replay") -> None:
        super().__init__(
            f"sandbox {sandbox} is brought back up to step {step} ({what}): {why}; the new sandbox is"
            " error.replay.sandbox; resume(not_idempotent='recorded') takes what is recorded of such steps and goes on"
        )
        self.sandbox = sandbox
        self.step = step
        self.what = what
        self.replay = replay

    def _kept(self) -> dict[str, Any]:
        return {**self.__dict__, "replay": None}
