"""Measuring peers: each is started, does its units, its single ones, and is ended; then comes the next one's turn."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from shoal.broker.embedded import find_server
from shoal_loadtest.floor.figures import percentile
from shoal_loadtest.peers.catalogue import Entry, Kind, line_of
from shoal_loadtest.peers.environments import NotInstalled, python_of
from shoal_loadtest.peers.harness import START_S, STOP_S, PeerFailed, Worker
from shoal_loadtest.peers.workers.services import NATS_SERVER

_PAUSE_S: Final = 0.02
_SINGLES: Final = 20
"""Of sandboxes so many are timed alone, and of tasks five times as many."""


class Found(msgspec.Struct):
    """What came of a peer, turn by turn; `note` says why there is nothing, or less."""

    name: str
    kind: str
    durable: str
    isolated: str
    against: str
    n: int
    a_second: list[float] = []
    one_p50_ms: list[float] = []
    one_p99_ms: list[float] = []
    memory_mib: list[float] = []
    processes: int = 0
    settings: dict[str, str] = {}
    note: str = ""


class Measuring:
    """Takes turns between peers. `n`: no-op units in a turn, `sandboxes`: real ones."""

    def __init__(
        self,
        entries: Sequence[Entry],
        n: int,
        sandboxes: int,
        envs: Path,
        patience_s: float,
        say: Callable[[str], None],
    ) -> None:
        self._entries = entries
        self._envs = envs
        self._patience_s = patience_s
        self._say = say
        self.found = {
            entry.name: Found(
                entry.name, entry.kind.value, entry.durable, entry.isolated, entry.against,
                entry.units(n if entry.kind is Kind.TASKS else sandboxes), note=entry.missing(),
            )
            for entry in entries
        }  # fmt: skip

    def run(self, rounds: int) -> list[Found]:
        """Take so many turns of each."""
        pythons = self._environments()
        for number in range(rounds):
            for entry in self._entries:
                found = self.found[entry.name]
                if found.note:
                    continue
                self._say(f"{entry.name}, round {number + 1} of {rounds}")
                try:
                    self._turn(entry, pythons.get(entry.environment, ""), found)
                except PeerFailed as error:
                    found.note = str(error)
        return list(self.found.values())

    def _environments(self) -> dict[str, str]:
        made: dict[str, str] = {}
        for entry in self._entries:
            found = self.found[entry.name]
            if entry.environment and not found.note and entry.environment not in made:
                try:
                    made[entry.environment] = str(python_of(self._envs, entry.environment, self._say))
                except NotInstalled as error:
                    found.note = str(error)
        for entry in self._entries:
            found = self.found[entry.name]
            if entry.environment and entry.environment not in made and not found.note:
                found.note = f"there is no environment of {entry.environment}"
        return made

    def _turn(self, entry: Entry, python: str, found: Found) -> None:
        environment = {"RAY_USAGE_STATS_ENABLED": "0", NATS_SERVER: str(find_server())}
        worker = Worker(
            line_of(entry, python), alone=bool(entry.environment), environment=environment, arguments=entry.arguments
        )
        with worker:
            found.settings = worker.ask(START_S, do="start")["settings"]
            seconds = worker.ask(self._patience_s, do="fan_out", n=found.n)["seconds"]
            singles = _SINGLES if entry.kind is Kind.SANDBOXES else 5 * _SINGLES
            ms = worker.ask(self._patience_s, do="one", times=singles, pause_s=_PAUSE_S)["ms"]
            found.memory_mib.append(worker.memory_mib())
            found.processes = worker.count()
            found.a_second.append(found.n / max(seconds, 1e-9))
            found.one_p50_ms.append(percentile(ms, 0.5))
            found.one_p99_ms.append(percentile(ms, 0.99))
            worker.ask(STOP_S, do="stop")
