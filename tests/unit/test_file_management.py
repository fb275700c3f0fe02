"""`sandbox.files`: what is looked at and changed besides reading and writing, and that each is a step."""

import pytest

import shoal
from shoal.wire.messages import FileEntry, FileManaged, FileOp, ManageFile, Step
from unit.client_fabric import Fabric, all_ready


class Crowded(Fabric):
    """Has a directory of which not all is told."""

    def _carry_out(self, message: object, subject: str, step: Step) -> None:
        assert isinstance(message, ManageFile)
        head = (message.id, message.rollout, message.index, message.attempt, message.op, message.path, step)
        entries = (FileEntry("d", "directory", 40, 0o755, 1_500), FileEntry("l", "link", 3, 0o777, 0))
        self.publish(subject, FileManaged(*head, entries=entries, more=True))


async def test_a_listing_has_what_is_there_and_says_when_that_is_not_all() -> None:
    async with Crowded(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        sandbox = await anext((await cluster.rollout("host")).ready())
        listing = await sandbox.files.list("many")
        assert listing == [
            shoal.FileInfo("d", "directory", 40, 0o755, 1.5),
            shoal.FileInfo("l", "link", 3, 0o777, 0.0),
        ]
        assert listing.cut
        assert [each.is_dir for each in listing] == [True, False]


async def test_what_is_there_and_what_is_not() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        sandbox = await anext((await cluster.rollout("host")).ready())
        files = sandbox.files
        await files.write("a", "1")
        for append in range(2):
            await files.write("a", b"x" * 300_000, append=True, id=f"append-{append}")
        assert (await files.stat("a")).size == 600_001
        assert (await files.exists("a"), await files.exists("b")) == (True, False)
        with pytest.raises(shoal.FileError, match="b: No such file or directory"):
            await files.stat("b")
        await files.rename("a", "b")
        assert [each.name for each in await files.list()] == ["b"]
        assert not (await files.list()).cut
        await files.remove("b")
        with pytest.raises(shoal.FileError, match="b: no such file"):
            await files.remove("b")
        await files.make_dir("d", id="made")
        await files.make_dir("d", id="made")
        assert sum(isinstance(each, ManageFile) and each.op is FileOp.MAKE_DIR for each in fabric.asked) == 2
        assert fabric.ran[f"{sandbox.name}:made"] == 1
        with pytest.raises(shoal.TrajectoryDiverged, match=r"make_dir d.*make_dir e"):
            await files.make_dir("e", id="made")


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda files: files.list(""), "path"),
        (lambda files: files.rename("a", ""), "to"),
        (lambda files: files.rename("a", None), "to"),
        (lambda files: files.remove("a", recursive="yes"), "recursive"),
        (lambda files: files.write("a", "1", append=1), "append"),
        (lambda files: files.make_dir("a", idempotent=None), "idempotent"),
    ],
)
async def test_what_cannot_be_right_is_refused_here(call: object, field: str) -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        sandbox = await anext((await cluster.rollout("host")).ready())
        assert callable(call)
        with pytest.raises(shoal.BadRequest) as caught:
            await call(sandbox.files)
        assert caught.value.field == field
        assert fabric.asked == []


async def test_a_run_that_is_resumed_is_told_what_was_found_and_changes_nothing_twice() -> None:
    async with Fabric(all_ready) as fabric:
        for _ in range(2):
            async with shoal.connect(bus=fabric.connect()) as cluster, cluster.resume("r") as run:
                rollout = await run.rollout("host", 1, key="k")
                sandbox = await anext(rollout.ready())
                await sandbox.files.write("a", "1")
                await sandbox.files.write("a", "2", append=True)
                await sandbox.files.rename("a", "b")
                assert [each.name for each in await sandbox.files.list()] == ["b"]
                await sandbox.files.remove("b")
                assert not await sandbox.files.exists("b")
        assert set(fabric.ran.values()) == {1}
        assert len(fabric.asked) == 6
        async with shoal.connect(bus=fabric.connect()) as cluster:
            rows = [row async for row in cluster.trajectory("r")]
    assert [row.kind for row in rows] == ["write", "write", "rename", "list", "remove", "stat"]
    assert [row.path for row in rows] == ["a", "a", "a", ".", "b", "b"]
    assert (rows[1].offset, rows[2].to, rows[5].data) == (-1, "b", "[]")
    assert rows[3].data is not None
    assert rows[3].data.startswith('[{"name": "b", "kind": "file", "size": 2, "mode": 420, "modified_ms":')
