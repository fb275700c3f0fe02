"""One executor at a time for a state directory."""

import fcntl
import time
from pathlib import Path
from typing import IO, Final

from shoal_executor.drivers.protocol import DriverError

_LOCK_S: Final = 10.0


def hold(path: Path) -> IO[bytes]:
    """Take the lock of a state directory; it is held until the file is closed. Raises DriverError after ten seconds."""
    lock = path.open("ab")
    until = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() >= until:
                lock.close()
                raise DriverError(
                    f"another executor uses {path.parent}; stop it, or choose another directory"
                ) from None
            time.sleep(0.05)
