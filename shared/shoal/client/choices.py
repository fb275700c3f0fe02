"""What may be written where there is a choice, for whoever checks types; it is refused at run time, too."""

from typing import Literal

OnLost = Literal["fail", "restart", "resume"]
"""What becomes of a sandbox that the platform lost."""

OnPreempted = Literal["hibernate", "restart", "never"]
"""How a sandbox makes room for what goes before it."""

Diverged = Literal["raise", "live"]
"""What a resumed run does where a step is asked to be another than it was."""

Differing = Literal["raise", "report"]
"""What the replay of a sandbox does where a step gives something else than it gave."""

Undone = Literal["raise", "recorded"]
"""What is done about a step that was undone and must not be done twice."""
