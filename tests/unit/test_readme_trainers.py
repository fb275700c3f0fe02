"""The README's trainers, run as they are written: whatever they were given, they give back."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.machine import ranges
from shoal.wire.codec import decode
from shoal.wire.messages import RolloutReleased, RolloutSubmitted
from unit.client_fabric import Fabric, all_ready, all_run

README = Path(__file__).parents[2] / "README.md"


def live_or_run(fabric: Fabric, request: RolloutSubmitted) -> None:
    (all_run if request.spec.commands else all_ready)(fabric, request)


@pytest.mark.parametrize("number", range(3))
async def test_nothing_stays_behind(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    program = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)[number]
    trainer: dict[str, Any] = {}
    async with Fabric(live_or_run) as fabric:
        monkeypatch.setattr(shoal, "connect", partial(shoal.connect, bus=fabric.connect()))
        exec(program.replace("asyncio.run(main())", ""), trainer)
        await trainer["main"]()
        log = [decode(each.payload) for each in fabric.broker.messages("SHOAL_ROLLOUT_0")]
    asked = [each for each in log if isinstance(each, RolloutSubmitted)]
    held = {each.rollout: each.spec.n for each in asked if not each.spec.commands}
    assert held == {each.rollout: ranges.count(each.indices) for each in log if isinstance(each, RolloutReleased)}
