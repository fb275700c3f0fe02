"""A command's connection to a cluster: `connect`, with an end that does not wait for ever."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from shoal.cli.output import say

if TYPE_CHECKING:
    from shoal.client.cluster import Cluster

CLOSE_S: Final = 15.0
"""How long a connection may take to close: what was published is flushed for ten seconds of it."""


@asynccontextmanager
async def connect(
    url: str | None = None, *, tenant: str | None = None, close_s: float = CLOSE_S
) -> "AsyncIterator[Cluster]":
    """Connect as the client's `connect` does; a connection that does not close within `close_s` is left as it is."""
    from shoal.client import cluster as client

    opening = client.connect(url) if tenant is None else client.connect(url, tenant=tenant)
    cluster = await opening.__aenter__()
    try:
        yield cluster
    finally:
        closing = asyncio.ensure_future(opening.__aexit__(None, None, None))
        try:
            done, _ = await asyncio.wait({closing}, timeout=close_s)
        finally:
            closing.cancel()
        if done:
            closing.result()
        else:
            say(f"shoal: the connection did not close within {close_s:g} s, and is left as it is")
