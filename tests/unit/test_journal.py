"""An executor's journal: all of a record or nothing of it, whatever the disk does."""

import errno
import io
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

from shoal.wire.messages import EndReason
from shoal_executor.service.journal import AnyRecord, Began, Exited, Journal, JournalError, Knew

BEGAN = Began("e1", 0, "b1", "machine", "zygote", ())
KNEW = Knew(0, b"", b"", 0, ())


def exited(index: int) -> Exited:
    return Exited(("r1", 0, "n1"), index, EndReason.DIED, "x" * 50)


class Nearly(io.RawIOBase):
    """A file on a disk with so much room, which takes a part and says how much, as disks do."""

    def __init__(self, file: io.RawIOBase, room: int) -> None:
        self._file = file
        self.room = room

    def write(self, data: object) -> int:
        view = memoryview(data)  # type: ignore[arg-type] # what io says of it is for subclasses only
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        part = view[: self.room]
        self.room -= len(part)
        return self._file.write(part) or 0

    def truncate(self, size: int | None = None) -> int:
        return self._file.truncate(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def close(self) -> None:
        self._file.close()


def read(directory: Path) -> list[AnyRecord]:
    journal = Journal(directory)
    try:
        return journal.open()
    finally:
        journal.close(remove=False)


def opened(directory: Path) -> Journal:
    journal = Journal(directory)
    assert journal.open() == []
    journal.rewrite(BEGAN, KNEW)
    return journal


def test_a_disk_that_takes_a_part_at_a_time_has_all_of_it(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    file = journal._file

    class Slow(Nearly):
        def write(self, data: object) -> int:
            self.room = 7
            return super().write(data)

    journal._file = Slow(file, 7)  # type: ignore[assignment, arg-type] # it writes bytes like any file
    journal.append(exited(1), exited(2))
    journal.close(remove=False)
    assert read(tmp_path) == [BEGAN, KNEW, exited(1), exited(2)]


def test_what_no_longer_fits_leaves_what_was_written_whole(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.append(exited(1))
    full = Nearly(journal._file, 20)  # type: ignore[arg-type] # it writes bytes like any file
    journal._file = full  # type: ignore[assignment] # it writes bytes like any file
    with pytest.raises(OSError, match="No space"):
        journal.append(exited(2))
    full.room = 10_000  # somebody made room
    journal.append(exited(3))
    journal.close(remove=False)
    assert read(tmp_path) == [BEGAN, KNEW, exited(1), exited(3)]


def test_who_must_end_is_told_before_anything_follows(tmp_path: Path) -> None:
    class Ended(BaseException):
        pass

    def end(error: OSError) -> NoReturn:
        raise Ended(error.errno)

    journal = Journal(tmp_path, end)
    journal.open()
    journal.rewrite(BEGAN, KNEW)
    journal._file = Nearly(journal._file, 0)  # type: ignore[assignment, arg-type] # it writes bytes like any file
    with pytest.raises(Ended):
        journal.append(exited(1))
    journal.close(remove=False)
    assert read(tmp_path) == [BEGAN, KNEW]


def test_a_journal_that_cannot_be_written_anew_stays_as_it_is(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.append(exited(1))
    (tmp_path / "journal.new").mkdir()  # nothing can be written there
    with pytest.raises(OSError):
        journal.rewrite(BEGAN, KNEW)
    journal.append(exited(2))
    journal.close(remove=False)
    assert read(tmp_path) == [BEGAN, KNEW, exited(1), exited(2)]


def test_one_process_holds_it_and_takes_hold_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal_executor.service.journal._LOCK_S", 0.0)
    journal = Journal(tmp_path)
    journal.hold()
    journal.open()
    with pytest.raises(JournalError, match="another executor"):
        Journal(tmp_path).hold()
    journal.close(remove=False)
    read(tmp_path)


@pytest.mark.parametrize("lose", ["directory", "journal", "another"])
def test_a_journal_that_was_deleted_is_one_that_cannot_be_written(tmp_path: Path, lose: str) -> None:
    place = tmp_path / "state"
    journal = Journal(place)
    journal.open()
    journal.append(BEGAN)
    journal.look()
    if lose == "directory":
        shutil.rmtree(place)
    else:
        (place / "journal").unlink()
    if lose == "another":
        (place / "journal").touch()
    with pytest.raises(FileNotFoundError, match=f"{place} was deleted or replaced while an executor used it"):
        journal.look()
    journal.close(remove=False)
