"""Programs of trainers, looked at by the type checker as theirs would be."""

import subprocess
import sys
from pathlib import Path

from architecture.project import ROOT


def type_checked(program: str, place: Path) -> tuple[bool, str]:
    """Return whether a program has the right types, and what mypy says; it is written into this directory."""
    path = place / "trainer.py"
    path.write_text(program)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml"), str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr  # else it has not looked at it
    return done.returncode == 0, done.stdout
