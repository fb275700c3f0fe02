"""Calls that are prepared by one process and made by another: what is said of one that fails."""

import os
from pathlib import Path

import pytest

from shoal_executor.drivers import kernel
from shoal_executor.drivers.zygote import steps
from shoal_executor.drivers.zygote.steps import take


def test_they_are_made_in_their_order_and_end_with_one_that_fails(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    with pytest.raises(FileNotFoundError, match=rf"mkdir {first}/gone/deep: No such file"):
        take([steps.mkdir(str(first), 0o700), steps.mkdir(f"{first}/gone/deep", 0o700), steps.mkdir(str(second), 0)])
    assert first.is_dir()
    assert not second.exists()


def test_a_mount_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"mount bind at {tmp_path}/gone: "):
        take([steps.bind("/dev", f"{tmp_path}/gone")])
    with pytest.raises(OSError, match=f"move_mount {tmp_path}: "):
        take([steps.attach_mount(0, str(tmp_path))])


def test_a_descriptor_is_placed_and_not_inherited(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    number = os.dup(fd)
    try:
        take([steps.place(fd, number)])
        assert os.path.samestat(os.fstat(fd), os.fstat(number))
        assert not os.get_inheritable(number)
    finally:
        os.close(fd)
        os.close(number)


def test_what_a_template_lacks_is_made_for_everybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = os.umask(0o077)
    try:
        take([steps.be_directory("tmp", 0o1777)])
    finally:
        os.umask(before)
    assert (tmp_path / "tmp").stat().st_mode & 0o7777 == 0o1777


def test_what_it_has_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tmp").mkdir(mode=0o700)
    take([steps.be_directory("tmp", 0o1777)])
    assert (tmp_path / "tmp").stat().st_mode & 0o7777 == 0o700


@pytest.mark.parametrize(("there", "said"), [("link", "is a symbolic link"), ("file", "is no directory")])
def test_what_is_no_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if there == "link":
        (tmp_path / "proc").symlink_to("/")
    else:
        (tmp_path / "proc").touch()
    with pytest.raises(OSError, match=f"the template's /proc {said}; it must be a directory, or not there"):
        take([steps.be_directory("proc", 0o755)])


def test_what_cannot_be_made_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="mkdir gone/proc: No such file"):
        take([steps.be_directory("gone/proc", 0o755)])


def test_what_is_not_there_need_not_be_covered(tmp_path: Path) -> None:
    take([steps.read_only(f"{tmp_path}/gone", 0), steps.masked(f"{tmp_path}/gone")])
    (tmp_path / "file").touch()
    for step in (steps.read_only(f"{tmp_path}/file/x", 0), steps.masked(f"{tmp_path}/file/x")):
        with pytest.raises(NotADirectoryError, match=f"{tmp_path}/file/x"):
            take([step])


def test_capabilities_the_kernel_does_not_know_are_left_alone() -> None:
    known = int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1
    assert len(steps.drop_bounding(frozenset())) == known
    assert len(steps.drop_bounding(frozenset((0, 5)))) == known - 2
    assert {step.arguments[0] for step in steps.drop_bounding(frozenset())} == {kernel.PR_CAPBSET_DROP}
