"""The numbers of messages: bounded, so that whoever adds two of them, or keeps one, has room for the result.

A message with another number is none (`codec.UndecodableError`): what cannot be reckoned with reaches no core.
"""

from typing import Annotated, Final

import msgspec

MOST: Final = 2**62
"""No number of a message is further from 0. MessagePack has 64 bits, and so have the checkpoints."""

Integer = Annotated[int, msgspec.Meta(ge=-MOST, le=MOST)]
Number = Annotated[float, msgspec.Meta(ge=-float(MOST), le=float(MOST))]
"""Finite, too: neither an infinity nor what is no number is between the two."""
