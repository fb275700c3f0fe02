"""Sizes and durations as people write them, and what they get to read when they write something else."""

import contextlib
import math

import pytest
from hypothesis import given, strategies as st

from shoal.wire.quantities import BadValueError, format_bytes, parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1, 1), ("1", 1), ("1b", 1), ("1k", 1000), ("2KB", 2000), ("1m", 10**6), ("1GB", 10**9), ("1t", 10**12),
        ("1Ki", 1024), ("256MiB", 256 * 1024**2), (" 1.5 gib ", 3 * 1024**3 // 2), ("1TiB", 1024**4), (2**60, 2**60),
    ],
)  # fmt: skip
def test_sizes(text: int | str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "MiB", "12 potatoes", "-1", "1,5GB", "0x10", "1 2", "1e3", "nan", "inf", "9" * 400, "9" * 400 + "TiB", 0, -1,
     "0", "0.1b", True, 2**60 + 1, 10**400, "2000000TiB"],
)  # fmt: skip
def test_what_is_no_size_is_refused_by_the_name_of_its_field(text: int | str) -> None:
    with pytest.raises(BadValueError) as caught:
        parse_bytes(text, "memory")
    assert caught.value.field == "memory"
    assert str(caught.value).startswith("memory: ")
    assert "256MiB" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(30, 30.0), (0.5, 0.5), ("1", 1.0), ("250ms", 0.25), ("30s", 30.0), ("10m", 600.0), ("2min", 120.0),
     ("1.5h", 5400.0), (" 2 D ", 172_800.0)],
)  # fmt: skip
def test_durations(text: float | str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)
    assert isinstance(parse_seconds(text), float)


@pytest.mark.parametrize(
    "text",
    ["", "soon", "10 potatoes", "-1s", "1h30m", "nan", "inf", "9" * 400, 0, -1, 0.0, -0.5, True,
     math.nan, math.inf, -math.inf, 10**400, "4000d"],
)  # fmt: skip
def test_what_is_no_duration_is_refused_by_the_name_of_its_field(text: float | str) -> None:
    with pytest.raises(BadValueError) as caught:
        parse_seconds(text, "timeout")
    assert caught.value.field == "timeout"
    assert "10m" in str(caught.value)


@given(st.integers(1, 2**53))
def test_a_number_of_bytes_passes_through(size: int) -> None:
    assert parse_bytes(size) == parse_bytes(str(size)) == size


@given(st.text(max_size=20) | st.from_regex(r"[0-9.]{1,20} ?[kmgtibsd]{0,3}", fullmatch=True))
def test_any_text_is_a_value_above_zero_or_a_bad_value(text: str) -> None:
    for parse in (parse_bytes, parse_seconds):
        with contextlib.suppress(BadValueError):
            assert parse(text) > 0


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (256 * 1024**2, "256 MiB"),
        (int(2.5 * 1024**3), "2.5 GiB"), (3 * 1024**4, "3.0 TiB"),
    ],
)  # fmt: skip
def test_sizes_as_people_read_them(size: int, text: str) -> None:
    assert format_bytes(size) == text


@given(st.integers(1, 2**50))
def test_a_size_read_back_is_near_what_it_was(size: int) -> None:
    assert parse_bytes(format_bytes(size)) == pytest.approx(size, rel=0.06)
