"""How a template is made, from what people write, checked."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from shoal.client.errors import BadRequest
from shoal.client.requests import Resources, milliseconds, pairs, sendable
from shoal.wire.messages import Isolation, Recipe
from shoal.wire.values import SOURCES

_SOURCE: Final = r"host|(dir|tar|docker-archive|oci):/[^\0]*|docker://[^\0\s]+|template:[^\0\s]+"


def recipe(
    source: str,
    setup: Sequence[str],
    warm: str,
    env: Mapping[str, str] | None,
    resources: Resources | None,
    timeout: float | str,
    isolation: str = "",
) -> Recipe:
    """Return how a template is made. Raises BadRequest for everything that can be known to be wrong beforehand."""
    if not isinstance(source, str) or not re.fullmatch(_SOURCE, source):
        raise BadRequest("source", f"{source!r} is no source; write {SOURCES}")
    lines = tuple(setup) if isinstance(setup, Iterable) else ("",)
    if isinstance(setup, str) or not all(isinstance(line, str) and line.strip() for line in lines):
        raise BadRequest("setup", "give a list of lines for a shell, none of them empty")
    if not isinstance(warm, str):
        raise BadRequest("warm", f"{warm!r} is no Python code; write it as a str, such as 'import numpy'")
    for name, value in (("source", source), *(("setup", line) for line in lines), ("warm", warm)):
        sendable(value, name)
    if isolation not in ("", Isolation.ZYGOTE, Isolation.GVISOR):
        raise BadRequest("isolation", f"{isolation!r} makes no templates; leave it out, or use zygote or gvisor")
    limits = resources or Resources(memory="2GiB", disk="1GiB", pids=1024)
    return Recipe(source, lines, warm, pairs(env), limits.wire, milliseconds(timeout, "timeout"), isolation)
