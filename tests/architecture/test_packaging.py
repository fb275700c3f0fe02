"""What is shipped is what is in the folders, and it works as a wheel."""

import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from architecture.project import LOAD_TESTS, PACKAGES, PYPROJECT, ROLES, ROOT

PROJECT = PYPROJECT["project"]
SITE = sysconfig.get_path("purelib")


def python(code: str, *flags: str) -> str:
    """Run code in an interpreter of its own, away from this checkout; return what it printed."""
    done = subprocess.run(
        [sys.executable, *flags, "-c", code], capture_output=True, text=True, timeout=60, cwd="/", check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(target)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (built,) = target.glob("*.whl")
    return built


def test_every_service_is_shipped() -> None:
    folders = {f"services/{path.name}" for path in (ROOT / "services").iterdir() if (path / "__init__.py").exists()}
    assert {package for package in PACKAGES if package.startswith("services/")} == folders
    assert {package for package in PACKAGES if not package.startswith("services/")} == {
        "shared/shoal",
        f"loadtest/{LOAD_TESTS}",
    }


@pytest.mark.parametrize("folder", ["shared", "services"])
def test_no_module_lies_loose_in_a_folder_of_sources(folder: str) -> None:
    assert sorted((ROOT / folder).glob("*.py")) == []
    assert not (ROOT / folder / "__init__.py").exists()


def test_the_import_rules_know_every_package() -> None:
    assert sorted(PYPROJECT["tool"]["importlinter"]["root_packages"]) == sorted(["shoal", *ROLES, LOAD_TESTS])


@pytest.mark.parametrize("role", ROLES)
def test_importing_one_service_loads_no_other(role: str) -> None:
    loaded = python(
        f"import sys, {role}, {role}.__main__, {role}.service\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    ).split()
    assert [name for name in loaded if name.startswith("shoal")] == ["shoal", role]


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a trainer installs: Shoal, nats-py and msgspec, and nothing else from outside."""
    assert {Requirement(text).name for text in PROJECT["dependencies"]} == {"nats-py", "msgspec"}
    site = tmp_path_factory.mktemp("base")
    zipfile.ZipFile(wheel).extractall(site)
    for name in ("nats", "msgspec"):
        (site / name).symlink_to(Path(SITE, name))
    return site


def test_a_trainer_needs_only_the_base(base: Path) -> None:
    loaded = python(
        f"import sys\nsys.path[:0] = [{str(base)!r}]\nimport shoal\n"
        "offered = [getattr(shoal, name) for name in shoal.__all__]\nassert len(offered) > 5\n"
        "import shoal.bus.jetstream\nprint(*sorted({name.partition('.')[0] for name in sys.modules}))",
        "-I",
        "-S",
    ).split()
    assert [name for name in loaded if name.startswith("shoal")] == ["shoal"]


def test_the_command_says_what_to_install_where_there_is_only_the_base(base: Path) -> None:
    code = f"import sys\nsys.path[:0] = [{str(base)!r}]\nimport shoal.cli.__main__"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert "shoal[cli]" in line


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"shoal", *ROLES, LOAD_TESTS}
    assert {"shoal_loadtest/scenario/shipped/million.toml", "shoal_loadtest/report/page.html"} <= set(names)
    assert "shoal/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert not any("__pycache__" in name or name.startswith("shoal/tests") for name in names)


def test_the_wheel_installs_and_everything_in_it_imports(wheel: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, *"-m pip install --quiet --no-deps --no-index --target".split(), str(tmp_path), str(wheel)],
        check=True,
        timeout=100,
    )
    modules = [
        ".".join(path.relative_to(tmp_path).with_suffix("").parts).removesuffix(".__init__")
        for top in ("shoal", *ROLES, LOAD_TESTS)
        for path in sorted((tmp_path / top).rglob("*.py"))
        if "peers/workers" not in path.as_posix()  # these run where a peer is installed, in its own environment
    ]
    # Without `site`, the editable install of this checkout is out of the way.
    out = python(
        f"import importlib, sys\nsys.path[:0] = [{str(tmp_path)!r}]\nsys.path.append({SITE!r})\n"
        f"for name in {modules!r}:\n"
        f"    assert importlib.import_module(name).__file__.startswith({str(tmp_path)!r}), name\n"
        "print('imported')",
        "-I",
        "-S",
    )
    assert out.split() == ["imported"]
    assert len(modules) > 20


@pytest.mark.parametrize("name", sorted(PROJECT["scripts"]))
def test_each_command_exists_and_explains_itself(name: str) -> None:
    command = Path(sys.executable).with_name(name)
    done = subprocess.run([str(command), "--help"], capture_output=True, text=True, timeout=60, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout or "usage" in done.stdout


def locked() -> dict[str, list[str]]:
    """Return the versions that the lock holds of each package."""
    versions: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / "requirements/dev.lock").read_text(), re.M):
        versions.setdefault(name, []).append(version)
    return versions


def requirements() -> list[Requirement]:
    extras = [text for group in PROJECT["optional-dependencies"].values() for text in group]
    every = [*PROJECT["dependencies"], *extras, *PYPROJECT["dependency-groups"]["dev"]]
    return [requirement for requirement in map(Requirement, every) if requirement.name != "shoal"]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_the_lock_fulfils_every_requirement(requirement: Requirement) -> None:
    versions = locked()[requirement.name]
    assert all(requirement.specifier.contains(version) for version in versions)


def test_the_lock_says_what_and_never_from_where() -> None:
    text = (ROOT / "requirements/dev.lock").read_text()
    assert "://" not in text
    assert not re.search(r"^\s*-", text.replace("    --hash=sha256:", ""), re.M)
    entries = [entry for entry in re.split(r"^(?=\S)", text, flags=re.M) if entry.strip()]
    assert len(entries) == sum(map(len, locked().values()))
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry) for entry in entries)


def test_continuous_integration_runs_what_a_developer_runs() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "exec make test" in script.read_text()


MODULES = sorted(path for top in ("shared", "services", "loadtest", "examples") for path in (ROOT / top).rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_holds_one_concept(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= 400
    assert path.stem not in {"utils", "helpers", "common", "misc"}


@pytest.mark.parametrize("role", ROLES)
def test_a_service_says_what_it_owns_hears_and_says(role: str) -> None:
    said = python(f"import {role}; print({role}.__doc__)")
    assert all(word in said.lower() for word in ("owns", "hears", "says"))
