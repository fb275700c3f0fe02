"""What a checkpoint of a whole sandbox is kept as: one EROFS file, which says what it can be restored with.

So it is restored from where it lies: mounted, not unpacked, with one page cache for all who start from it. Where it is
inflated, the file system's own compression makes it small, which is undone once, on its way into that cache.
"""

from pathlib import Path
from typing import Final

import msgspec

from shoal_executor.drivers.gvisor.inflated import inflate
from shoal_executor.drivers.layers import make_layer
from shoal_executor.drivers.protocol import DriverError

_ABOUT: Final = "about.json"


class About(msgspec.Struct, frozen=True):
    """What a checkpoint was made with: the release of runsc, its platform, the agent's Python, and /dev/shm's size."""

    runsc: int
    platform: str
    python: str
    shm: int


def pack(image: Path, about: About, memory: Path) -> None:
    """Make one file of a checkpoint's directory, whose file may be rewritten. Raises DriverError, OSError."""
    inflated = inflate(image)
    (image / _ABOUT).write_bytes(msgspec.json.encode(about))
    make_layer(str(image), memory, compress=inflated)


def about(image: Path) -> About:
    """Return what a checkpoint was made with. Raises DriverError for what is none."""
    try:
        return msgspec.json.decode((image / _ABOUT).read_bytes(), type=About)
    except (OSError, msgspec.MsgspecError) as error:
        raise DriverError(f"a memory snapshot is damaged: {error}") from error
