"""What is asked of files, and what came of it by key: a change that was made is not made again."""

from collections import OrderedDict
from typing import Final

import msgspec

from shoal_executor.drivers.agent import files, frames, managing

REMEMBERED: Final = 4096
"""How many changes: more than are ever under way, and of the others the executor has the answer."""

Asked = frames.Write | frames.Read | frames.Manage
Told = frames.Wrote | frames.Piece | frames.Managed | frames.Failed


class Deeds:
    """See the module. They are done at once, so none is ever under way when another is asked for."""

    def __init__(self) -> None:
        self._told: OrderedDict[str, Told] = OrderedDict()

    def answer(self, asked: Asked, home: str) -> Told:
        """Do what is asked, or say what came of it before."""
        key = "" if isinstance(asked, frames.Read) else asked.key
        known = self._told.get(key) if key else None
        if known is not None:
            return msgspec.structs.replace(known, id=asked.id)
        told = _done(asked, home)
        if key and not (isinstance(told, frames.Managed) and told.more):
            self._told[key] = told
            if len(self._told) > REMEMBERED:
                self._told.popitem(last=False)
        return told


def _done(asked: Asked, home: str) -> Told:
    match asked:
        case frames.Write():
            return files.write(asked, home)
        case frames.Read():
            return files.read(asked, home)
        case frames.Manage():
            return managing.manage(asked, home)
