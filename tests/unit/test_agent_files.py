"""What an agent answers about files that cannot be there: words, whatever is asked of it."""

from pathlib import Path

import pytest

from shoal_executor.drivers.agent import files, frames


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
