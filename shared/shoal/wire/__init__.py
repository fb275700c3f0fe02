"""The contract: messages, subjects, streams and the codec. Pure data, and nothing else.

Everything that crosses a process boundary is declared here. A message is frozen; a changed meaning is a new message.
"""

from typing import Final

VERSION: Final = 6
"""Of the contract: one more whenever a message or a field is added. What was written under any of them is read for ever

(`tests/archive/golden` has an archive of each).
"""
