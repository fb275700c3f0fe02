"""structlog without rich, to be imported before any other module that imports it.

Where rich is installed, as for the `shoal` command, structlog loads all of it, to show tracebacks in colour: some 70 of
500 ms that a service takes to load, and 4 MB of each.
"""

import sys

_hidden = "rich" not in sys.modules
if _hidden:
    sys.modules["rich"] = None  # type: ignore[assignment]  # as if it were not installed; see `import` in Python's reference
try:
    import structlog
finally:
    if _hidden:
        del sys.modules["rich"]

__all__ = ["structlog"]
