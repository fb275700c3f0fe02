"""Ray: actors, each a process of its own with state: the nearest thing to a sandbox."""

from typing import Any, Final

import ray

from shoal_loadtest.peers.workers.protocol import Peer, Settings, main
from shoal_loadtest.peers.workers.ray_tasks import begin

AT_A_TIME: Final = 16
"""Actors alive at a time: each is a Python process of its own."""


class RayActors(Peer):
    """Each unit is an actor that is made, called once, and killed."""

    _box: Any = None

    def start(self) -> Settings:
        """Start Ray."""
        settings = begin(self)
        # No cpu is reserved for as long as an actor lives: it is idle, as a sandbox is.
        self._box = ray.remote(num_cpus=0)(Box)
        self.one()
        return settings | {"unit": "an actor: made, called once, killed", "alive at a time": str(AT_A_TIME)}

    def fan_out(self, n: int) -> int:
        """Keep so many alive; as one has answered it is killed, and the next made."""
        alive: dict[Any, Any] = {}
        made = done = 0
        while done < n:
            while made < n and len(alive) < AT_A_TIME:
                box = self._box.remote()
                alive[box.run.remote(made)] = box
                made += 1
            for answer in ray.wait(list(alive))[0]:
                ray.get(answer)
                ray.kill(alive.pop(answer))
                done += 1
        return done

    def one(self) -> None:
        """Have one."""
        box = self._box.remote()
        ray.get(box.run.remote(0))
        ray.kill(box)

    def stop(self) -> None:
        """Stop Ray."""
        ray.shutdown()


class Box:
    """What lives in its own process."""

    def run(self, number: int) -> int:
        """Do nothing."""
        return number


if __name__ == "__main__":
    main(RayActors)
