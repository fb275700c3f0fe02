"""Messages as columns come back exactly, whatever they are."""

import msgspec
import pytest
from hypothesis import given, strategies as st

from shoal.archive import packing, sections
from shoal.archive.sections import Section
from shoal.archive.source import DamagedError
from shoal.bus.protocol import Delivery

PARTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    st.integers(0, 10**19).map(str),
    st.sampled_from(["", "0", "00", "007", "SHOAL_ROLLOUT_0", "#", "None", "٣", "1e3", "-1", "9" * 18, "9" * 19]),
)  # fmt: skip
IDS = st.lists(PARTS, max_size=4).map(":".join)


@st.composite
def messages(draw: st.DrawFn) -> list[Delivery]:
    steps = draw(
        st.lists(st.tuples(st.integers(1, 5), st.integers(-3, 10**6), IDS, st.binary(max_size=20)), max_size=30)
    )
    found, sequence, time_ms = [], draw(st.integers(0, 2**53)), draw(st.integers(10**9, 2**45))
    for step, later, id, payload in steps:
        sequence, time_ms = sequence + step, time_ms + later
        found.append(Delivery(draw(st.sampled_from(["a.b", "c", "ü"])), payload, sequence, time_ms, id))
    return found


@given(messages())
def test_columns_hold_exactly_what_was_said(said: list[Delivery]) -> None:
    packed = msgspec.msgpack.encode(sections.pack("SHOAL_X", said))
    section = msgspec.msgpack.decode(packed, type=Section)
    assert section.stream == "SHOAL_X"
    assert list(sections.unpack(section)) == said


def test_what_repeats_itself_takes_little_room() -> None:
    said = [Delivery("shoal.placement.0.request", b"", n, 10**12 + n, f"SHOAL_ROLLOUT_0:{n}:0") for n in range(1, 2001)]
    size = len(packing.pack(msgspec.msgpack.encode(sections.pack("SHOAL_PLACEMENT_0", said))))
    assert size < 300


@pytest.mark.parametrize(
    "field", ["times", "subject", "shape", "payloads", "sequences", "subjects", "shapes", "numbers"]
)
def test_columns_that_do_not_fit_each_other_are_damage(field: str) -> None:
    said = [Delivery("a", b"x", n, 1000 + n, f"r:{n}") for n in range(1, 9)]
    section = sections.pack("SHOAL_X", said)
    kept = getattr(section, field)
    broken = msgspec.structs.replace(section, **{field: kept[:-1]})
    if field == "numbers":
        broken = msgspec.structs.replace(section, numbers=[[[1, 2]]])
    with pytest.raises(DamagedError):
        list(sections.unpack(broken))


def test_what_was_not_packed_here_is_damage() -> None:
    packed = packing.pack(b"x" * 1000)
    assert packing.unpack(packed, 1000) == packing.unpack(packed) == b"x" * 1000
    for bad, size in ((packed, 999), (packed, 1001), (packed[:-1], 1000), (packed + packed, 1000), (b"nothing", 7)):
        with pytest.raises(DamagedError):
            packing.unpack(bad, size)
    with pytest.raises(DamagedError, match="another size"):
        packing.unpack(packed, most=500)
