"""The peers' virtual environments: each with exactly the packages of its lock, made once and kept."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Final

_INSTALL_S: Final = 900.0
_READY: Final = ".ready"


class NotInstalled(Exception):
    """A peer's environment cannot be made here; the text is one sentence."""


def default_place() -> Path:
    """Return where environments are kept where nothing else is said: the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shoal" / "peers"


def lock_of(name: str) -> str:
    """Return an environment's lock: one package with its exact version a line."""
    return (resources.files("shoal_loadtest.peers") / "locks" / f"{name}.txt").read_text()


def python_of(place: Path, name: str, say: Callable[[str], None]) -> Path:
    """Return the interpreter of an environment, made or made anew where its lock is another. Raises NotInstalled."""
    lock = lock_of(name)
    home = place / name
    python = home / "bin" / "python"
    digest = hashlib.sha256(f"{sys.version}\n{lock}".encode()).hexdigest()
    ready = home / _READY
    if ready.is_file() and ready.read_text() == digest and python.exists():
        return python
    say(f"making the environment of {name} in {home}")
    shutil.rmtree(home, ignore_errors=True)
    try:
        home.mkdir(parents=True)
        requirements = home / "lock.txt"
        requirements.write_text(lock)
    except OSError as error:
        raise NotInstalled(f"{home} cannot be written: {error.strerror}; name another directory with --envs") from error
    _call([sys.executable, "-m", "venv", str(home)], name)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    _call([*pip, "--requirement", str(requirements)], name)
    ready.write_text(digest)
    return python


def _call(line: list[str], name: str) -> None:
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"{name} was not installed within {_INSTALL_S:g} s") from None
    if done.returncode:
        said = [part for part in done.stderr.splitlines() if part.startswith("ERROR")] or done.stderr.splitlines()
        raise NotInstalled(f"{name} cannot be installed: {said[-1] if said else f'status {done.returncode}'}")
