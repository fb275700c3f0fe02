"""Whose logs can be folded here: the services that are installed."""

from functools import cache
from importlib.metadata import entry_points

from shoal.machine.service import ENTRY_POINTS, Service
from shoal.wire.quantities import BadValueError


@cache
def services() -> dict[str, Service]:
    """Return the services by name. Raises BadValueError where none is installed."""
    found = {point.name: point.load() for point in entry_points(group=ENTRY_POINTS)}
    if not found:
        raise BadValueError("services", "no service is installed here; pip install 'shoal[all]'")
    return dict(sorted(found.items()))


def service(name: str) -> Service:
    """Return one service. Raises BadValueError."""
    known = services()
    if name not in known:
        raise BadValueError("service", f"there is no {name!r}; it is one of {', '.join(known)}")
    return known[name]
