"""Archives of every version of the wire are read for ever."""

import subprocess
import sys
from pathlib import Path

import pytest

from archive.made import InMemory
from archive.make_golden import GOLDEN, expected, subject_of
from shoal.archive.archived import ArchiveHistory
from shoal.archive.looking import look
from shoal.archive.records import FORMAT
from shoal.archive.source import ArchiveError
from shoal.bus.protocol import Delivery
from shoal.wire import VERSION
from shoal.wire.codec import decode
from wire.samples import SAMPLES

ARCHIVES = sorted(GOLDEN.glob("wire-*.shoal"))
MAKE = "set shoal.wire.VERSION to the next number, and run: python tests/archive/make_golden.py"


def test_every_version_has_an_archive() -> None:
    assert {path.stem for path in ARCHIVES} == {f"wire-{version}" for version in range(1, VERSION + 1)}, MAKE


def test_the_newest_has_every_specimen_as_it_is_now() -> None:
    newest = {each["name"]: each for held in expected(GOLDEN / f"wire-{VERSION}.shoal").values() for each in held}
    assert newest.keys() == SAMPLES.keys(), MAKE
    assert all(decode(bytes.fromhex(newest[name]["payload"])) == message for name, message in SAMPLES.items()), MAKE


@pytest.mark.parametrize("path", ARCHIVES, ids=lambda path: path.stem)
async def test_it_is_whole_and_every_message_is_read(path: Path) -> None:
    found = await look(InMemory(path.read_bytes()), deep=True)
    assert (found.closed, found.trouble) == (True, None)
    archive = await ArchiveHistory.open(path)
    assert (await archive.header()).wire == int(path.stem.partition("-")[2])
    held = expected(path)
    assert list(await archive.streams()) == sorted(held)
    for stream, wanted in held.items():
        messages = [each async for each in archive.read(stream)]
        assert messages == [
            Delivery(each["subject"], bytes.fromhex(each["payload"]), number, each["time_ms"], each["id"])
            for number, each in enumerate(wanted, 1)
        ]
        for message, each in zip(messages, wanted, strict=True):
            known = decode(message.payload)
            assert type(known).__name__ == each["type"]
            if each["name"] in SAMPLES:
                assert known == SAMPLES[each["name"]]
                assert subject_of(known) == each["subject"]
    (state,) = await archive.checkpoints("scheduler.0")
    assert (state.sequence, state.state) == (1, b"state")
    assert await archive.values("SHOAL_CLUSTER") == {"cells": b"1"}


async def test_a_newer_format_is_named(tmp_path: Path) -> None:
    from archive.made import header
    from shoal.archive.writer import Writer

    Writer.create(tmp_path / "x.shoal", header(format=FORMAT + 1)).finish()
    with pytest.raises(ArchiveError, match=f"of format {FORMAT + 1}, and this Shoal reads up to {FORMAT}"):
        await ArchiveHistory.open(tmp_path / "x.shoal")


def test_what_is_there_is_not_written_again() -> None:
    script = Path(__file__).with_name("make_golden.py")
    before = {path: path.read_bytes() for path in ARCHIVES}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "VERSION" in done.stderr
    assert {path: path.read_bytes() for path in sorted(GOLDEN.glob("wire-*.shoal"))} == before
