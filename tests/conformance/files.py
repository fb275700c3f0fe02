"""What every driver must do with files besides reading and writing them."""

import asyncio

import pytest

from conformance.drivers import one, sh
from shoal.wire.messages import FileOp, Resources
from shoal.wire.values import APPEND
from shoal_executor.drivers.protocol import Driver, Found, NoSuchSandboxError, SandboxFileError

LIST, STAT, REMOVE, MAKE_DIR, RENAME = FileOp.LIST, FileOp.STAT, FileOp.REMOVE, FileOp.MAKE_DIR, FileOp.RENAME


def names(found: Found) -> list[str]:
    return [entry.name for entry in found.entries]


class FilesConformance:
    real = True
    """Whether commands are carried out, or only simulated."""

    async def test_files_are_listed_and_looked_at(self, driver: Driver) -> None:
        name = await one(driver)
        await driver.write_file(name, "d/b.txt", b"12345", mode=0o640)
        await driver.write_file(name, "d/sub/a", b"")
        listing = await driver.manage_files(name, LIST, "d")
        assert [(each.name, each.kind) for each in listing.entries] == [("b.txt", "file"), ("sub", "directory")]
        assert not listing.more
        (found,) = (await driver.manage_files(name, STAT, "d/b.txt")).entries
        assert (found.name, found.kind, found.size, found.mode) == ("b.txt", "file", 5, 0o640)
        assert found == listing.entries[0]
        assert found.modified_ms > 1_600_000_000_000
        assert (await driver.manage_files(name, STAT, "d")).entries[0].kind == "directory"
        assert "d" in names(await driver.manage_files(name, LIST, "."))
        for absent in ("absent", "d/b.txt/c", "absent/too"):
            assert (await driver.manage_files(name, STAT, absent)).entries == ()
        with pytest.raises(SandboxFileError, match="absent"):
            await driver.manage_files(name, LIST, "absent")
        with pytest.raises(SandboxFileError, match=r"d/b.txt: Not a directory"):
            await driver.manage_files(name, LIST, "d/b.txt")
        await driver.destroy([name])

    async def test_files_are_removed(self, driver: Driver) -> None:
        name = await one(driver)
        for path in ("d/a", "d/e/f/g", "d/e/h", "other"):
            await driver.write_file(name, path, b"1")
        await driver.manage_files(name, REMOVE, "d/a")
        with pytest.raises(SandboxFileError, match=r"d/a: No such file"):
            await driver.manage_files(name, REMOVE, "d/a")
        with pytest.raises(SandboxFileError, match=r"d: .*recursive"):
            await driver.manage_files(name, REMOVE, "d")
        assert names(await driver.manage_files(name, LIST, "d")) == ["e"]
        await driver.manage_files(name, REMOVE, "d", recursive=True)
        await driver.manage_files(name, REMOVE, "other", recursive=True)
        assert (await driver.manage_files(name, STAT, "d")).entries == ()
        assert (await driver.manage_files(name, STAT, "other")).entries == ()
        await driver.manage_files(name, MAKE_DIR, "empty")
        await driver.manage_files(name, REMOVE, "empty")
        await driver.destroy([name])

    async def test_directories_are_made_and_files_renamed(self, driver: Driver) -> None:
        name = await one(driver)
        for _ in range(2):  # one that is there is as good
            await driver.manage_files(name, MAKE_DIR, "x/y/z")
        assert names(await driver.manage_files(name, LIST, "x")) == ["y"]
        await driver.write_file(name, "a", b"1")
        with pytest.raises(SandboxFileError, match="a/b: a file is in the place"):
            await driver.manage_files(name, MAKE_DIR, "a/b")
        await driver.manage_files(name, RENAME, "a", to="new/er/b")
        assert (await driver.read_file(name, "new/er/b")).data == b"1"
        with pytest.raises(SandboxFileError, match="a to c: No such file"):
            await driver.manage_files(name, RENAME, "a", to="c")
        await driver.write_file(name, "c", b"2")
        await driver.manage_files(name, RENAME, "c", to="new/er/b")  # what is there is replaced
        assert (await driver.read_file(name, "new/er/b")).data == b"2"
        await driver.manage_files(name, RENAME, "new", to="x/y/n")
        assert (await driver.read_file(name, "x/y/n/er/b")).data == b"2"
        with pytest.raises(SandboxFileError, match="x to x/y/z/x: "):
            await driver.manage_files(name, RENAME, "x", to="x/y/z/x")
        await driver.destroy([name])

    async def test_files_are_appended_to(self, driver: Driver) -> None:
        name = await one(driver)
        assert await driver.write_file(name, "deep/log", b"one ", offset=APPEND, mode=0o600) == 4
        assert await driver.write_file(name, "deep/log", b"two", offset=APPEND, mode=0o644) == 7
        assert (await driver.read_file(name, "deep/log")).data == b"one two"
        assert (await driver.manage_files(name, STAT, "deep/log")).entries[0].mode == 0o600
        large = b"x" * (3 * 1024**2)
        assert await driver.write_file(name, "deep/log", large, offset=APPEND, id="large") == 7 + len(large)
        assert await driver.write_file(name, "deep/log", large, offset=APPEND, id="large") == 7 + len(large)
        assert (await driver.manage_files(name, STAT, "deep/log")).entries[0].size == 7 + len(large)
        await driver.destroy([name])

    async def test_a_change_with_an_id_is_made_once(self, driver: Driver) -> None:
        name = await one(driver)
        await driver.write_file(name, "a", b"1")
        for _ in range(2):
            await driver.manage_files(name, RENAME, "a", to="b", id="1")
            assert await driver.write_file(name, "log", b"x", offset=APPEND, id="2") == 1
        for _ in range(2):
            await driver.manage_files(name, REMOVE, "b", id="3")
            await driver.write_file(name, "b", b"2")
        assert (await driver.read_file(name, "b")).data == b"2"
        for _ in range(2):
            with pytest.raises(SandboxFileError, match="late"):
                await driver.manage_files(name, REMOVE, "late", id="4")
            await driver.write_file(name, "late", b"2")
        await driver.destroy([name])
        with pytest.raises(NoSuchSandboxError):
            await driver.manage_files(name, LIST, ".")

    async def test_a_large_directory_is_told_in_part_and_removed_whole(self, driver: Driver) -> None:
        self.needs_commands()
        name = await one(driver, resources=Resources(memory=512 * 1024**2))
        line = "mkdir -p many/in; cd many; seq 20000 | xargs touch; cd in; seq 3000 | xargs touch"
        made = await sh(driver, name, line)
        assert made.exit_code == 0, made.stderr
        async with asyncio.timeout(60):
            listing = await driver.manage_files(name, LIST, "many")
            assert listing.more
            assert len(listing.entries) == 4096
            assert names(listing) == sorted(names(listing))
            await driver.manage_files(name, REMOVE, "many", recursive=True, id="1")
        assert (await driver.manage_files(name, STAT, "many")).entries == ()
        long = "y" * 250
        await sh(driver, name, f"mkdir long; cd long; for i in $(seq 1000); do : > {long}$i; done")
        listing = await driver.manage_files(name, LIST, "long")
        assert listing.more
        assert sum(map(len, names(listing))) < 512 * 1024
        await driver.destroy([name])

    async def test_links_pipes_and_odd_names_are_told_and_never_followed_to_be_removed(self, driver: Driver) -> None:
        self.needs_commands()
        name = await one(driver)
        line = (
            "mkdir -p d/real kept; echo 1 > kept/a; mkfifo d/pipe; ln -s ../kept d/link; ln -s nowhere d/dangling;"
            " touch d/$(printf 'odd\\377')"
        )
        assert (await sh(driver, name, line)).exit_code == 0
        async with asyncio.timeout(20):
            found = {each.name: each.kind for each in (await driver.manage_files(name, LIST, "d")).entries}
            assert found == {
                "real": "directory", "pipe": "other", "link": "link", "dangling": "link", "odd\\xff": "file",
            }  # fmt: skip
            assert (await driver.manage_files(name, STAT, "d/link")).entries[0].kind == "directory"
            assert (await driver.manage_files(name, STAT, "d/dangling")).entries == ()
            assert (await driver.manage_files(name, STAT, "d/pipe")).entries[0].kind == "other"
            with pytest.raises(SandboxFileError):
                await driver.write_file(name, "d/pipe", b"1", offset=APPEND)
            with pytest.raises(SandboxFileError):
                await driver.manage_files(name, MAKE_DIR, "d/dangling/in")
            await driver.manage_files(name, REMOVE, "d", recursive=True)
        assert names(await driver.manage_files(name, LIST, "kept")) == ["a"]
        assert (await driver.manage_files(name, STAT, "d")).entries == ()
        await driver.destroy([name])

    async def test_what_is_not_the_sandboxes_to_change_is_refused_in_words(self, driver: Driver) -> None:
        self.needs_commands()
        name = await one(driver)
        async with asyncio.timeout(20):
            for op, path, to in (
                (REMOVE, "/", ""), (REMOVE, "/usr", ""), (REMOVE, "/proc", ""), (MAKE_DIR, "/proc/x", ""),
                (RENAME, "/usr", "/usr2"), (RENAME, "/", "/x"), (LIST, "/proc/1/fd", ""), (REMOVE, "x\0y", ""),
            ):  # fmt: skip
                with pytest.raises(SandboxFileError) as caught:
                    await driver.manage_files(name, op, path, to=to, recursive=True)
                assert str(caught.value).startswith(path), op
        assert (await sh(driver, name, "[ -x /usr/bin/env ]")).exit_code == 0
        await driver.destroy([name])

    async def test_a_directory_that_is_filled_all_the_time_does_not_hold_its_sandbox_up(self, driver: Driver) -> None:
        self.needs_commands()
        name = await one(driver)
        await sh(driver, name, "mkdir d; (while :; do mkdir -p d; : > d/$((i += 1)); done) >/dev/null 2>&1 &")
        removing = asyncio.create_task(driver.manage_files(name, REMOVE, "d", recursive=True))
        async with asyncio.timeout(60):
            assert (await sh(driver, name, "echo on")).stdout == b"on\n"
            await driver.destroy([name])
            await asyncio.gather(removing, return_exceptions=True)

    async def test_what_is_nested_too_deep_is_left_to_a_command(self, driver: Driver) -> None:
        self.needs_commands()
        name = await one(driver)
        deep = "for i in $(seq 300); do mkdir d; cd d; done"
        assert (await sh(driver, name, f"mkdir top; cd top; {deep}")).exit_code == 0
        with pytest.raises(SandboxFileError, match=r"top: .*rm -r"):
            await driver.manage_files(name, REMOVE, "top", recursive=True)
        assert (await sh(driver, name, "rm -r top; echo on")).stdout == b"on\n"
        await driver.destroy([name])

    def needs_commands(self) -> None:
        if not self.real:
            pytest.skip("this driver carries no command out")  # the simulated one only says that it did
