"""How much of a file is read: what a sandbox holds is not to be trusted, its size neither."""

from collections.abc import AsyncIterator

import pytest

import shoal
from shoal.client.requests import PIECE
from shoal.wire.asked import Asked
from shoal.wire.messages import FileRead, ReadFile, RolloutSubmitted, Step
from unit.client_fabric import Fabric, all_ready


class Growing(Fabric):
    """Has files that never end: of what they have, `claimed` is said, and the rest comes all the same."""

    claimed = 0

    def _carry_out(self, message: Asked, subject: str, step: Step) -> None:
        assert isinstance(message, ReadFile)
        head = (message.id, message.rollout, message.index, message.attempt, message.path)
        size = self.claimed or message.offset
        self.publish(subject, FileRead(*head, b"\0" * message.limit, size, False, step, message.offset))


@pytest.fixture
async def growing() -> AsyncIterator[Growing]:
    fabric = Growing(all_ready)
    async with fabric:
        yield fabric


async def test_a_sparse_file_is_refused_with_its_first_piece(growing: Growing) -> None:
    growing.claimed = 2**40
    async with shoal.connect(bus=growing.connect()) as cluster:
        sandbox = await anext((await cluster.rollout("host")).ready())
        with pytest.raises(shoal.FileError) as caught:
            await sandbox.files.read_bytes("answer.txt")
    assert len(growing.asked) == 1
    for named in ("answer.txt", str(2**40), "1.0 TiB", str(64 * 2**20), "64 MiB", "limit="):
        assert named in str(caught.value)


async def test_a_file_that_says_too_little_is_read_up_to_the_limit(growing: Growing) -> None:
    async with shoal.connect(bus=growing.connect()) as cluster:
        sandbox = await anext((await cluster.rollout("host")).ready())
        with pytest.raises(shoal.FileError, match=f"{4 * PIECE} bytes"):
            await sandbox.files.read("/proc/endless", limit=3 * PIECE + 1)
    assert len(growing.asked) == 4


async def test_what_is_as_large_as_the_limit_is_read() -> None:
    def script(fabric: Fabric, request: RolloutSubmitted) -> None:
        all_ready(fabric, request)
        fabric.files[request.rollout, 0, "f"] = b"x" * (PIECE + 1)

    async with Fabric(script) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        files = (await anext((await cluster.rollout("host")).ready())).files
        assert (
            len(await files.read_bytes("f", limit=PIECE + 1)) == len(await files.read("f", limit="257KiB")) == PIECE + 1
        )
        for read in (files.read, files.read_bytes):
            with pytest.raises(shoal.FileError, match=f"has {PIECE + 1} bytes"):
                await read("f", limit=PIECE)
            with pytest.raises(shoal.BadRequest, match="limit"):
                await read("f", limit="much")
