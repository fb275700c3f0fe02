"""The import rules hold, and each one notices what it is there to notice."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from architecture.project import CONTRACTS, LOAD_TESTS, PACKAGES, PURITY, ROLES, ROOT

RUFF = [str(Path(sys.executable).with_name("ruff")), "check", "--no-cache", "--output-format=concise"]
SERVICES = "services stand on the library and never on each other"
LAYERS = "main > service > core"
EXECUTOR = "executor: main > service > drivers > core"
SNAPSHOT = "snapshot: main > service > what it does at the edge > images > core"
OF_ROLE = {"shoal_executor": EXECUTOR, "shoal_snapshot": SNAPSHOT}
LOAD = next(contract["name"] for contract in CONTRACTS if contract["name"].startswith("load tests import no service"))
LOAD_PURE = next(contract["name"] for contract in CONTRACTS if contract["name"].startswith("load tests: "))
LIBRARY = next(contract["name"] for contract in CONTRACTS if contract["name"].startswith("library: "))
STAND_INS = next(contract for contract in CONTRACTS if contract["name"].startswith("production never imports"))


@dataclass(frozen=True)
class Plant:
    """A violation: `line` at the end of `module` (made where it does not exist) breaks `contract` and no other."""

    contract: str
    module: str
    line: str

    def __str__(self) -> str:
        return f"{self.module}: {self.line}"


PLANTS = [
    *(
        Plant(SERVICES, f"{role}.service", f"import {other}")
        for role, other in zip(ROLES, ROLES[1:] + ROLES[:1], strict=True)
    ),
    *(Plant(SERVICES, "shoal.client", f"import {role}") for role in ROLES),
    *(Plant(LOAD, f"{LOAD_TESTS}.running", f"import {role}") for role in ROLES),
    Plant(SERVICES, "shoal.cli.app", f"import {LOAD_TESTS}.command"),
    Plant(SERVICES, "shoal_executor.service", f"import {LOAD_TESTS}"),
    Plant(LOAD_PURE, f"{LOAD_TESTS}.load.book", "import time"),
    *(
        Plant(OF_ROLE.get(role, LAYERS), f"{role}.{module}", line.format(role=role))
        for role in ROLES
        for module, line in (("service", "import {role}.__main__"), ("helpers", "import math"))
    ),
    Plant(EXECUTOR, "shoal_executor.drivers", "import shoal_executor.service"),
    Plant(SNAPSHOT, "shoal_snapshot.images", "import shoal_snapshot.making"),
    Plant(LIBRARY, "shoal.wire", "import shoal.machine"),
    Plant(LIBRARY, "shoal.bus", "import shoal.runtime"),
    Plant(LIBRARY, "shoal.client", "import shoal.cli"),
    Plant(LIBRARY, "shoal.client", "import shoal.runtime"),
    Plant(LIBRARY, "shoal.archive", "import shoal.runtime"),
    Plant(LIBRARY, "shoal.blobs", "import shoal.archive"),
    Plant(LIBRARY, "shoal.utils", "import math"),
    *(Plant(PURITY["name"], module, "import time") for module in PURITY["source_modules"]),
    *(Plant(PURITY["name"], "shoal_scheduler.core", f"import {module}") for module in PURITY["forbidden_modules"]),
    Plant(PURITY["name"], "shoal_placement.core", "def now():\n    import time\n    return time.time()"),
    *(Plant(STAND_INS["name"], f"{role}.service", "import shoal.bus.memory") for role in ROLES),
    Plant(STAND_INS["name"], "shoal.client", "from shoal.bus import memory"),
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the rules are about."""
    copy = tmp_path_factory.mktemp("checkout")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def verdicts(checkout: Path) -> dict[str, bool]:
    """Return for each contract whether it is kept there."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"],
        cwd=checkout,
        env=os.environ
        | {
            "PYTHONPATH": f"{checkout}/shared:{checkout}/services:{checkout}/loadtest",
            "COLUMNS": "300",
            "NO_COLOR": "1",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = dict(re.findall(r"^(.*\S)\s+(KEPT|BROKEN)\b", done.stdout, re.MULTILINE))
    assert found.keys() == {contract["name"] for contract in CONTRACTS}, done.stdout + done.stderr
    assert (done.returncode == 0) == (set(found.values()) == {"KEPT"})
    return {name: verdict == "KEPT" for name, verdict in found.items()}


def place_of(checkout: Path, module: str) -> Path:
    top = {"shoal": "shared", LOAD_TESTS: "loadtest"}.get(module.partition(".")[0], "services")
    path = checkout / top / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def test_the_rules_hold(checkout: Path) -> None:
    assert [name for name, kept in verdicts(checkout).items() if not kept] == []


def test_everything_that_stands_in_for_the_world_is_forbidden_to_production() -> None:
    there = {"shoal.bus.memory"} | (
        {"shoal.testing"} if (ROOT / "shared/shoal/testing/__init__.py").exists() else set()
    )
    assert set(STAND_INS["forbidden_modules"]) == there


def test_every_rule_has_a_planted_violation() -> None:
    assert {plant.contract for plant in PLANTS} == {contract["name"] for contract in CONTRACTS}


@pytest.mark.parametrize("plant", PLANTS, ids=str)
def test_a_planted_violation_breaks_its_rule_and_no_other(checkout: Path, plant: Plant) -> None:
    path = place_of(checkout, plant.module)
    before = path.read_text() if path.exists() else None
    path.write_text((before or "") + f"\n{plant.line}\n")
    try:
        assert [name for name, kept in verdicts(checkout).items() if not kept] == [plant.contract]
    finally:
        path.unlink() if before is None else path.write_text(before)


@pytest.mark.parametrize(
    "line", ["import services.shoal_scheduler", "from services import shoal_executor", "import shared.shoal.wire"]
)
def test_the_folders_of_the_sources_are_never_imported(tmp_path: Path, line: str) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text(f'"""Planted."""\n\n{line}\n')
    done = subprocess.run(
        [*RUFF, "--config", str(ROOT / "pyproject.toml"), str(planted)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert re.search(r"TID251 .*\bimport shoal", done.stdout), done.stdout + done.stderr
