"""The driver's test of itself: one sandbox tries what none may do. It opens for writing, and never writes."""

import os
import secrets
from typing import Final

from shoal.wire.messages import Command, CommandResult, Resources, Snapshot
from shoal_executor.drivers.each import start_one
from shoal_executor.drivers.protocol import Driver, DriverError, StartSpec

HOST: Final = Snapshot("host", "host")

_FORBIDDEN_TO_OPEN: Final = (
    "/proc/sys/kernel/core_pattern",
    "/proc/sysrq-trigger",
    "/usr/.shoal-wall",
)
_FORBIDDEN_TO_SEE: Final = ("/etc/shadow",)
_VSOCK: Final = "python3 -Ic 'import socket; socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)'"
"""No namespace keeps these apart. Where the host has no python3 or the kernel no such sockets, it fails, too."""


async def try_walls(driver: Driver, *, own_kernel: bool = False) -> None:
    """Start a sandbox and try its walls. Raises DriverError naming the first that does not hold.

    `own_kernel`: it has one, and what it does with its /proc and its namespaces is no business of the host's.
    """
    name = f"walls-{secrets.token_hex(6)}"
    await start_one(driver, name, StartSpec(HOST, Resources(memory=64 * 1024**2, pids=16)))
    try:
        version = (await _sh(driver, name, "cat /proc/version")).stdout
        if own_kernel and f" {os.uname().release} ".encode() in version:
            raise DriverError("a sandbox runs on the host's kernel")
        for path in _FORBIDDEN_TO_OPEN:
            if own_kernel and path.startswith("/proc/"):
                continue
            if (await _sh(driver, name, f"(: >> {path}) 2>/dev/null")).exit_code == 0:
                raise DriverError(f"a sandbox can open {path} for writing")
        for path in _FORBIDDEN_TO_SEE:
            if (await _sh(driver, name, f"test -e {path}")).exit_code == 0:
                raise DriverError(f"a sandbox can see the host's {path}")
        pids = (await _sh(driver, name, "echo /proc/[0-9]*")).stdout.split()
        if len(pids) > 4 or b"/proc/1" not in pids:
            raise DriverError("a sandbox can see processes that are not its own")
        routes = (await _sh(driver, name, "while read -r line; do echo $line; done < /proc/net/route")).stdout
        if len(routes.splitlines()) > 1:  # the heading
            raise DriverError(f"a sandbox has a route to a network: {routes.decode(errors='replace')}")
        for attempt in ("mount -t tmpfs none /mnt", *(() if own_kernel else ("unshare -Ur true",))):
            if (await _sh(driver, name, f"{attempt} 2>/dev/null")).exit_code == 0:
                raise DriverError(f"a sandbox can {attempt!r}")
        if not own_kernel and (await _sh(driver, name, f"{_VSOCK} 2>/dev/null")).exit_code == 0:
            raise DriverError("a sandbox can make a vsock, which reaches the host and other sandboxes")
    finally:
        await driver.destroy([name])


async def _sh(driver: Driver, name: str, line: str) -> CommandResult:
    return await driver.run(name, Command(line=line, timeout_ms=10_000))
