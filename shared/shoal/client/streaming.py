"""A command's output, handed on as it comes; and at its end, what came of it otherwise."""

import hashlib
import inspect

from shoal.client.errors import BadRequest
from shoal.client.pending import OutputSink
from shoal.client.results import CommandResult
from shoal.wire.asked import Answer
from shoal.wire.messages import CommandFinished


def sink(given: object) -> None:
    """Raise BadRequest for what is no `on_output`, which is called and not awaited."""
    if any(map(inspect.iscoroutinefunction, (given, getattr(type(given), "__call__", None)))):  # noqa: B004 - what it is, not whether
        raise BadRequest("on_output", "it is an async function, which nobody would await; give a plain one")
    if given is not None and not callable(given):
        raise BadRequest("on_output", f"{given!r} cannot be called; give a function that takes a channel and bytes")


class Streamed:
    """What is given to a trainer's `on_output`, and how much of each channel that was.

    What a command wrote while its executor was away is not streamed: it is in its result only.
    """

    def __init__(self, on_output: OutputSink) -> None:
        self._on_output = on_output
        self._sizes = {"stdout": 0, "stderr": 0}
        self._digests = {"stdout": hashlib.blake2b(), "stderr": hashlib.blake2b()}

    def __call__(self, channel: str, data: bytes) -> None:
        """Hand a piece on."""
        self._sizes[channel] += len(data)
        self._digests[channel].update(data)
        self._on_output(channel, data)

    def end(self, result: CommandResult) -> None:
        """Hand on what the result has beyond what was streamed; where either has a gap, nothing more is in order."""
        out = result.stdout_bytes[: len(result.stdout_bytes) - result.stdout_tail]
        err = result.stderr_bytes[: len(result.stderr_bytes) - result.stderr_tail]
        for channel, whole in (("stdout", out), ("stderr", err)):
            size = self._sizes[channel]
            if size < len(whole) and hashlib.blake2b(whole[:size]).digest() == self._digests[channel].digest():
                self(channel, whole[size:])


def say_again(answer: Answer, on_output: OutputSink | None) -> None:
    """Hand on what a recorded command wrote, all of it that the log has at once."""
    if on_output is not None and isinstance(answer, CommandFinished):
        told = CommandResult.of(answer.result)
        for channel, data, tail in (
            ("stdout", told.stdout_bytes, told.stdout_tail),
            ("stderr", told.stderr_bytes, told.stderr_tail),
        ):
            if tail < len(data):
                on_output(channel, data[: len(data) - tail])
