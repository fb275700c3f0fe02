"""The checkout as data, for the tests of its architecture."""

import tomllib
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
PYPROJECT: Final[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES: Final[list[str]] = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
ROLES: Final = sorted(Path(package).name for package in PACKAGES if package.startswith("services/"))
CONTRACTS: Final[list[dict[str, Any]]] = PYPROJECT["tool"]["importlinter"]["contracts"]
LOAD_TESTS: Final = "shoal_loadtest"
"""Shipped, and neither the library nor a service."""
PURITY: Final = next(contract for contract in CONTRACTS if contract["name"] == "cores and contract are pure")


def source_files(root: Path = ROOT) -> list[Path]:
    """Return every module that is shipped."""
    return sorted(
        path for top in ("shared", "services", f"loadtest/{LOAD_TESTS}") for path in (root / top).rglob("*.py")
    )


def module_of(path: Path, root: Path = ROOT) -> str:
    """Return the dotted name under which a shipped file is imported."""
    parts = path.relative_to(root).with_suffix("").parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(module: str, packages: list[str]) -> bool:
    """Say whether the module is one of these, or inside one of them."""
    return any(module == package or module.startswith(package + ".") for package in packages)
