"""Archives for tests, made of few words."""

import asyncio
import random
from pathlib import Path

import pytest

from shoal.archive import writer as writing
from shoal.archive.looking import Found, look
from shoal.archive.records import FORMAT, Header
from shoal.archive.writer import Writer
from shoal.bus.protocol import Delivery
from shoal.machine.checkpoint import Checkpoint


class InMemory:
    """Bytes that are an archive, or were one."""

    def __init__(self, data: bytes) -> None:
        self.name = "x.shoal"
        self.data = data

    async def size(self) -> int:
        return len(self.data)

    async def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


def looked(data: bytes, *, deep: bool = False) -> Found:
    """Return what is found in these bytes."""
    return asyncio.run(look(InMemory(data), deep=deep))


def header(**fields: object) -> Header:
    return Header(**{"format": FORMAT, "wire": 1, "made_by": "a test", "made_ms": 1_700_000_000_000, **fields})  # type: ignore[arg-type]


def message(sequence: int, source: random.Random, stream: str = "SHOAL_EXECUTOR_a") -> Delivery:
    """Return a message as there might be one."""
    id = f"SHOAL_PLACEMENT_0:{sequence * 3}:{source.randrange(4)}" if sequence % 3 else f"r{source.random()}:asked"
    payload = source.randbytes(source.randrange(60))
    return Delivery(f"shoal.{stream.lower()}.control", payload, sequence, 1_700_000_000_000 + sequence * 7, id)


def small(path: Path, *, block: int = 1000, count: int = 120, seed: int = 7) -> dict[str, list[Delivery]]:
    """Write an archive of many small blocks: two streams, a gap, a state, values. Returns what is in it."""
    source = random.Random(seed)
    kept: dict[str, list[Delivery]] = {"SHOAL_EXECUTOR_a": [], "SHOAL_EXECUTOR_b": []}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "BLOCK", block)
        writer = Writer.create(path, header(values={"SHOAL_CLUSTER": {"cells": b"1"}}))
        writer.checkpoint(Checkpoint("scheduler.0", 3, "SHOAL_EXECUTOR_a", 5, 1_700_000_000_035, b"state" * 30))
        for sequence in range(1, count + 1):
            for stream, messages in kept.items():
                if stream.endswith("b") and sequence == 50:
                    writer.miss(stream, 50, 50)
                    continue
                messages.append(message(sequence, source, stream))
                writer.append(stream, messages[-1])
        writer.values({"SHOAL_CLUSTER": {"cells": b"1", "tenants.t": b"{}"}})
        writer.finish()
    return kept
