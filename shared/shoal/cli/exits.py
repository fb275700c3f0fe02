"""How `shoal` ends: the exit statuses, and the one sentence a person gets for each error."""

from enum import IntEnum


class Exit(IntEnum):
    """Exit statuses of `shoal`; programs may rely on them."""

    OK = 0  # what was asked is done; of a rollout: every sandbox succeeded, or its trainer let it go
    FAILED = 1  # some sandbox's command failed, by itself or by its limits
    USAGE = 2  # an option or argument is not usable
    LOST = 3  # the platform lost some sandbox: no verdict on what ran in it
    UNKNOWN_TEMPLATE = 4
    UNREACHABLE = 5  # no broker, or no Shoal, answers
    TIMEOUT = 6  # no answer in time
    INFRASTRUCTURE = 7  # the platform failed otherwise: an answer makes no sense
    INPUT = 8  # an input file cannot be read, or an archive not be used
    UNKNOWN_ROLLOUT = 9  # or no rollout of such a run
    STATE_DIRECTORY = 10  # the state directory cannot be used
    PORT = 11  # the port is in use
    ALREADY_RUNNING = 12  # `shoal up` where one runs
    NOT_RUNNING = 13  # `shoal down` or `shoal status` where none runs
    START_FAILED = 14  # a service cannot start
    REJECTED = 15  # the cluster did not admit the rollout
    CANCELLED = 16  # the rollout was cancelled, by somebody else
    DEAD_LETTER = 17  # there is no such dead letter, or it was not kept whole
    BUILD_FAILED = 19  # a template could not be made
    DAMAGED = 20  # an archive is not as it was written; what is good of it was read
    DIVERGED = 22  # the services installed here say something else than was recorded
    STREAM_FULL = 18  # a stream takes no new messages until somebody makes room
    OUTPUT = 23  # standard output cannot be written, such as to a full disk
    NOT_ALLOWED = 24  # the broker does not let this client in, or forbids what was asked
    OBJECTIVE = 21  # a load test missed an objective, or found sandboxes lost or counted twice
    INTERNAL = 70  # a mistake in Shoal
    COMMAND_NOT_FOUND = 127  # the sandbox has no such command
    INTERRUPTED = 130  # Ctrl-C
    BROKEN_PIPE = 141  # whoever read the output stopped reading


class Failure(Exception):
    """An error a person can cause: one sentence that says what to do, and the status to exit with."""

    def __init__(self, status: Exit, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class OutputClosed(Exception):
    """Whoever read standard output has stopped reading. (Of BrokenPipeError click makes a status of its own.)"""


class OutputRefused(Exception):
    """Standard output cannot be written; the text says why. (An OSError could be of any file.)"""


def explain(error: BaseException) -> tuple[Exit, str]:
    """Return the exit status and the sentence for any error."""
    if isinstance(error, Failure):
        return error.status, str(error)
    if isinstance(error, OutputRefused):
        return Exit.OUTPUT, f"standard output cannot be written: {error}"
    from shoal.archive.source import ArchiveError, DamagedError
    from shoal.bus.address import advice
    from shoal.bus.protocol import BusError, NotAllowedError, StreamFullError
    from shoal.client import errors
    from shoal.wire.quantities import BadValueError

    match error:
        case errors.BadRequest(field="rollout"):
            return Exit.UNKNOWN_ROLLOUT, error.problem
        case errors.BadRequest(field="letter"):
            return Exit.DEAD_LETTER, error.problem
        case errors.BadRequest() | BadValueError():
            return Exit.USAGE, str(error)
        case errors.Rejected(code="unknown_template"):
            return Exit.UNKNOWN_TEMPLATE, error.detail
        case errors.Rejected():
            return Exit.REJECTED, str(error)
        case errors.Unreachable():
            reason = error.detail
            what = reason if reason.startswith("no broker") else f"no Shoal answers at {error.address}: {reason}"
            return Exit.UNREACHABLE, f"{what}; {advice(error.address, 'say with --url or SHOAL_URL')}"
        case errors.NotAllowed() | NotAllowedError():
            return Exit.NOT_ALLOWED, str(error)
        case errors.Timeout():
            return Exit.TIMEOUT, str(error)
        case errors.StreamFull() | StreamFullError():
            return Exit.STREAM_FULL, str(error)
        case errors.BuildFailed():
            return Exit.BUILD_FAILED, str(error)
        case errors.NoSuchSnapshot():
            return Exit.UNKNOWN_TEMPLATE, str(error)
        case DamagedError():
            return Exit.DAMAGED, str(error)
        case ArchiveError():
            return Exit.INPUT, str(error)
        case errors.ShoalError() | BusError():
            return Exit.INFRASTRUCTURE, str(error)
    return (
        Exit.INTERNAL,
        f"a mistake in Shoal: {type(error).__name__}: {error}; set SHOAL_TRACEBACK=1 to see where, and report it",
    )
