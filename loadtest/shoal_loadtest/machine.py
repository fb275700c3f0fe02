"""The machine and the versions that figures come from: an absolute number means nothing without them."""

import asyncio
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import psutil

_PACKAGES: Final = ("shoal", "nats-py", "msgspec", "uvloop", "hdrhistogram")


def machine() -> dict[str, str]:
    """Return what the machine is."""
    load = os.getloadavg()
    return {
        "cpu": _cpu_model(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 1024**3:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "load before": f"{load[0]:.2f}",
        "user": "root" if os.geteuid() == 0 else "not root",
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


async def versions(own: bool) -> dict[str, str]:
    """Return the versions of what takes part; of the broker, where this machine's is used."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if own:
        found["nats-server"] = await _broker()
    return found


async def _broker() -> str:
    from shoal.broker.embedded import BrokerError, find_server

    try:
        process = await asyncio.create_subprocess_exec(
            find_server(), "--version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(10):
            out, _ = await process.communicate()
    except (BrokerError, OSError, TimeoutError):
        return "unknown"
    return out.decode(errors="replace").rpartition("v")[2].strip() or "unknown"
