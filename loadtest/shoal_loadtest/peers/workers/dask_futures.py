"""Dask distributed: `client.map` on a local cluster with one process a core."""

from typing import Any

import distributed

from shoal_loadtest.peers.workers.protocol import Peer, Settings, cores, main


class DaskFutures(Peer):
    """Futures, gathered."""

    _cluster: Any = None
    _client: Any = None

    def start(self) -> Settings:
        """Start scheduler, workers and client."""
        self._cluster = distributed.LocalCluster(
            n_workers=cores(), threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None,
            local_directory=str(self.place),
        )  # fmt: skip
        self._client = distributed.Client(self._cluster)
        self.fan_out(100)
        return {
            "version": distributed.__version__, "workers": str(cores()), "threads a worker": "1", "dashboard": "no",
            "unit": "client.map(..., pure=False) of a function that returns its argument",
        }  # fmt: skip

    def fan_out(self, n: int) -> int:
        """Map, then gather."""
        return len(set(self._client.gather(self._client.map(_noop, range(n), pure=False))))

    def one(self) -> None:
        """Submit one."""
        self._client.submit(_noop, 0, pure=False).result()

    def stop(self) -> None:
        """Close all."""
        self._client.close()
        self._cluster.close()


def _noop(number: int) -> int:
    return number


if __name__ == "__main__":
    main(DaskFutures)
