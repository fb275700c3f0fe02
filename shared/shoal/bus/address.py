"""A broker's address, as people may see it."""


def shown(address: str) -> str:
    """Return an address, or several separated by commas, without who asks: users, passwords and tokens."""
    parts = []
    for part in address.split(","):
        scheme, there, rest = part.rpartition("://")
        parts.append(scheme + there + rest.rpartition("@")[2])
    return ",".join(parts)
