"""No change of an archive goes unseen, and what is good of it is read."""

import asyncio
import random
from contextlib import aclosing
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from archive.made import InMemory, looked, small
from shoal.archive import account, frames
from shoal.archive.frames import DIGEST, MAGIC, Frame
from shoal.archive.looking import look
from shoal.archive.reader import ArchiveFile
from shoal.archive.source import ArchiveError, DamagedError
from shoal.bus.protocol import Delivery

Kept = dict[str, list[Delivery]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Kept]:
    """An archive of some twenty blocks, two of them of an index, and what is in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(account, "_MOST_ENTRIES", 8)
        path = tmp_path_factory.mktemp("archive") / "x.shoal"
        kept = small(path)
    return path.read_bytes(), kept


def blocks_of(data: bytes) -> list[Frame]:
    async def found() -> list[Frame]:
        async with aclosing(frames.scan(InMemory(data))) as scanned:
            return [frame async for frame in scanned]

    return asyncio.run(found())


def read_up_to_damage(data: bytes) -> tuple[Kept, DamagedError | None]:
    """Return all that can be read of what is left of an archive, stream by stream, and what was said of the rest."""

    async def read() -> tuple[Kept, DamagedError | None]:
        found: Kept = {}
        file = await ArchiveFile.open(InMemory(data), damaged=True)
        trouble = file.trouble
        for stream in ("SHOAL_EXECUTOR_a", "SHOAL_EXECUTOR_b"):
            found[stream] = []
            try:
                async with aclosing(file.read(stream)) as messages:
                    async for delivery in messages:
                        found[stream].append(delivery)
            except DamagedError as error:
                trouble = error
        return found, trouble

    return asyncio.run(read())


def test_a_whole_archive_is_whole(whole: tuple[bytes, Kept]) -> None:
    data, kept = whole
    found = looked(data, deep=True)
    assert (found.closed, found.trouble, found.end + frames.TRAILER) == (True, None, len(data))
    assert len(blocks_of(data)) > 15
    assert len(found.account.groups) > 1
    assert read_up_to_damage(data) == (kept, None)


def test_each_byte_counts(tmp_path: Path) -> None:
    small(tmp_path / "x.shoal", block=500, count=18)
    data = (tmp_path / "x.shoal").read_bytes()
    source = random.Random(1)

    async def every() -> None:
        for place in range(len(data)):
            changed = bytearray(data)
            changed[place] ^= 1 << source.randrange(8)
            found = await look(InMemory(bytes(changed)))
            assert found.trouble is not None, place
            assert found.end <= place or place >= len(data) - frames.TRAILER, place

    asyncio.run(every())


@settings(max_examples=200)
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255))
def test_a_changed_byte_is_seen_and_nothing_wrong_is_ever_read(
    whole: tuple[bytes, Kept], place: float, value: int
) -> None:
    data, kept = whole
    changed = bytearray(data)
    changed[int(place * len(data))] ^= value
    assert looked(bytes(changed)).trouble is not None
    try:
        found, _ = read_up_to_damage(bytes(changed))
    except ArchiveError:
        return
    for stream, messages in found.items():
        assert messages == kept[stream][: len(messages)]


@settings(max_examples=150)
@given(length=st.floats(0, 1, exclude_max=True))
def test_what_is_cut_off_is_seen_and_the_rest_is_read(whole: tuple[bytes, Kept], length: float) -> None:
    data, kept = whole
    cut = data[: int(length * len(data))]
    found = looked(cut)
    assert found.trouble is not None
    assert found.trouble.unfinished
    assert found.end <= len(cut)
    good = [frame for frame in blocks_of(data) if frame.end <= len(cut) and frame.kind != frames.FOOTER]
    if not good:
        with pytest.raises(DamagedError):
            read_up_to_damage(cut)
        return
    assert found.end == good[-1].end
    read, trouble = read_up_to_damage(cut)
    assert trouble is not None
    assert "no end" in str(trouble) or "ends within a block" in str(trouble) or "last bytes" in str(trouble)
    for stream, messages in read.items():
        total = found.account.totals.get(stream)
        assert messages == kept[stream][: 0 if total is None else total.count]


@settings(max_examples=150)
@given(data=st.data())
def test_blocks_taken_out_put_in_or_moved_are_seen(whole: tuple[bytes, Kept], data: st.DataObject) -> None:
    original, _ = whole
    pieces = [original[frame.offset : frame.end] for frame in blocks_of(original)]
    end = original[-frames.TRAILER :]
    one, other = (data.draw(st.integers(0, len(pieces) - 1)) for _ in range(2))
    changed = list(pieces)
    match data.draw(st.sampled_from(["swapped", "removed", "copied", "appended"])):
        case "swapped" if one != other:
            changed[one], changed[other] = changed[other], changed[one]
        case "removed":
            del changed[one]
        case "copied":
            changed.insert(other, changed[one])
        case _:
            changed.append(changed[one])
    altered = MAGIC + b"".join(changed) + end
    if altered != original:
        assert looked(altered).trouble is not None


def test_a_block_made_anew_does_not_fit_what_follows(whole: tuple[bytes, Kept]) -> None:
    """Whoever makes a block with another content, and its digest, breaks the digest of the next."""
    data, _ = whole
    frame = blocks_of(data)[4]
    before = data[frame.offset - DIGEST : frame.offset]
    forged = frames.build(frame.kind, frame.summary, frame.body, frame.unpacked + 1, before)
    found = looked(data[: frame.offset] + forged + data[frame.end :])
    assert found.trouble is not None
    assert found.end == frame.end


@pytest.mark.parametrize("behind", [b"x", b"\0" * 16, b"shoalend", b"shoal archive 1\n"])
def test_what_is_behind_the_end_is_seen(whole: tuple[bytes, Kept], behind: bytes) -> None:
    data, _ = whole
    found = looked(data + behind)
    assert found.trouble is not None
    assert not found.trouble.unfinished
    again = looked(data + data)
    assert again.trouble is not None


@pytest.mark.parametrize("data", [b"", b"shoal", b"PK\x03\x04 something else", b"\0" * 4096])
def test_what_is_no_archive_says_so(data: bytes) -> None:
    with pytest.raises(DamagedError, match=r"x\.shoal"):
        asyncio.run(ArchiveFile.open(InMemory(data), damaged=True))


def test_how_far_it_is_good_is_said(whole: tuple[bytes, Kept]) -> None:
    data, _ = whole
    frame = blocks_of(data)[9]
    with pytest.raises(DamagedError, match=f"ends within a block; it is good up to byte {frame.offset}"):
        asyncio.run(ArchiveFile.open(InMemory(data[: frame.end - 3])))
