"""Outputs of commands: how much of one a message holds, and what a larger one is as a blob.

A blob is found by its digest alone, and a digest is no secret. So whose output it is stands in front of it, and an
executor hands it out to that tenant only: no other blob, a disk or a memory, begins like this.
"""

from typing import Final

IN_MESSAGE: Final = 256 * 1024
"""Bytes of each output stream that fit into one message, both together, with the broker's default limit."""
LARGEST: Final = 16 * 1024**2
"""Bytes of each output stream that are kept at most, where so much was asked for."""
PIECE: Final = 256 * 1024
"""Bytes of a blob in one message."""


def heading(tenant: str) -> bytes:
    """Return what an output of this tenant's begins with as a blob."""
    return b"shoal output of %s\n" % tenant.encode()
