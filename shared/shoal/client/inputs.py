"""Inputs too large to be told with an answer, read where they were asked: in the inbox of an executor."""

from contextlib import aclosing

import msgspec

from shoal.bus.protocol import BusError, NoStreamError
from shoal.client.feed import decoded, history
from shoal.client.link import Link
from shoal.wire import streams
from shoal.wire.asked import Answer, Asked, blob_of, same
from shoal.wire.messages import CommandFinished, FileWritten, RunCommand, WriteFile


async def request(link: Link, answer: Answer) -> Asked | None:
    """Return what was asked, as it was asked, or None where no log has it any longer. Raises a ShoalError."""
    step = answer.step
    if not step.executor:
        return None
    inbox = streams.executor(step.executor).name
    try:
        async with aclosing(history(link.bus, inbox, after=step.sequence - 1, until=step.sequence)) as found:
            async for delivery in found:
                asked = decoded(delivery)
                if isinstance(asked, Asked) and asked.id == answer.id and same(asked, answer):
                    return asked
    except NoStreamError:
        return None
    except BusError as error:
        raise link.explained(error) from error
    return None


async def filled(link: Link, answer: Answer) -> Answer:
    """Return an answer with the input it is to, or, where no log has that any longer, as it is."""
    match answer:
        case CommandFinished(command=command, stdin=stdin) if stdin is not None and blob_of(command.stdin) != stdin:
            asked = await request(link, answer)
            if isinstance(asked, RunCommand):
                command = msgspec.structs.replace(command, stdin=asked.command.stdin)
                return msgspec.structs.replace(answer, command=command)
        case FileWritten(data=data, content=content) if content is not None and content.size != len(data):
            asked = await request(link, answer)
            if isinstance(asked, WriteFile):
                return msgspec.structs.replace(answer, data=asked.data)
    return answer
