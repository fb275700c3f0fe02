"""What was asked of a sandbox, while its answer is awaited."""

import asyncio
from collections.abc import Callable

from shoal.wire.asked import Answer
from shoal.wire.messages import CommandOutput

OutputSink = Callable[[str, bytes], None]
"""Called with "stdout" or "stderr" and a piece of output, as it comes."""


class Pending:
    """One command or file operation whose answer is awaited."""

    def __init__(self, on_output: OutputSink | None) -> None:
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.waiters = 0
        self._on_output = on_output
        self._part = 0
        self._failed = False

    @property
    def told(self) -> Answer | None:
        """The answer, if it has come."""
        answer = self.answer
        if not answer.done() or answer.cancelled() or answer.exception() is not None:
            return None
        return answer.result()

    @property
    def unheard(self) -> bool:
        """Whether it may still run, and nobody hears of it."""
        return self.told is None and not self._failed

    def output(self, message: CommandOutput) -> None:
        """Hand a piece of output on, each once. What the callback raises becomes the answer."""
        if self._on_output is None or message.part < self._part or self.answer.done():
            return
        self._part = message.part + 1
        try:
            self._on_output("stdout" if message.channel == 1 else "stderr", message.data)
        except (StopIteration, GeneratorExit, asyncio.CancelledError) as error:  # no future has these for an error
            told = RuntimeError(f"on_output raised {type(error).__name__}")
            told.__cause__ = error
            self.answer.set_exception(told)
        except BaseException as error:  # it is the trainer's: its error, or its end, is for whoever called run()
            self.answer.set_exception(error)

    def resolve(self, message: Answer) -> None:
        """Give the answer."""
        if not self.answer.done():
            self.answer.set_result(message)

    def fail(self, error: BaseException) -> None:
        """Give up on the answer."""
        if not self.answer.done():
            self._failed = True
            self.answer.set_exception(error)
