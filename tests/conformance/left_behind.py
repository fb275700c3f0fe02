"""A driver in a process of its own, to be killed: `python left_behind.py zygote|gvisor STATE NAME...`.

Starts the sandboxes, leaves things in the first of them, says "ready" on a line and waits for its end.
"""

import asyncio
import os
import sys
from pathlib import Path

from shoal.wire.messages import Command, FileOp, Resources, Snapshot
from shoal.wire.values import APPEND
from shoal_executor.drivers.gvisor.driver import GvisorDriver
from shoal_executor.drivers.protocol import StartFailed, StartSpec
from shoal_executor.drivers.zygote.driver import ZygoteDriver

HOST = Snapshot("host", "host")


async def main(kind: str, state: Path, names: list[str]) -> None:
    patience_s = float(os.environ.get("PATIENCE_S", "60"))
    driver = GvisorDriver(state) if kind == "gvisor" else ZygoteDriver(state, patience_s=patience_s)
    await driver.open(lambda *_: None)
    async for outcome in driver.start(names, StartSpec(HOST, Resources(memory=64 * 1024**2))):
        if isinstance(outcome, StartFailed):
            raise SystemExit(outcome.detail)
    first = names[0]
    await driver.write_file(first, "note", b"kept")
    await driver.run(first, Command(line="sleep 1000 >/dev/null 2>&1 &"))
    await driver.run(first, Command(line="remembered=yes; cd /tmp", session=True))
    await driver.run(first, Command(line="echo once >> /root/settled; echo s"), id="settled")
    driver.settle(first, ["settled"])
    await driver.run(first, Command(line="echo once >> /root/done; echo d"), id="done")
    await driver.write_file(first, "log", b"once", offset=APPEND, id="append")
    await driver.write_file(first, "old", b"1")
    await driver.manage_files(first, FileOp.REMOVE, "old", id="remove")
    under_way = [
        asyncio.create_task(driver.run(first, Command(line=line, session=session), id=id))
        for id, session, line in (
            ("slow", False, "echo once >> /root/slow; echo a; while [ ! -e /root/go ]; do sleep 0.01; done; echo b"),
            ("talk", False, "while [ ! -e /root/go ]; do echo talk; sleep 0.001; done | tail -n 1"),
            (
                "session",
                True,
                "echo once >> /root/session; while [ ! -e /root/go ]; do sleep 0.01; done; echo $remembered",
            ),
        )
    ]
    while b"once" not in (await driver.run(first, Command(line="cat /root/session /root/slow"))).stdout:
        await asyncio.sleep(0.01)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.gather(*under_way)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
