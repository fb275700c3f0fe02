"""Programs of trainers, looked at by the type checker as theirs would be."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


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
    return done.returncode == 0, done.stdout + done.stderr
