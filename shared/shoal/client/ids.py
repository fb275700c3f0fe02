"""Ids of rollouts: drawn, or worked out from a key, so that whoever asks again asks for the same."""

import hashlib
import secrets
from typing import Final

from shoal.client.errors import BadRequest
from shoal.client.requests import sendable

_LONGEST_KEY: Final = 500
_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz234567"


def new_id() -> str:
    """Return a rollout's id."""
    return "r" + "".join(secrets.choice(_ALPHABET) for _ in range(15))


def id_of(tenant: str, run: str, key: str, retry: int = 0) -> str:
    """Return the id of the rollout that a run calls so: the same for whoever asks; of each retry another one.

    Raises BadRequest.
    """
    if not isinstance(key, str) or not 0 < len(key) <= _LONGEST_KEY or "\0" in key:
        raise BadRequest("key", f"{key!r} is no name for a rollout; write 1 to {_LONGEST_KEY} characters")
    sendable(key, "key")
    number = int.from_bytes(hashlib.sha256("\0".join((tenant, run, key, str(retry))).encode()).digest())
    return "r" + "".join(_ALPHABET[number >> 5 * at & 31] for at in range(15))
