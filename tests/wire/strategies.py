"""Hypothesis strategies for any message, made from the types' own annotations."""

import types
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec
from hypothesis import strategies as st

from shoal.wire.bounds import MOST
from shoal.wire.messages import AnyMessage
from wire.samples import MESSAGE_TYPES

_INTEGERS = st.one_of(st.integers(-40, 300), st.integers(-MOST, MOST))
_PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: _INTEGERS,
    float: st.floats(-float(MOST), float(MOST)),
    str: st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    bytes: st.binary(max_size=40),
    types.NoneType: st.none(),
}


def of_type(annotation: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for values of one annotation of the contract."""
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    arguments = get_args(annotation)
    if get_origin(annotation) is tuple:
        if arguments[-1] is Ellipsis:
            return st.lists(of_type(arguments[0]), max_size=3).map(tuple)
        return st.tuples(*(of_type(argument) for argument in arguments))
    if get_origin(annotation) in (types.UnionType, Union):
        return st.one_of(*(of_type(argument) for argument in arguments))
    if issubclass(annotation, Enum):
        return st.sampled_from(annotation)
    if issubclass(annotation, msgspec.Struct):
        hints = get_type_hints(annotation)
        return st.builds(annotation, **{name: of_type(hints[name]) for name in annotation.__struct_fields__})
    raise TypeError(f"the contract uses {annotation!r}, for which there is no strategy yet")


def messages() -> st.SearchStrategy[AnyMessage]:
    """Return a strategy for every message there is."""
    return st.one_of(*(of_type(message) for message in MESSAGE_TYPES))
