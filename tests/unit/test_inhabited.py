"""What sandboxes with an agent inside have in common, without one: links and fork servers that do as the test says."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shoal.wire.messages import Command, EndReason
from shoal_executor.drivers.agent.link import Link
from shoal_executor.drivers.cgroups import Group, Groups
from shoal_executor.drivers.inhabited import AgentDriver, Inhabited
from shoal_executor.drivers.protocol import NoSuchSandboxError, StartSpec


@dataclass(slots=True, kw_only=True)
class Box(Inhabited):
    """One whose end is told by the test."""

    asked_to_end: asyncio.Event = field(default_factory=asyncio.Event)

    async def killed(self) -> None:
        """Wait for its end."""
        self.asked_to_end.set()
        await self.ended.wait()


class Boxes(AgentDriver[Box]):
    """A driver of those."""

    async def _start(self, name: str, spec: StartSpec) -> None:
        raise NotImplementedError

    async def _end(self, sandbox: Box) -> None:
        del self._ending[sandbox.name]

    def put(self, name: str) -> Box:
        """Have a live one, the link of which is cut: its answer to everything is that it ended."""
        box = self._live[name] = Box(name=name, link=Link(), group=Group(()))
        return box

    def tell_its_end(self, box: Box) -> None:
        """Its first process has ended."""
        box.ended.set()
        self._gone(box)


async def test_a_command_under_way_in_a_sandbox_that_died_hears_that_it_died(tmp_path: Path) -> None:
    boxes = Boxes(Groups("unit", tmp_path / "groups"), 1)
    box = boxes.put("a")
    running = asyncio.create_task(boxes.run("a", Command(line="sleep 600")))
    await box.asked_to_end.wait()
    boxes.tell_its_end(box)
    await boxes.destroy(["a"])  # as the executor clears away what is left of it
    with pytest.raises(NoSuchSandboxError) as caught:
        await running
    assert caught.value.reason is EndReason.DIED


async def test_a_command_under_way_in_a_sandbox_that_is_released_hears_that(tmp_path: Path) -> None:
    boxes = Boxes(Groups("unit", tmp_path / "groups"), 1)
    box = boxes.put("a")
    running = asyncio.create_task(boxes.run("a", Command(line="sleep 600")))
    await box.asked_to_end.wait()
    await boxes.destroy(["a"])
    boxes.tell_its_end(box)
    with pytest.raises(NoSuchSandboxError) as caught:
        await running
    assert caught.value.reason is EndReason.RELEASED
