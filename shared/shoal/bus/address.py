"""A broker's address: its servers, what people may see of it, and what to do where nobody answers there."""

from typing import Final
from urllib.parse import urlsplit

_TLS: Final = "tls://"
_SCHEMES: Final = ("nats", "tls")


def shown(address: str) -> str:
    """Return an address, or several separated by commas, without who asks: users, passwords and tokens."""
    parts = []
    for part in address.split(","):
        scheme, there, rest = part.rpartition("://")
        parts.append(scheme + there + rest.rpartition("@")[2])
    return ",".join(parts)


def servers(address: str) -> list[str]:
    """Return the servers of an address; none of them where one is no address of a broker."""
    found = [part.strip() for part in address.split(",") if part.strip()]
    for each in found:
        scheme = each.partition("://")[0] if "://" in each else "nats"
        try:
            urlsplit(each if "://" in each else f"nats://{each}").port  # noqa: B018  # it raises for what is no port
        except ValueError:
            return []
        if scheme not in _SCHEMES:
            return []
    return found


def user_of(address: str) -> str:
    """Return the first user with a password in an address, "" where there is none: alone it may be a token."""
    for part in servers(address):
        split = urlsplit(part)
        if split.username and split.password is not None:
            return split.username
    return ""


def encrypted(address: str) -> bool:
    """Return whether an address asks for TLS."""
    return _TLS in address


def advice(address: str, how: str = "set SHOAL_URL to") -> str:
    """Return what to do where no broker answers. Behind TLS is a cluster that somebody runs, and not `shoal up`."""
    first = "see that its brokers run" if encrypted(address) else "start one with `shoal up`"
    return f"{first}, or {how} where yours is"
