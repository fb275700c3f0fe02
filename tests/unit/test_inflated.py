"""What runsc deflated, rewritten so that it need not be inflated at each restore: the same bytes in stored pieces."""

import errno
import os
import random
import zlib
from pathlib import Path

import pytest

from shoal_executor.drivers.gvisor import inflated
from shoal_executor.drivers.gvisor.inflated import inflate

MIB = 1 << 20
TOLD = b'{"_timestamp":"2026-11-27"}'
HEAD = b"gVisorSF" + len(TOLD).to_bytes(8) + TOLD + bytes(range(32))
EASY = b"all of a heap, " * 200_000


def deflated(data: bytes) -> bytes:
    deflating = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    return deflating.compress(data) + deflating.flush()


def kept(place: Path, data: bytes, piece: int = MIB, end: bytes = b"") -> bytes:
    """Write a checkpoint as runsc does, and return it."""
    whole = HEAD + piece.to_bytes(4)
    for at in range(0, len(data), piece):
        part = deflated(data[at : at + piece])
        whole += len(part).to_bytes(4) + part
    (place / "checkpoint.img").write_bytes(whole + end)
    return whole + end


def restored(place: Path) -> tuple[bytes, list[bytes]]:
    """Return the head of a checkpoint, and its pieces as runsc inflates them."""
    whole = (place / "checkpoint.img").read_bytes()
    at, pieces = len(HEAD) + 4, []
    while at < len(whole):
        size = int.from_bytes(whole[at : at + 4])
        inflating = zlib.decompressobj(-zlib.MAX_WBITS)
        pieces.append(inflating.decompress(whole[at + 4 : at + 4 + size]))
        assert inflating.eof
        assert not inflating.unused_data
        assert size - len(pieces[-1]) == 5 * -(-len(pieces[-1]) // 65535), "stored, not deflated"
        at += 4 + size
    return whole[: len(HEAD) + 4], pieces


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, MIB, MIB + 1, 5 * MIB - 70_000])
@pytest.mark.parametrize("piece", [65536, 3 * 65536 - 1, MIB])
def test_what_was_kept_is_the_same_in_stored_pieces(tmp_path: Path, size: int, piece: int) -> None:
    data = (EASY * 2)[:size]
    kept(tmp_path, data, piece)
    assert inflate(tmp_path) is (size > 0)
    head, pieces = restored(tmp_path)
    assert b"".join(pieces) == data
    if size:
        assert head == HEAD + (65536).to_bytes(4)
        assert max(map(len, pieces)) <= 65536
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.img"]


@pytest.mark.parametrize(("easy", "hard", "rewritten"), [(5, 1, True), (1, 1, False), (0, 3, False)])
def test_what_hardly_deflates_is_left(tmp_path: Path, easy: int, hard: int, rewritten: bool) -> None:
    data = EASY[:MIB] * easy + random.Random(1).randbytes(MIB) * hard
    before = kept(tmp_path, data)
    assert inflate(tmp_path) is rewritten
    if rewritten:
        assert b"".join(restored(tmp_path)[1]) == data
    else:
        assert (tmp_path / "checkpoint.img").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.img"]


def piece(data: bytes, size: int | None = None) -> bytes:
    return (len(data) if size is None else size).to_bytes(4) + data


GOOD = deflated(EASY[:MIB])


@pytest.mark.parametrize(
    "whole",
    [
        b"",
        b"gVisorSF",
        b"another1" + HEAD[8:] + MIB.to_bytes(4) + piece(GOOD),
        HEAD[:30],
        HEAD + MIB.to_bytes(4)[:3],
        HEAD[:8] + (1 << 40).to_bytes(8) + HEAD[16:] + MIB.to_bytes(4) + piece(GOOD),
        HEAD + (0).to_bytes(4) + piece(GOOD),
        HEAD + (1 << 31).to_bytes(4) + piece(GOOD),
        HEAD + MIB.to_bytes(4) + piece(GOOD) + b"\0\0",
        HEAD + MIB.to_bytes(4) + piece(GOOD[:-9], len(GOOD)),
        HEAD + MIB.to_bytes(4) + piece(GOOD[:-9]),
        HEAD + MIB.to_bytes(4) + piece(GOOD + b"more"),
        HEAD + MIB.to_bytes(4) + piece(b"\xff" * 99),
        HEAD + MIB.to_bytes(4) + piece(deflated(EASY[: MIB + 1])),
        HEAD + MIB.to_bytes(4) + piece(GOOD) * 9 + piece(bytes(2 * MIB + 1)),
    ],
    ids=[
        "empty", "no head", "another magic", "cut in its head", "cut in its piece size", "a head too large",
        "no piece size", "a piece size too large", "cut after a piece", "cut in a piece", "a piece without its end",
        "a piece with more", "a piece that is none", "a piece that becomes too large", "a piece too large",
    ],
)  # fmt: skip
def test_what_is_not_understood_whole_is_left(tmp_path: Path, whole: bytes) -> None:
    (tmp_path / "checkpoint.img").write_bytes(whole)
    assert not inflate(tmp_path)
    assert (tmp_path / "checkpoint.img").read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.img"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_without_room_it_is_left_and_another_fault_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    before = kept(tmp_path, EASY)

    def full(*_: object) -> bytes:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(inflated, "_stored", full)
    if code == errno.ENOSPC:
        assert not inflate(tmp_path)
    else:
        with pytest.raises(OSError, match=os.strerror(code)):
            inflate(tmp_path)
    assert (tmp_path / "checkpoint.img").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.img"]
