"""A thread pool over a program that starts sandboxes: bwrap, runc or runsc, by the name in the second argument."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from shoal_loadtest.floor.bare import Bubblewrap, Program, Runc, Runsc
from shoal_loadtest.peers.workers.protocol import Peer, Settings, cores, serve

PROGRAMS: Final[dict[str, Callable[[], Program]]] = {
    "bwrap": Bubblewrap,
    "runc": Runc,
    "runsc": lambda: Runsc(restored=False),
    "runsc-restore": lambda: Runsc(restored=True),
}


class Programs(Peer):
    """Each unit is a sandbox with one `true` in it."""

    def __init__(self, place: Path, program: Program) -> None:
        super().__init__(place)
        self._program = program
        self._threads = ThreadPoolExecutor(4 * cores())

    def start(self) -> Settings:
        """Make it ready."""
        self._program.open(self.place)
        self.one()
        return {
            "program": self._program.name, "flags": self._program.settings, "threads": str(4 * cores()),
            "unit": "a sandbox with the host's /usr: started, `true`, ended",
        }  # fmt: skip

    def fan_out(self, n: int) -> int:
        """Call it so often."""
        return len(list(self._threads.map(lambda _: self._program.unit(), range(n))))

    def one(self) -> None:
        """Call it once."""
        self._threads.submit(self._program.unit).result()

    def stop(self) -> None:
        """End the threads."""
        self._threads.shutdown()
        self._program.close()


if __name__ == "__main__":
    serve(Programs(Path(sys.argv[1]), PROGRAMS[sys.argv[2]]()))
