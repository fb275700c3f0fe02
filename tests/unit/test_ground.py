"""What sandboxes are started upon: whether it is still there is found out, and what is only added is no matter."""

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from shoal_executor.drivers.ground import Ground


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "images" / "host"
    (root / "etc").mkdir(parents=True)
    (root / "bin").symlink_to("usr/bin")
    (root / "notes").write_text("one")
    return root


def replaced(root: Path) -> None:
    root.rename(root.with_name("before"))
    shutil.copytree(root.with_name("before"), root, symlinks=True)


def renewed(root: Path) -> None:
    (root / "etc").rename(root / "etc.before")
    (root / "etc").mkdir()


LOSSES: list[Callable[[Path], object]] = [
    lambda root: shutil.rmtree(root.parent), shutil.rmtree, lambda root: (root / "etc").rmdir(), replaced, renewed,
]  # fmt: skip


@pytest.mark.parametrize("lose", LOSSES, ids=["images", "root", "one name", "another root", "another directory"])
def test_what_is_gone_or_replaced_does_not_stand(root: Path, lose: Callable[[Path], object]) -> None:
    ground = Ground.of(root)
    again = msgspec.json.decode(msgspec.json.encode(ground), type=Ground)
    assert ground.stands()
    assert again.stands()
    lose(root)
    assert not ground.stands()
    assert not again.stands(), "as the next process found it noted"


def test_what_is_added_is_no_matter(root: Path) -> None:
    ground = Ground.of(root)
    (root / "srv").mkdir()
    assert ground.stands()
    (root / "srv").rmdir()
    assert ground.stands()


def changed(root: Path) -> None:
    (root / "notes.new").write_text("two")
    (root / "notes.new").replace(root / "notes")


CHANGES: list[Callable[[Path], object]] = [
    changed, lambda root: (root / "notes").unlink(), lambda root: (root / "bin").unlink(),
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=["another file", "no file", "no link"])
def test_what_becomes_of_files_and_links_at_the_top_is_no_matter(root: Path, change: Callable[[Path], object]) -> None:
    ground = Ground.of(root)
    change(root)
    assert ground.stands()
