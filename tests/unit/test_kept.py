"""What is kept of an output over its limit, and how that is told."""

import pytest
from hypothesis import given, strategies as st

import shoal
from shoal.client.results import CommandResult
from shoal.client.streaming import Streamed
from shoal.wire import messages
from shoal_executor.drivers.kept import Kept, cut


@given(st.lists(st.binary(max_size=40), max_size=12), st.integers(-1, 60))
def test_the_first_half_and_the_last_are_kept_whatever_pieces_it_comes_in(pieces: list[bytes], limit: int) -> None:
    kept = Kept(limit)
    streamed = b"".join([kept.take(piece) for piece in pieces])
    whole, most = b"".join(pieces), max(limit, 0)
    assert streamed == whole[:most]
    assert kept.dropped == max(len(whole) - most, 0)
    if len(whole) <= most:
        assert (kept.content, kept.tail) == (whole, 0)
    else:
        half = most // 2
        assert kept.tail == half
        assert kept.content == whole[: most - half] + whole[len(whole) - half :]


def test_a_whole_output_is_cut_the_same() -> None:
    kept = cut(b"0123456789", 5)
    assert (kept.content, kept.dropped, kept.tail) == (b"01289", 5, 2)


def result(stdout: bytes, dropped: int, tail: int) -> CommandResult:
    return CommandResult.of(messages.CommandResult(1, stdout, b"err", stdout_dropped=dropped, stdout_tail=tail))


def test_a_line_says_where_how_much_is_left_out_and_only_where_it_is_asked_for() -> None:
    found = result(b"begin\nmidthe end\n", 5_000, 8)
    assert found.truncated
    assert found.stdout == "begin\nmidthe end\n"
    assert found.marked() == "begin\nmid\n[... 5000 bytes left out ...]\nthe end\n"
    assert found.marked("stderr") == "err"
    assert result(b"begin\n" + "é".encode()[1:] + b"nd", 1, 3).marked() == "begin\n[... 1 bytes left out ...]\n\ufffdnd"
    assert result(b"begin", 7, 0).marked() == "begin\n[... 7 bytes left out ...]\n"  # as earlier versions told it
    assert result(b"all", 0, 0).marked() == "all"
    with pytest.raises(shoal.BadRequest, match="stdin"):
        found.marked("stdin")


def test_what_is_after_a_gap_is_not_streamed_as_if_it_came_next() -> None:
    got: list[bytes] = []
    streamed = Streamed(lambda _, data: got.append(data))
    streamed("stdout", b"0")
    streamed.end(CommandResult(0, b"01289", b"", 0.1, stdout_dropped=5, stdout_tail=2))
    assert got == [b"0", b"12"]
