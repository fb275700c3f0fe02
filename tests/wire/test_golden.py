"""Every message has golden bytes, and they never change."""

import json
from typing import Any

import msgpack
import msgspec
import pytest

from shoal.wire import codec
from shoal.wire.messages import AnyMessage, Command, EndReason, Message, Tick
from wire.make_golden import EARLIER, GOLDEN, merge, still_means
from wire.samples import MESSAGE_TYPES, SAMPLES

BYTES: dict[str, bytes] = {name: bytes.fromhex(text) for name, text in json.loads(GOLDEN.read_text()).items()}
EARLIER_BYTES: dict[str, list[str]] = json.loads(EARLIER.read_text())
every_sample = pytest.mark.parametrize("name", sorted(SAMPLES))


def as_tuples(value: Any) -> Any:
    """Return the value with every list as a tuple: MessagePack has but one kind of array."""
    return tuple(map(as_tuples, value)) if isinstance(value, list | tuple) else value


def fields_of(value: Any, *extra: object) -> Any:
    """Return the value as plain arrays, with `extra` appended to each structure in it."""
    if isinstance(value, msgspec.Struct):
        tag = (value.__struct_config__.tag,) if value.__struct_config__.tag is not None else ()
        return (*tag, *(fields_of(getattr(value, name), *extra) for name in value.__struct_fields__), *extra)
    return tuple(fields_of(item, *extra) for item in value) if isinstance(value, tuple) else value


def fields_set(value: Any) -> Any:
    """Return the value as plain arrays that end with the last field that differs from its default."""
    if isinstance(value, msgspec.Struct):
        tag = (value.__struct_config__.tag,) if value.__struct_config__.tag is not None else ()
        given = [getattr(value, field.name) for field in msgspec.structs.fields(value)]
        defaults = [field.default for field in msgspec.structs.fields(value)]
        while given and given[-1] == defaults[-1]:
            given.pop(), defaults.pop()
        return (*tag, *map(fields_set, given))
    return tuple(map(fields_set, value)) if isinstance(value, tuple) else value


def test_every_message_type_has_a_specimen() -> None:
    assert {type(message) for message in SAMPLES.values()} == set(MESSAGE_TYPES)
    assert all(name.partition("/")[0] == type(message).__name__ for name, message in SAMPLES.items())


def test_any_message_is_every_message() -> None:
    assert set(Message.__subclasses__()) == set(MESSAGE_TYPES)


def test_specimens_and_golden_bytes_have_the_same_names() -> None:
    assert BYTES.keys() == SAMPLES.keys()


@pytest.mark.parametrize("kind", MESSAGE_TYPES, ids=lambda kind: kind.__name__)
def test_some_specimen_sets_each_field_to_something_else_than_its_default(kind: type[AnyMessage]) -> None:
    specimens = [message for message in SAMPLES.values() if type(message) is kind]
    for field in msgspec.structs.fields(kind):
        assert any(getattr(message, field.name) != field.default for message in specimens), field.name


def test_each_reason_has_golden_bytes() -> None:
    assert {f"SandboxesEnded/{reason}" for reason in EndReason} <= BYTES.keys()


@every_sample
def test_bytes_are_golden(name: str) -> None:
    assert codec.encode(SAMPLES[name]) == BYTES[name]


@every_sample
def test_golden_bytes_decode_to_an_equal_message(name: str) -> None:
    decoded = codec.decode(BYTES[name])
    assert decoded == SAMPLES[name]
    assert type(decoded) is type(SAMPLES[name])


@every_sample
def test_msgpack_reads_what_msgspec_wrote(name: str) -> None:
    plain = msgspec.to_builtins(SAMPLES[name], builtin_types=(bytes,))
    assert as_tuples(msgpack.unpackb(BYTES[name])) == as_tuples(plain)


@every_sample
def test_msgspec_reads_what_msgpack_wrote(name: str) -> None:
    packed = msgpack.packb(fields_of(SAMPLES[name]))
    assert packed == BYTES[name]
    assert codec.decode(packed) == SAMPLES[name]


@every_sample
def test_a_reader_ignores_fields_appended_later(name: str) -> None:
    newer = msgpack.packb(fields_of(SAMPLES[name], "a field of tomorrow", [1, {"x": None}]))
    assert newer != BYTES[name]
    assert codec.decode(newer) == SAMPLES[name]


@pytest.mark.parametrize("name", sorted(name for name in SAMPLES if name.endswith("/defaults")))
def test_a_reader_fills_in_fields_that_an_older_writer_did_not_know(name: str) -> None:
    older = msgpack.packb(fields_set(SAMPLES[name]))
    assert len(older) < len(BYTES[name])
    assert codec.decode(older) == SAMPLES[name]


@pytest.mark.parametrize("kind", MESSAGE_TYPES, ids=lambda kind: kind.__name__)
def test_a_message_is_a_frozen_array_named_by_its_type(kind: type[AnyMessage]) -> None:
    config = kind.__struct_config__
    assert (config.frozen, config.array_like, config.tag) == (True, True, kind.__name__)


def test_a_message_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        setattr(Tick(1), "due_ms", 2)  # noqa: B010 - mypy knows that a plain assignment cannot work
    with pytest.raises(AttributeError):
        setattr(Command(), "line", "x")  # noqa: B010 - as above


@pytest.mark.parametrize("name", sorted(EARLIER_BYTES))
def test_what_was_written_before_fields_were_appended_is_read_for_ever(name: str) -> None:
    assert all(codec.decode(bytes.fromhex(text)) == SAMPLES[name] for text in EARLIER_BYTES[name])


def test_bytes_that_mean_something_else_now_are_no_earlier_version() -> None:
    assert still_means(codec.encode(Tick(7)).hex(), Tick(7))
    assert not still_means(codec.encode(Tick(8)).hex(), Tick(7))
    assert not still_means("c1", Tick(7))


def test_the_maker_adds_what_is_new_and_reports_what_changed() -> None:
    merged, changed = merge({"A": "00", "B": "01"}, {"A": "00", "B": "ff", "C": "02"})
    assert merged == {"A": "00", "B": "01", "C": "02"}
    assert changed == ["B"]
