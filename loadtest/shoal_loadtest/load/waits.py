"""How long trainers waited: of each tenant, the time in which some rollout of its was not there yet."""

from typing import Final

_S: Final = 1e-9


class Waits:
    """Adds the time up in which anything was waited for, tenant by tenant; waits that overlap count once."""

    def __init__(self, tenants: int) -> None:
        self._open = [0] * tenants
        self._since_ns = [0] * tenants
        self._until_ns = [0] * tenants
        self._done_s = 0.0

    def begin(self, tenant: int, since_ns: int) -> None:
        """One more rollout is waited for, since this moment."""
        if not self._open[tenant]:
            self._since_ns[tenant] = max(since_ns, self._until_ns[tenant])
        self._open[tenant] += 1

    def end(self, tenant: int, now_ns: int) -> None:
        """One of them is there, or will never be."""
        self._open[tenant] -= 1
        if not self._open[tenant]:
            self._until_ns[tenant] = now_ns
            self._done_s += (now_ns - self._since_ns[tenant]) * _S

    def seconds(self, now_ns: int) -> float:
        """Return how long it was up to now."""
        open_s = sum((now_ns - since) * _S for count, since in zip(self._open, self._since_ns, strict=True) if count)
        return self._done_s + open_s
