"""A source of a template made into one EROFS file."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from shoal_snapshot.images import layout
from shoal_snapshot.images.errors import ImageError

Progress = Callable[[str], None]
"""Called with what is being done."""

_COPY_S: Final = 1800.0
_UNPACK_S: Final = 1800.0
_MAKE_S: Final = 1800.0
_NOBODY: Final = "00000000-0000-0000-0000-000000000000"  # a disk's UUID: equal content, equal bytes
_FAR: Final = "4102444800"  # 2100, in seconds since the epoch
_CAPABILITIES: Final = ("chown", "dac_override", "fowner", "fsetid", "sys_chroot")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Image:
    """An EROFS file, and the environment its image asks for."""

    disk: Path
    env: tuple[tuple[str, str], ...] = ()


def make_disk(source: str, directory: Path, progress: Progress) -> Image:
    """Make the disk of a source in a directory, which holds nothing else afterwards; blocks. Raises ImageError.

    Deterministic: the same content gives the same bytes.
    """
    kind, _, place = source.partition(":")
    target = directory / "disk"
    staging = Path(tempfile.mkdtemp(dir=directory, prefix=".staging-"))
    try:
        if kind == "dir":
            progress("making the disk")
            _mkfs(source, Path(place), target)
            return Image(target)
        root = staging / "root"
        root.mkdir(mode=0o755)
        env: tuple[tuple[str, str], ...] = ()
        if kind == "tar":
            progress("unpacking")
            _unpack(source, root, [Path(place)], layers=False)
        else:
            found = _layout(source, kind, place, staging, progress)
            progress(f"unpacking {len(found.layers)} layers")
            _unpack(source, root, found.layers, layers=True)
            env = found.env
        progress("making the disk")
        _mkfs(source, root, target)
        return Image(target, env)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def digest_of(source: str) -> str:
    """Return the digest of an image in an OCI layout or a registry. Raises ImageError."""
    kind, _, place = source.partition(":")
    if kind == "oci":
        directory, tag = split_tag(place)
        return layout.read(source, directory, tag).digest
    return _run(["skopeo", "inspect", "--format", "{{.Digest}}", source], source, 120).strip().removeprefix("sha256:")


def split_tag(place: str) -> tuple[Path, str]:
    """Return directory and tag of `PATH[:TAG]`."""
    path, sign, tag = place.rpartition(":")
    return (Path(path), tag) if sign and "/" not in tag else (Path(place), "")


def _layout(source: str, kind: str, place: str, staging: Path, progress: Progress) -> layout.Layout:
    if kind == "oci":
        directory, tag = split_tag(place)
        return layout.read(source, directory, tag)
    archive = staging / "archive"
    archive.mkdir(mode=0o700)
    if kind == "docker-archive":
        progress("reading the archive")
        _unpack(source, archive, [Path(place)], layers=False)
        archive.chmod(0o700)
        return layout.read(source, archive)
    progress("fetching the image")
    _run(["skopeo", "copy", "--quiet", source, f"oci:{archive}:it"], source, _COPY_S)
    return layout.read(source, archive, "it")


def _unpack(source: str, root: Path, archives: Sequence[Path], *, layers: bool) -> None:
    for path in archives:
        if not path.is_file():
            raise ImageError(f"{source}: {path} is not an existing file")
    command = [sys.executable, "-I", "-m", "shoal_snapshot.images.unpack", *(["--layers"] if layers else [])]
    command += [str(root), *map(str, archives)]
    if os.geteuid() == 0:
        kept = ",".join(["-all", *(f"+{name}" for name in _CAPABILITIES)])
        command = ["setpriv", "--no-new-privs", "--inh-caps=-all", f"--bounding-set={kept}", "--", *command]
    else:
        command = ["unshare", "--user", "--map-root-user", "--", *command]
    left_out = _run(command, source, _UNPACK_S).split()
    if left_out:
        log.warning("devices of an image are left out", source=source, devices=left_out[:20])


def _mkfs(source: str, root: Path, target: Path) -> None:
    if not root.is_dir():
        raise ImageError(f"{source}: {root} is not an existing directory")
    _run(["mkfs.erofs", "-d1", "-zlz4", f"-U{_NOBODY}", str(target), str(root)], source, _MAKE_S)


def _run(command: Sequence[str], source: str, within_s: float) -> str:
    program = next(word for word in command if word in ("mkfs.erofs", "skopeo", "setpriv", "unshare"))
    if shutil.which(program) is None:
        package = {"mkfs.erofs": "erofs-utils", "skopeo": "skopeo"}.get(program, "util-linux")
        raise ImageError(f"{source}: this needs {program} where the snapshot service runs: install {package}")
    try:
        env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        env["SOURCE_DATE_EPOCH"] = _FAR  # files keep their own times, which are before it, and the disk has none
        env |= {name: os.environ[name] for name in ("HOME", "TMPDIR", "HTTPS_PROXY", "NO_PROXY") if name in os.environ}
        done = subprocess.run(command, capture_output=True, timeout=within_s, check=False, env=env, cwd="/")
    except subprocess.TimeoutExpired:
        raise ImageError(f"{source}: {program} was not done within {within_s:g} s") from None
    if done.returncode:
        text = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        why = text[-1] if text else f"{program} failed with exit status {done.returncode}"
        if any("No space left" in line or "ENOSPC" in line for line in text):
            why = "there is no room left where its disk is made"
        raise ImageError(f"{source}: {why}")
    return done.stdout.decode(errors="replace")
