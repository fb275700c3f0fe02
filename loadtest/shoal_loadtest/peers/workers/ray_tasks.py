"""Ray: remote functions."""

from typing import Any

import ray

from shoal_loadtest.peers.workers.protocol import Peer, Settings, cores, main


def begin(peer: Peer) -> Settings:
    """Start Ray on this machine, for this process, with as many workers as there are cores."""
    if not peer.shut_off:
        raise PermissionError("Ray listens on every interface: run this as root, so that it can be shut off")
    ray.init(
        num_cpus=cores(), include_dashboard=False, _temp_dir=str(peer.place),
        log_to_driver=False, logging_level="error", object_store_memory=256 * 1024**2,
    )  # fmt: skip
    return {"version": ray.__version__, "num_cpus": str(cores()), "dashboard": "no", "object store": "256 MiB"}


class RayTasks(Peer):
    """`ray.get` of as many `remote` calls as there are units."""

    _noop: Any = None

    def start(self) -> Settings:
        """Start Ray, and its workers."""
        settings = begin(self)
        self._noop = ray.remote(_noop)
        ray.get([self._noop.remote(number) for number in range(100)])
        return settings | {"unit": "a remote function that returns its argument"}

    def fan_out(self, n: int) -> int:
        """Call all, then get all."""
        return len(set(ray.get([self._noop.remote(number) for number in range(n)])))

    def one(self) -> None:
        """Call one."""
        ray.get(self._noop.remote(0))

    def stop(self) -> None:
        """Stop Ray."""
        ray.shutdown()


def _noop(number: int) -> int:
    return number


if __name__ == "__main__":
    main(RayTasks)
