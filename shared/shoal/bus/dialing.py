"""What comes of trying one server after the other, until one answers or all have failed."""

import asyncio
from typing import Final

from shoal.bus.address import advice, encrypted, servers, shown
from shoal.bus.permissions import knows_not, not_let_in
from shoal.bus.protocol import NotAllowedError, UnreachableError
from shoal.bus.tls import NotAcceptedError

NO_TLS: Final = "it does not speak TLS, which tls:// asks for"


class Attempts:
    """One round through the servers of an address. Each has its share of the time, so that none takes the others'."""

    def __init__(self, address: str, timeout_s: float) -> None:
        """Raises UnreachableError where it is no address."""
        self.servers = servers(address)
        if not self.servers:
            raise UnreachableError(
                f"{shown(address)!r} is no broker's address; write one such as nats://127.0.0.1:4222"
            )
        self.share_s = timeout_s / len(self.servers)
        """Seconds for one server."""
        self.failed = asyncio.Event()
        """Set when there is no server left to try."""
        self._address = address
        self._failures: dict[int, Exception] = {}

    def failure(self, number: int, error: Exception) -> None:
        """Note why the so-manieth server tried, from 1, is of no use. What follows from that, as at closing, is not."""
        self._failures.setdefault(number, error)
        if number >= len(self.servers):
            self.failed.set()

    def error(self) -> UnreachableError:
        """Return what to tell where no server was of use: whoever was not let in need not look for a broker."""
        found = list(self._failures.values())
        refused = [each for each in found if isinstance(each, NotAcceptedError)]
        if refused and (len(refused) == len(found) or any(each.said for each in refused)):
            return NotAllowedError(f"the broker at {shown(self._address)} lets nobody in so: {refused[-1]}")
        if any(map(knows_not, found)):
            return not_let_in(self._address)
        return unreachable(self._address, "; ".join(dict.fromkeys(map(self._why, found))) or self._silence)

    def _why(self, error: Exception) -> str:
        if isinstance(error, TimeoutError) and not error.errno:  # with one it is the machine's word
            return self._silence
        return str(error) or type(error).__name__

    @property
    def _silence(self) -> str:
        return f"no answer within {self.share_s:.3g} s"


def unreachable(address: str, why: str) -> UnreachableError:
    """Return the error of an address where no broker answers as it should."""
    reason = f"no broker answers at {shown(address)} ({why})"
    return UnreachableError(f"{reason}; {advice(address)}", reason)


def in_the_clear(address: str, tls_required: object) -> bool:
    """Return whether nothing is encrypted though the address says so: nats-py leaves that to the server."""
    return encrypted(address) and not tls_required
