"""Outputs too large for a message, fetched from the executors that can reach the store they are kept in.

A trainer needs no way to the store itself: what it needs is the broker, and that it has.
"""

import asyncio
import hashlib
import secrets
import time
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
from msgspec.structs import replace

from shoal.bus.protocol import BusError
from shoal.client import listing
from shoal.client.errors import OutputGone
from shoal.client.results import CommandResult
from shoal.wire import subjects
from shoal.wire.messages import Blob, BlobRead, CommandFinished, ReadBlob
from shoal.wire.outputs import PIECE, heading

if TYPE_CHECKING:
    from shoal.client.link import Link

_AT_ONCE: Final = 4
_PATIENCE_S: Final = 10.0


class Owner(Protocol):
    """Whose an output is: a run of a tenant's in a cell, reached over a link."""

    @property
    def link(self) -> "Link":
        """The connection."""
        ...

    @property
    def cell(self) -> int:
        """The rollout's."""
        ...

    @property
    def tenant(self) -> str:
        """The rollout's."""
        ...

    @property
    def run(self) -> str:
        """The rollout's."""
        ...


class _Trouble(Exception):
    """One executor did not give a blob."""


async def whole(owner: Owner, sandbox: str, finished: CommandFinished) -> CommandResult:
    """Return a command's result with all of its output. Raises OutputGone."""
    result, told = CommandResult.of(finished.result), finished.result
    if told.stdout_blob is None and told.stderr_blob is None:
        return result
    try:
        if told.stdout_blob is not None:
            stdout = await fetch(owner, told.stdout_blob, finished.step.executor)
            result = replace(result, stdout_bytes=stdout, stdout_tail=told.stdout_tail)
        if told.stderr_blob is not None:
            stderr = await fetch(owner, told.stderr_blob, finished.step.executor)
            result = replace(result, stderr_bytes=stderr, stderr_tail=told.stderr_tail)
    except _Trouble as error:
        raise OutputGone(sandbox, str(error), result) from error
    return result


async def filled(owner: Owner, finished: CommandFinished) -> CommandFinished:
    """Return a command's end with all of its output, or, where that cannot be fetched, as it is."""
    told, maker = finished.result, finished.step.executor
    try:
        if told.stdout_blob is not None:
            stdout = await fetch(owner, told.stdout_blob, maker)
            told = msgspec.structs.replace(told, stdout=stdout, stdout_blob=None)
        if told.stderr_blob is not None:
            stderr = await fetch(owner, told.stderr_blob, maker)
            told = msgspec.structs.replace(told, stderr=stderr, stderr_blob=None)
    except _Trouble:
        pass
    return msgspec.structs.replace(finished, result=told)


async def fetch(owner: Owner, blob: Blob, maker: str) -> bytes:
    """Return an output of the owner's, from the executor that made it or any other that lives."""
    link = owner.link
    await link.follow_blobs(owner.cell, owner.tenant, owner.run)
    problems: list[str] = []
    asked: set[str] = set()
    for executor in [maker] if maker else []:
        asked.add(executor)
        try:
            return await _from(owner, executor, blob)
        except _Trouble as error:
            problems.append(f"{executor}: {error}")
    try:
        nodes = await listing.nodes(link.bus, link.cells, listing.since(60.0) or 0, time.time_ns() // 1_000_000)
    except BusError as error:
        raise link.explained(error) from error
    others = dict.fromkeys(node.executor for node in nodes if node.state not in ("left", "silent"))
    for executor in others:
        if executor in asked:
            continue
        try:
            return await _from(owner, executor, blob)
        except _Trouble as error:
            problems.append(f"{executor}: {error}")
    raise _Trouble("; ".join(problems) or "no executor lives")


async def _from(owner: Owner, executor: str, blob: Blob) -> bytes:
    room = asyncio.Semaphore(_AT_ONCE)

    async def piece(offset: int) -> bytes:
        async with room:
            return await _piece(owner, executor, blob, offset)

    pieces = [asyncio.create_task(piece(offset)) for offset in range(0, blob.size, PIECE)]
    try:
        content = b"".join(await asyncio.gather(*pieces))
    finally:
        for task in pieces:
            task.cancel()
    begin = heading(owner.tenant)
    if hashlib.sha256(content).hexdigest() != blob.digest or not content.startswith(begin):
        raise _Trouble(f"what came is not blob {blob.digest}")
    return content[len(begin) :]


async def _piece(owner: Owner, executor: str, blob: Blob, offset: int) -> bytes:
    link, id = owner.link, secrets.token_hex(12)
    coming: asyncio.Future[BlobRead] = asyncio.get_running_loop().create_future()
    link.pieces[id] = coming
    try:
        asked = ReadBlob(id, owner.tenant, owner.run, owner.cell, blob, offset, PIECE)
        await link.publish(subjects.executor_command(executor, owner.tenant), asked, id)
        async with asyncio.timeout(min(_PATIENCE_S, link.grace_s)):
            told = await coming
    except TimeoutError:
        raise _Trouble("no answer") from None
    finally:
        del link.pieces[id]
    if told.error:
        raise _Trouble(told.error)
    return told.data
