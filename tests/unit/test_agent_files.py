"""What an agent answers about files that cannot be there: words, whatever is asked of it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.wire.bounds import MOST
from shoal.wire.values import APPEND, FileOp
from shoal_executor.drivers.agent import deeds, files, frames, managing


@pytest.mark.parametrize(
    ("path", "home"),
    [("a\0b", "{}"), ("solve.py", "{}/ho\0me"), ("d/" * 1500 + "f", "{}"), ("x" * 300, "{}"), (".", "{}")],
    ids=["zero in its name", "zero in the home", "too deep", "too long", "a directory"],
)
def test_a_path_that_no_file_has_is_said(tmp_path: Path, path: str, home: str) -> None:
    place = home.format(tmp_path)
    wrote = files.write(frames.Write(1, path, b"x", 0, 0o644), place)
    read = files.read(frames.Read(2, path, 0, 10), place)
    for told in (wrote, read):
        assert isinstance(told, frames.Failed)
        assert told.detail.startswith(f"{path}: ")
        assert len(told.detail) > len(path) + 2
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_no_file_has_is_said(tmp_path: Path) -> None:
    for offset in (2**63, 2**64 - 1):
        assert isinstance(files.write(frames.Write(1, "f", b"x", offset, 0o644), str(tmp_path)), frames.Failed)
        assert isinstance(files.read(frames.Read(2, "f", offset, 10), str(tmp_path)), frames.Failed)
    assert isinstance(files.write(frames.Write(1, "g", b"x", 0, 2**40), str(tmp_path)), frames.Failed)


@pytest.mark.parametrize("op", list(FileOp))
@pytest.mark.parametrize("path", ["a\0b", "x" * 300, "f/in"], ids=["zero in its name", "too long", "in a file"])
def test_what_cannot_be_done_with_files_is_said(tmp_path: Path, op: FileOp, path: str) -> None:
    (tmp_path / "f").touch()
    told = managing.manage(frames.Manage(1, op, path, "to/it" if op is FileOp.RENAME else "", True), str(tmp_path))
    if op is FileOp.STAT and path == "f/in":
        assert told == frames.Managed(1)  # there is nothing there
    else:
        assert isinstance(told, frames.Failed)
        assert told.detail.startswith(f"{path} to to/it: " if op is FileOp.RENAME else f"{path}: ")
    assert [each.name for each in tmp_path.iterdir()] == ["f"]


def test_a_key_is_done_once_whatever_came_of_it(tmp_path: Path) -> None:
    done, home = deeds.Deeds(), str(tmp_path)
    append = frames.Write(1, "log", b"x", APPEND, 0o600, "a")
    assert [done.answer(append, home), done.answer(append, home)] == [frames.Wrote(1, 1)] * 2
    again = frames.Write(9, "log", b"x", APPEND, 0o600, "a")
    assert done.answer(again, home) == frames.Wrote(9, 1)  # whoever asks now
    assert (tmp_path / "log").read_bytes() == b"x"
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600
    remove = frames.Manage(2, FileOp.REMOVE, "absent", key="b")
    first = done.answer(remove, home)
    (tmp_path / "absent").touch()
    assert done.answer(remove, home) == first
    assert (tmp_path / "absent").exists()
    for number in range(deeds.REMEMBERED):
        done.answer(frames.Manage(3, FileOp.MAKE_DIR, "d", key=f"{number}"), home)
    assert done.answer(again, home) == frames.Wrote(9, 2)  # it is bounded: executors remember for longer


def test_a_large_directory_goes_piece_by_piece_and_only_the_last_answer_is_for_good(tmp_path: Path) -> None:
    for number in range(3000):
        (tmp_path / f"d/{number % 7}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"d/{number % 7}/{number}").touch()
    done, asked = deeds.Deeds(), frames.Manage(1, FileOp.REMOVE, "d", recursive=True, key="k")
    told = [done.answer(asked, str(tmp_path))]
    while told[-1] == frames.Managed(1, more=True):
        told.append(done.answer(frames.Manage(1, FileOp.REMOVE, "d", "", True, "k", True), str(tmp_path)))
    assert told[-1] == frames.Managed(1)
    assert len(told) > 2
    assert list(tmp_path.iterdir()) == []
    assert done.answer(asked, str(tmp_path)) == frames.Managed(1)
    late = frames.Manage(1, FileOp.REMOVE, "d", "", True, "other", True)
    assert done.answer(late, str(tmp_path)) == frames.Managed(1)  # somebody else has removed the rest
    assert isinstance(done.answer(frames.Manage(1, FileOp.REMOVE, "d"), str(tmp_path)), frames.Failed)


def test_numbers_of_a_file_that_no_message_can_have_are_told_as_the_largest() -> None:
    found: Any = SimpleNamespace(st_mode=0o100644, st_size=2**63 - 1, st_mtime_ns=2**90)
    told = managing._entry("f", found)
    assert (told.size, told.mode, told.modified_ms) == (MOST, 0o644, MOST)
