"""The first process of a container: `main` serves standard input and output.

It is started in a Python that has nothing but what this module loads, which `needs` says; see `closure`.
"""

import json
import os
import sys
import sysconfig

from shoal_executor.drivers.agent import interpreter
from shoal_executor.drivers.agent.agent import Agent, heed_signals

_DATA = (interpreter.__file__.replace("interpreter.py", "served.py"),)


class Pipes:
    """Standard input and output as a link. What is sent is sent whole: the driver always reads."""

    def fileno(self) -> int:
        """Return standard input's."""
        return 0

    def recv(self, size: int, /) -> bytes:
        """Receive something, nothing at the end."""
        return os.read(0, size)

    def send(self, data: bytearray, /) -> int:
        """Send some."""
        return os.write(1, data)

    def close(self) -> None:
        """Nothing: the process ends with its link."""


def main() -> None:
    """Serve until the driver is gone."""
    for fd in (0, 1, 2):
        os.set_inheritable(fd, False)
    os.umask(0o022)
    heed_signals()
    Agent(Pipes(), None, {}, "", 0, few_calls=True).serve()


def needs() -> str:
    """Return what this process has loaded, as JSON: modules and their files, programs and libraries, data."""
    modules = {
        name: origin
        for name, module in list(sys.modules.items())
        if (origin := getattr(module, "__file__", None)) is not None
    }
    mapped: dict[str, None] = {}
    with open("/proc/self/maps") as maps:
        for line in maps:
            path = line.split(None, 5)[5].strip() if line.count("/") else ""
            if path.startswith("/") and (".so" in path or os.access(path, os.X_OK)):
                mapped[path] = None
    told = {
        "modules": modules,
        "mapped": list(mapped),
        "data": list(_DATA),
        "stdlib": [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")],
        "version": sysconfig.get_python_version(),
        "program": os.readlink("/proc/self/exe"),
    }
    return json.dumps(told)
