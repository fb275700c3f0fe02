"""The Python that an agent runs in, wherever its sandbox's image is from: what it loads, copied from this executor's.

Its libraries come with it, loader and all, so it needs nothing of the image and takes nothing from it. The directory is
named after its content, and files in it have one time: a checkpoint that was made over it can be restored over another
node's only if that is the same.
"""

import hashlib
import importlib.util
import json
import marshal
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from shoal_executor.drivers.protocol import DriverError

PLACE: Final = "/.shoal"
"""Where it is in a sandbox."""
_LIST: Final = (
    "sys.modules['typing_extensions'] = None; "  # slow to load, and msgspec does without
    "from shoal_executor.drivers.gvisor.inside import needs; sys.stdout.write(needs())"
)
_LIST_S: Final = 60.0
_MAIN: Final = (
    f"import sys; sys.path.append('{PLACE}/site'); from shoal_executor.drivers.gvisor.inside import main; main()"
)
COMMAND: Final = (
    f"{PLACE}/lib/loader", "--library-path", f"{PLACE}/lib", f"{PLACE}/bin/python3", "-I", "-S", "-B", "-c", _MAIN,
)  # fmt: skip


def gather(directory: Path) -> Path:
    """Return the agent's Python, made in this directory if it is not there yet. Raises DriverError, OSError."""
    # Without site, which loads more than the agent needs; so its path is told.
    paths = [path for path in sys.path if path]
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:] = {paths!r}; {_LIST}"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_LIST_S, check=False, cwd="/", env={})
    except subprocess.TimeoutExpired:
        raise DriverError(f"what an agent needs was not found out within {_LIST_S:g} s") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise DriverError(f"what an agent needs could not be found out: {lines[-1] if lines else 'it was killed'}")
    needs = json.loads(done.stdout)
    directory.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=directory, prefix=".staging-"))
    try:
        _copy(needs, staging)
        digest = _settle(staging)
        target = directory / digest
        if not target.is_dir():
            staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    for other in directory.iterdir():
        if other != target:
            shutil.rmtree(other, ignore_errors=True)  # of an earlier release: nothing lives that was started over it
    return target


def _copy(needs: dict[str, object], target: Path) -> None:
    version, program = str(needs["version"]), str(needs["program"])
    library = target / "lib" / f"python{version}"
    for place in (target / "bin", library / "lib-dynload", target / "site"):
        place.mkdir(parents=True)
    shutil.copyfile(program, target / "bin" / "python3")
    (target / "bin" / "python3").chmod(0o755)
    modules = needs["modules"]
    assert isinstance(modules, dict)
    stdlib = [os.path.realpath(path) for path in _strings(needs["stdlib"])]
    data: dict[str, Path] = {}
    for name, origin in modules.items():
        real = os.path.realpath(origin)
        within = next((path for path in stdlib if real.startswith(f"{path}/") and "site-packages" not in real), None)
        place = _place(name, origin)
        if within is None:
            base = target / "site"
        elif place.suffix == ".so":
            base = library / "lib-dynload" if "lib-dynload" in real else library
        else:
            base = library
        copy = base / place
        copy.parent.mkdir(parents=True, exist_ok=True)
        if place.suffix == ".so":
            shutil.copyfile(origin, copy)
        else:
            data[os.path.dirname(origin)] = copy.parent
            source = Path(origin).read_bytes()
            code = compile(source, str(copy.relative_to(target)), "exec", dont_inherit=True)
            # As importlib writes what it need not check against a source.
            head = importlib.util.MAGIC_NUMBER + (0b01).to_bytes(4, "little") + bytes(8)
            copy.with_suffix(".pyc").write_bytes(head + marshal.dumps(code))
    for path in _strings(needs["data"]):
        shutil.copyfile(path, data[os.path.dirname(path)] / os.path.basename(path))
    origins = {os.path.realpath(origin) for origin in modules.values()}
    for path in _strings(needs["mapped"]):
        name = os.path.basename(path)
        if path == program or os.path.realpath(path) in origins:
            continue
        copy = target / "lib" / ("loader" if name.startswith("ld-") else name)
        shutil.copyfile(path, copy)
        copy.chmod(0o755)
        stem, dot, version_of = name.partition(".so.")
        parts = version_of.split(".") if dot else []
        for count in range(1, len(parts)):  # it is asked for by less of its version than its file has
            (copy.parent / f"{stem}.so.{'.'.join(parts[:count])}").symlink_to(name)


def _strings(value: object) -> list[str]:
    assert isinstance(value, list)
    return [str(each) for each in value]


def _place(name: str, origin: str) -> Path:
    """Return where a module belongs below an entry of the path."""
    parts = name.split(".")
    base = os.path.basename(origin)
    if base == "__init__.py":
        return Path(*parts, base)
    return Path(*parts[:-1], base if base.endswith(".so") else f"{parts[-1]}.py")


def _settle(staging: Path) -> str:
    """Give every file one time and mode, and return the digest of all of them."""
    staging.chmod(0o755)
    whole = hashlib.sha256()
    for path in sorted(staging.rglob("*")):
        if path.is_file():
            whole.update(f"{path.relative_to(staging)}\0{path.stat().st_size}\0".encode())
            whole.update(hashlib.sha256(path.read_bytes()).digest())
        os.utime(path, (0, 0), follow_symlinks=False)
    return whole.hexdigest()[:32]
