"""Who a sandbox's user namespace belongs to: a user of the template's for each, so that all in it count as one.

Root in a sandbox has many users, and the kernel counts inotify instances for each; but it counts them for whoever made
the namespace as well, in the template's, and that limit is one for all of a sandbox. Where a template has a warm
interpreter its root owns all sandboxes: only so may the interpreter, which has no capability, enter them.
"""

import contextlib
from collections import deque

from shoal_executor.drivers import kernel
from shoal_executor.drivers.zygote.becoming import few_watchers
from shoal_executor.drivers.zygote.entering import RANGE
from shoal_executor.drivers.zygote.steps import take


class Owners:
    """Users of the template, each of which owns one sandbox at most; longest unused first."""

    def __init__(self) -> None:
        self._free = deque(range(1, RANGE))

    @classmethod
    def where_it_may(cls) -> "Owners | None":
        """Limit what each user of this process's namespace takes; None where the kernel has no such limit."""
        with contextlib.suppress(OSError):
            if steps := few_watchers():
                kernel.keep_capabilities()
                take(steps)
                return cls()
        return None

    def take(self) -> int:
        """Return one that owns nothing, or root where all do."""
        return self._free.popleft() if self._free else 0

    def give_back(self, owner: int) -> None:
        """Its sandbox is gone."""
        if owner:
            self._free.append(owner)
