"""A program of its own that unpacks one archive: `python -I -m ... ARCHIVE DIRECTORY`.

It takes the directory for its root first, so nothing in the archive (a path that climbs, a link that points elsewhere)
can reach outside; and it keeps no privilege but to give files their owners. Owners are numbers: to look a name up
would be to load code by the archive's own configuration. Devices are left out, and named on standard output.
"""

import bz2
import gzip
import lzma
import os
import sys
import tarfile
from typing import Final

from shoal_executor.drivers import kernel

_LOADED: Final = (bz2, gzip, lzma)
"""tarfile imports these when it meets such an archive: too late, once its root is the new directory."""
_KEPT: Final = frozenset((0, 1, 3, 4))
"""CHOWN, DAC_OVERRIDE, FOWNER, FSETID"""


def main() -> None:
    """Unpack; exit 1 with one line on standard error when the archive is not whole."""
    archive, directory = sys.argv[1], sys.argv[2]
    with open(archive, "rb") as stream:
        if os.geteuid() != 0:
            uid, gid = os.geteuid(), os.getegid()
            kernel.unshare(kernel.NEWUSER)
            for kind, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
                with open(f"/proc/self/{kind}", "w") as file:
                    file.write(text)
        os.chroot(directory)
        os.chdir("/")
        os.umask(0)
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        kernel.drop_bounding(_KEPT)
        kernel.set_capabilities(_KEPT)
        try:
            with tarfile.open(fileobj=stream) as tar:
                if hasattr(tarfile, "fully_trusted_filter"):  # newer Pythons want to be told; the root is the filter
                    tar.extraction_filter = tarfile.fully_trusted_filter
                left_out = [member.name for member in tar.getmembers() if member.isdev() and not member.isfifo()]
                members = [member for member in tar.getmembers() if member.name not in set(left_out)]
                tar.extractall(".", members, numeric_owner=True)  # noqa: S202 - see the module
        except (tarfile.TarError, OSError, EOFError, lzma.LZMAError, ValueError) as error:
            sys.exit(str(error) or repr(error))
    print("\n".join(left_out))  # noqa: T201 - the driver reads it


if __name__ == "__main__":
    main()
