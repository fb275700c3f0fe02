"""Properties of the codec: every message survives it, and nothing else gets through."""

from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgpack
import msgspec
import pytest
from hypothesis import given, strategies as st

from shoal.wire import codec, messages as m
from shoal.wire.messages import AnyMessage
from shoal.wire.messages.base import Message
from shoal.wire.values import Value
from wire.samples import SAMPLES
from wire.strategies import messages


@given(messages())
def test_every_message_survives(message: AnyMessage) -> None:
    payload = codec.encode(message)
    assert codec.decode(payload) == message
    assert codec.encode(codec.decode(payload)) == payload


@given(messages())
def test_msgpack_reads_the_same_values(message: AnyMessage) -> None:
    plain = msgspec.to_builtins(message, builtin_types=(bytes,))
    assert msgpack.unpackb(codec.encode(message)) == msgpack.unpackb(msgpack.packb(plain))


def structs(root: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    for each in root.__subclasses__():
        yield each
        yield from structs(each)


def boundless(annotation: Any) -> bool:
    """Whether a number of any size is of this type."""
    if get_origin(annotation) is Annotated:
        return False
    return annotation in (int, float) or any(map(boundless, get_args(annotation)))


def test_no_number_of_a_message_is_without_bounds() -> None:
    found = [
        f"{each.__name__}.{name}"
        for root in (Message, Value)
        for each in structs(root)
        for name, annotation in get_type_hints(each, include_extras=True).items()
        if boundless(annotation)
    ]
    assert found == []


@given(st.binary(max_size=200))
def test_noise_is_refused_and_nothing_else_is_raised(noise: bytes) -> None:
    with pytest.raises(codec.UndecodableError):
        codec.decode(noise)


@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_a_damaged_message_is_refused_or_is_still_a_message(name: str, data: st.DataObject) -> None:
    payload = bytearray(codec.encode(SAMPLES[name]))
    position = data.draw(st.integers(0, len(payload) - 1))
    payload[position] ^= data.draw(st.integers(1, 255))
    try:
        survivor = codec.decode(bytes(payload))
    except codec.UndecodableError:
        return
    assert codec.decode(codec.encode(survivor)) == survivor


@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_a_cut_message_is_refused(name: str, data: st.DataObject) -> None:
    payload = codec.encode(SAMPLES[name])
    with pytest.raises(codec.UndecodableError):
        codec.decode(payload[: data.draw(st.integers(0, len(payload) - 1))])


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (["NoSuchMessage", 1], "NoSuchMessage"),
        (["Tick"], "length"),
        (["Tick", "soon"], "int"),
        (["Tick", None], "int"),
        ({"type": "Tick", "due_ms": 1}, "array"),
        (["SandboxesEnded", "r1", 0, [[0, 1]], "node-1", "bored"], "bored"),
        ([], "at least"),
        (None, "None"),
    ],
)
def test_what_is_no_message_is_refused_with_a_reason(value: object, complaint: str) -> None:
    with pytest.raises(codec.UndecodableError, match=complaint):
        codec.decode(msgpack.packb(value))


def test_bytes_after_a_message_are_refused() -> None:
    with pytest.raises(codec.UndecodableError):
        codec.decode(codec.encode(SAMPLES["Tick"]) + b"\x00")


def test_endless_nesting_is_refused() -> None:
    with pytest.raises(codec.UndecodableError):
        codec.decode(b"\x91" * 1_000_000)  # from Python 3.14 on, 100,000 levels have room on the stack
    extra = codec.encode(SAMPLES["Tick"])
    assert extra[0] == 0x92
    with pytest.raises(codec.UndecodableError):
        codec.decode(b"\x93" + extra[1:] + b"\x91" * 1_000_000 + b"\xc0")


def test_a_length_that_lies_is_refused() -> None:
    name = codec.encode(SAMPLES["Tick"])[1:6]
    assert name == b"\xa4Tick"
    for claim in (
        b"\xdd\xff\xff\xff\xff" + name,
        b"\x92\xdb\xff\xff\xff\xffTick",
        b"\x93" + name + b"\x01\xdd\xff\xff\xff\xff",
    ):
        with pytest.raises(codec.UndecodableError):
            codec.decode(claim)
    huge = codec.encode(SAMPLES["RolloutReleased/defaults"])
    assert huge[-1:] == b"\x90"  # its ranges, none
    with pytest.raises(codec.UndecodableError):
        codec.decode(huge[:-1] + b"\xdd\xff\xff\xff\xff")


@pytest.mark.parametrize(
    "message",
    [
        m.BlobKept("a", m.Blob("d", 1), 2**64 - 1),
        m.BlobKept("a", m.Blob("d", 2**63), 1),
        m.Tick(2**62 + 1),
        m.Tick(-(2**63)),
        m.RolloutReleased("r", ((0, 2**62 + 1),)),
        m.TenantSet("a", m.Limits(starts_per_s=1e308)),
        m.TenantSet("a", m.Limits(starts_per_s=float("inf"))),
        m.TenantSet("a", m.Limits(starts_per_s=float("nan"))),
        m.TenantSet("a", m.Limits(weight=float("nan"))),
    ],
)
def test_a_number_that_cannot_be_reckoned_with_is_refused(message: AnyMessage) -> None:
    with pytest.raises(codec.UndecodableError, match=r"Expected `(int|float)`"):
        codec.decode(codec.encode(message))
