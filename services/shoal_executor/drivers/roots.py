"""Read-only roots: the host's own, a directory as it is, an archive unpacked once."""

import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import structlog

from shoal.runtime.places import within
from shoal.wire.messages import Snapshot
from shoal_executor.drivers.protocol import BadInputError, DriverError

_USERS: Final = """root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""
_GROUP: Final = "root:x:0:\ndaemon:x:1:\ntty:x:5:\nnogroup:x:65534:\n"
_HOSTS: Final = "127.0.0.1 localhost sandbox\n::1 localhost\n"
_FROM_HOST: Final = (
    "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "ssl/certs", "ssl/openssl.cnf", "ca-certificates",
    "ca-certificates.conf", "localtime", "timezone", "os-release", "debian_version", "lsb-release", "mime.types",
    "services", "protocols", "terminfo", "profile", "bash.bashrc", "python3", "perl", "java", "nsswitch.conf",
    "shells", "inputrc", "gai.conf", "host.conf",
)  # fmt: skip
"""What programs of the host's /usr expect under /etc. None of it is secret; nothing else of it is shown."""
ANYWHERE: Final = (Path("/"),)
_UNPACK_S: Final = 600.0
_STAGING: Final = ".staging-"
_EARLIER: Final = re.compile(r"[0-9a-f]{64}")
"""They went by a digest alone."""
_EMPTY: Final = {"home": 0o755, "mnt": 0o755, "opt": 0o755, "srv": 0o755, "run": 0o755, "root": 0o700, "usr": 0o755,
                 "proc": 0o755, "sys": 0o755, "dev": 0o755, "tmp": 0o1777, "var/tmp": 0o1777, "var/log": 0o755,
                 "var/lib": 0o755, "var/cache": 0o755, "run/lock": 0o1777}  # fmt: skip

log = structlog.get_logger()


def host_root(target: Path) -> None:
    """Make the root of the `host` template: an empty one around the host's /usr, which is mounted in it later."""
    staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=_STAGING))
    for name, mode in _EMPTY.items():
        (staging / name).mkdir(parents=True, exist_ok=True)
        (staging / name).chmod(mode)
    staging.chmod(0o755)
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        link = Path("/") / name
        if link.is_symlink():
            (staging / name).symlink_to(f"usr/{name}")
        elif link.is_dir():
            raise DriverError(f"template host: /{name} is not a link into /usr here; use dir: or tar: instead")
    etc = staging / "etc"
    etc.mkdir()
    for name in _FROM_HOST:
        source = Path("/etc") / name
        copy = etc / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            if source.is_symlink() and str(source.readlink()).startswith("/usr"):
                copy.symlink_to(source.readlink())
            elif source.is_dir():
                shutil.copytree(source, copy, symlinks=True, ignore_dangling_symlinks=True, ignore=_unreadable)
            elif source.exists():
                shutil.copy2(source, copy)
        except (OSError, shutil.Error):
            continue  # a file of this host that this user may not read: the sandbox goes without
    for name, text in {"passwd": _USERS, "group": _GROUP, "hosts": _HOSTS, "hostname": "sandbox\n"}.items():
        (etc / name).write_text(text)
        os.utime(etc / name, (0, 0))  # as on every other node: a checkpoint is restored over files it knows
    _publish(staging, target)


def _unreadable(directory: str, names: list[str]) -> set[str]:
    paths = {name: os.path.join(directory, name) for name in names}
    return {name for name, path in paths.items() if not os.path.islink(path) and not os.access(path, os.R_OK)}


def unpack(archive: Path, target: Path) -> None:
    """Unpack a tar into target, which appears whole or not at all. Raises DriverError for what is no whole tar."""
    if not archive.is_file():
        raise DriverError(f"template tar:{archive}: no such file on this node")
    staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=target.parent))
    command = [sys.executable, "-I", "-m", "shoal_executor.drivers.unpack", str(archive), str(staging)]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=_UNPACK_S, check=False, env={"LANG": "C.UTF-8"}, cwd="/"
        )
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            raise DriverError(f"template tar:{archive}: cannot be unpacked: {lines[-1] if lines else 'it was killed'}")
    except subprocess.TimeoutExpired:
        shutil.rmtree(staging, ignore_errors=True)
        raise DriverError(f"template tar:{archive}: not unpacked after {_UNPACK_S:g} s") from None
    except DriverError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    left_out = done.stdout.decode(errors="replace").split()
    if left_out:
        log.warning("devices of an archive are left out", archive=str(archive), devices=left_out[:20])
    staging.chmod(0o755)
    _publish(staging, target)


def _publish(staging: Path, target: Path) -> None:
    try:
        staging.rename(target)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def clear(state: Path) -> None:
    """Remove what a process that was killed while it made a root left behind, and what earlier versions unpacked."""
    for path in (state / "images").glob("*"):
        if path.name.startswith(_STAGING) or _EARLIER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def key_of(snapshot: Snapshot) -> str:
    """Return what a snapshot's template goes by on this node: a hash of all that is made of it.

    A digest may be anybody's word. Whoever gives another template's digest to files of their own gets another key, and
    whatever a digest looks like, this can be part of a path.
    """
    known = snapshot.template or snapshot.digest
    made_of = (known, snapshot.kind, snapshot.path, snapshot.disks, snapshot.warm, snapshot.env)
    return hashlib.blake2b(msgspec.msgpack.encode(made_of), digest_size=16).hexdigest()


_PLAIN: Final = key_of(Snapshot("host", "host"))


def _within(snapshot: Snapshot, allowed: Sequence[Path]) -> Path:
    """Return where a template's source really is. Raises BadInputError where that is below none of those allowed."""
    real = within(snapshot.path, allowed)
    if real is not None:
        return real
    what = f"template {snapshot.kind}:{snapshot.path}"
    places = f"only from below {', '.join(map(str, allowed))}" if allowed else "from no directory"
    raise BadInputError(f"{what}: this node takes dir: and tar: {places}; see --template-roots of its executor")


def root_of(
    snapshot: Snapshot, state: Path, allowed: Sequence[Path] = ANYWHERE, *, anew: bool = False
) -> tuple[Path, str]:
    """Return the read-only root of a snapshot's template, made if it is not there yet, and the host's /usr if that

    belongs into it. `allowed`: below which directories a directory or an archive must be. `anew`: what is
    there of it is not whole. Raises DriverError.
    """
    images = state / "images"
    images.mkdir(parents=True, exist_ok=True)
    images.chmod(0o700)  # an archive may hold set-user-id programs; none of the host's users gets at them
    key = key_of(snapshot)
    match snapshot.kind:
        case "host":
            # A root of its own for each fork server: one that is made anew must not be another's that is in use.
            target = images / ("host" if key == _PLAIN else f"host-{key}")
            shutil.rmtree(target, ignore_errors=True)  # the host may have changed since
            host_root(target)
            return target, "/usr"
        case "dir":
            path = _within(snapshot, allowed)
            if not path.is_dir():
                raise DriverError(f"template dir:{snapshot.path}: no such directory on this node")
            return path, ""
        case "tar":
            archive, target = _within(snapshot, allowed), images / f"tar-{key}"
            if anew:
                shutil.rmtree(target, ignore_errors=True)
            if not target.is_dir():
                unpack(archive, target)
            return target, ""
    raise DriverError(f"a snapshot of kind {snapshot.kind!r} is nothing this driver can start from")
