"""Files that are mostly holes are found before a disk is kept, whatever their names are and however deep they lie."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal_executor.drivers import layers
from shoal_executor.drivers.protocol import UnsupportedError


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(layers, "_TIMES", 0)
    monkeypatch.setattr(layers, "_LEAST", 1000)
    disk = tmp_path / "disk"
    disk.mkdir()
    yield disk
    subprocess.run(["rm", "-rf", disk], check=True)  # pytest's own way is recursive


def refused(disk: Path) -> str:
    with pytest.raises(UnsupportedError) as error:
        layers._look_for_holes(str(disk))
    return str(error.value)


def large(path: bytes) -> None:
    with open(path, "wb") as file:
        file.truncate(4000)


def test_a_name_that_is_no_text_is_told_in_letters(disk: Path) -> None:
    large(os.fsencode(disk) + b"/a\xff")
    told = refused(disk)
    assert "the largest is /a\\xff of 4000:" in told
    told.encode()


def test_a_long_path_is_cut(disk: Path) -> None:
    large(os.fsencode(disk) + b"/" + b"\xff" * 255)
    assert len(refused(disk)) < 400


def test_a_file_below_very_many_directories_is_found(disk: Path) -> None:
    deep = disk / "/".join("d" * 1500)
    subprocess.run(["mkdir", "-p", deep], check=True)
    layers._look_for_holes(str(disk))
    large(os.fsencode(deep) + b"/f")
    assert "of 4000:" in refused(disk)


def test_links_are_not_followed_and_names_of_one_file_are_one(disk: Path) -> None:
    (disk / "up").symlink_to("..")
    (disk / "far").symlink_to("/usr")
    (disk / "one").write_bytes(bytes(600))
    (disk / "two").hardlink_to(disk / "one")
    layers._look_for_holes(str(disk))
