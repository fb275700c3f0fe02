"""What a process is for, by its name: `executor-cell1` is an executor, `broker-2` a broker."""

from typing import Final

SERVICES: Final = ("scheduler", "placement", "snapshot", "executor")
BROKER: Final = "broker"
GENERATOR: Final = "generator"
ROLES: Final = (BROKER, *SERVICES, GENERATOR)


def role_of(name: str) -> str:
    """Return the role of a process."""
    return name.partition("-")[0]
