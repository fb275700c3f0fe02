"""What an executor that is not root lacks, and how it is had: the kernel's settings say who may make namespaces."""

import errno
import os
from pathlib import Path
from typing import Final

_SETTINGS: Final = (
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),  # Ubuntu 24.04: it is made, and has no rights
    ("kernel.unprivileged_userns_clone", "0", "1"),  # Debian's, until 2021
    ("user.max_user_namespaces", "0", "15000"),
)
"""A setting, its value that forbids user namespaces to users, and one that allows them."""


_REFUSED: Final = tuple(map(os.strerror, (errno.EPERM, errno.EACCES, errno.ENOSPC)))
"""The last where there may be no more namespaces."""


def hint(error: str, settings: Path = Path("/proc/sys")) -> str:
    """Return what to say behind an error that kept sandboxes from being started: nothing to root, nor of others."""
    if os.geteuid() == 0 or not any(words in error for words in _REFUSED):
        return ""
    return "; run the executor as root, or allow user namespaces to this user" + _how(settings)


def _how(settings: Path) -> str:
    said = []
    for name, forbids, allows in _SETTINGS:
        try:
            value = (settings / name.replace(".", "/")).read_text().strip()
        except PermissionError:
            said.append(f"'sysctl -w {name}={allows}' as root if it is {forbids}")
        except OSError:  # this kernel has no such setting
            continue
        else:
            if value == forbids:
                said.append(f"'sysctl -w {name}={allows}' as root, for it is {value}")
    if said:
        return ": " + ", and ".join(said)
    return ", for whom none of the kernel's settings forbids them; what forbids them may be the container this runs in"
