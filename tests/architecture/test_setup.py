"""Set-up says in one sentence what is missing, and installs it where it may."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from architecture.project import ROOT


class Machine:
    """A checkout, and commands that behave like those of some machine."""

    def __init__(self, home: Path) -> None:
        self.checkout = home / "checkout"
        self.bin = home / "bin"
        self.bin.mkdir()
        shutil.copytree(ROOT / "requirements", self.checkout / "requirements")
        (self.checkout / "pyproject.toml").write_text("")
        for tool in ("sh", "dirname", "cut", "rm", "touch", "mkdir", "chmod"):
            (self.bin / tool).symlink_to(str(shutil.which(tool)))

    def command(self, name: str, script: str) -> None:
        """Have this command do that."""
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def python(self, version: str = "3.11.2", venv: str = "exit 0", seccomp: str = "exit 0") -> None:
        """Have a python3 of this version; `venv` and `seccomp` answer whether those are there."""
        old = "exit 1" if version < "3.11" else "exit 0"
        self.command(
            "python3",
            f"""case "$*" in
            *version_info*) {old} ;;
            *ensurepip*) {venv} ;;
            *libseccomp*) {seccomp} ;;
            -V) echo Python {version} ;;
            -m\\ venv*) mkdir -p .venv/bin
                echo 'echo "pip $*" >> pip.log' > .venv/bin/python
                chmod +x .venv/bin/python ;;
            esac""",
        )

    def setup(self) -> subprocess.CompletedProcess[str]:
        """Run the set-up there."""
        return subprocess.run(
            [str(self.bin / "sh"), "requirements/setup.sh"],
            cwd=self.checkout,
            env={"PATH": str(self.bin), "HOME": os.fspath(self.checkout)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    @property
    def installed(self) -> str:
        log = self.checkout / "pip.log"
        return log.read_text() if log.exists() else ""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.command("id", "echo 1000")
    made.python()
    return made


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line a person gets to read."""
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    return line


def test_it_installs_the_lock_checked_and_then_the_checkout(machine: Machine) -> None:
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    lock, checkout = machine.installed.splitlines()
    assert "--no-deps --require-hashes -r requirements/dev.lock" in lock
    assert checkout.endswith("--no-deps --no-build-isolation -e .")


def test_a_machine_without_python_is_told_so(machine: Machine) -> None:
    (machine.bin / "python3").unlink()
    assert "install Python 3.11" in sentence(machine.setup())


def test_an_old_python_is_named_with_what_is_needed(machine: Machine) -> None:
    machine.python(version="3.10.12")
    said = sentence(machine.setup())
    assert "3.11 or newer" in said
    assert "3.10.12" in said


def test_without_rights_a_missing_venv_is_a_sentence_with_the_command(machine: Machine) -> None:
    machine.python(venv="exit 1")
    machine.command("apt-get", "echo apt-get was called; exit 1")
    assert "apt-get install python3-venv" in sentence(machine.setup())
    assert not (machine.checkout / ".venv").exists()


def test_root_gets_a_missing_venv_through_apt(machine: Machine) -> None:
    machine.python(venv='[ -e "$HOME/python3-venv" ]')
    machine.command("id", "echo 0")
    machine.command("apt-get", 'for last; do :; done; [ "$last" = python3-venv ] && touch "$HOME/python3-venv"; exit 0')
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    assert "installing python3-venv through apt" in done.stdout
    assert len(machine.installed.splitlines()) == 2


def test_an_update_that_fails_does_not_keep_a_package_away_that_can_be_had(machine: Machine) -> None:
    machine.python(venv='[ -e "$HOME/python3-venv" ]')
    machine.command("id", "echo 0")
    machine.command("apt-get", 'case "$*" in update*) exit 100 ;; *python3-venv) touch "$HOME/python3-venv" ;; esac')
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    assert "apt-get update failed" in done.stdout


@pytest.mark.parametrize(("tool", "package"), [("mkfs.erofs", "erofs-utils"), ("runsc", "runsc")])
def test_what_only_some_sandboxes_need_is_installed_or_said_to_be_missing(
    machine: Machine, tool: str, package: str
) -> None:
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    assert f"apt-get install {package}" in done.stdout
    machine.command("id", "echo 0")
    machine.command("apt-get", f'case "$*" in *{package}) echo yes > "$HOME/asked" ;; esac')
    assert f"installing {package} through apt" in machine.setup().stdout
    assert (machine.checkout / "asked").exists()
    machine.command(tool, "exit 0")
    assert package not in machine.setup().stdout


def test_without_rights_a_missing_libseccomp_is_a_sentence_with_the_command(machine: Machine) -> None:
    machine.python(seccomp="exit 1")
    assert "apt-get install libseccomp2" in sentence(machine.setup())


def test_root_gets_a_missing_libseccomp_through_apt(machine: Machine) -> None:
    machine.python(seccomp='[ -e "$HOME/libseccomp2" ]')
    machine.command("id", "echo 0")
    machine.command("apt-get", 'for last; do :; done; [ "$last" = libseccomp2 ] && touch "$HOME/libseccomp2"; exit 0')
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    assert "installing libseccomp2 through apt" in done.stdout


def test_an_apt_that_fails_is_a_sentence(machine: Machine) -> None:
    machine.python(venv="exit 1")
    machine.command("id", "echo 0")
    machine.command("apt-get", "exit 100")
    assert "python3-venv" in sentence(machine.setup())


def test_a_failed_installation_fails_the_set_up(machine: Machine) -> None:
    assert machine.setup().returncode == 0
    (machine.checkout / ".venv/bin/python").write_text('case "$*" in *--version*) exit 0;; *) exit 3;; esac\n')
    assert machine.setup().returncode != 0


def test_make_sets_up_again_only_when_the_lock_or_the_project_changed(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "requirements").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", checkout)
    (checkout / "requirements/setup.sh").write_text("mkdir -p .venv; echo set up\n")
    for name in ("requirements/dev.lock", "pyproject.toml"):
        (checkout / name).write_text("")

    def make() -> str:
        done = subprocess.run(
            ["make", "--no-print-directory", "setup"],
            cwd=checkout,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        return done.stdout

    assert "set up" in make()
    assert "set up" not in make()
    for name in ("requirements/dev.lock", "pyproject.toml"):
        stamp = (checkout / ".venv/.shoal-ready").stat()
        os.utime(checkout / name, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 10**9))
        assert "set up" in make()
        os.utime(checkout / name, ns=(stamp.st_atime_ns, stamp.st_mtime_ns - 10**9))
        assert "set up" not in make()


class Project:
    """A checkout whose tools answer as they are told, to look at what `make test` makes of it."""

    def __init__(self, home: Path) -> None:
        self.checkout = home / "checkout"
        self.tmp = home / "tmp"
        self.bin = self.checkout / ".venv/bin"
        for folder in (self.bin, self.checkout / "requirements", self.checkout / "tests", self.tmp):
            folder.mkdir(parents=True)
        shutil.copy(ROOT / "Makefile", self.checkout)
        shutil.copy(ROOT / "tests/run.sh", self.checkout / "tests")
        for name in ("requirements/dev.lock", "pyproject.toml", "requirements/setup.sh"):
            (self.checkout / name).write_text("mkdir -p .venv\n")

    def tool(self, name: str, script: str) -> None:
        """Have this tool of the virtual environment do that."""
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def test(
        self, lint: str = "exit 0", pytest: str = "exit 0", within: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run `make test` there, started by the command `within`."""
        self.tool("ruff", lint)
        self.tool("lint-imports", "exit 0")
        self.tool("python", f'case "$*" in *pytest*) {pytest};; esac')
        return subprocess.run(
            [*within, "make", "--no-print-directory", "test"],
            cwd=self.checkout,
            env={"PATH": os.environ["PATH"], "TMPDIR": str(self.tmp)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.mark.parametrize(("lint", "tests"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_make_test_fails_when_lint_or_a_test_fails_and_shows_both(project: Project, lint: int, tests: int) -> None:
    done = project.test(lint=f"exit {lint}", pytest=f'echo "== 7 passed =="; exit {tests}')
    assert (done.returncode != 0) == bool(lint or tests)
    assert "== 7 passed ==" in done.stdout
    assert ("lint failed" in done.stderr) == bool(lint)
    assert ("tests failed" in done.stderr) == bool(tests)


def test_make_test_leaves_no_file_behind(project: Project) -> None:
    done = project.test(pytest='touch "$TMPDIR/left"; test -e "$TMPDIR/left"')
    assert done.returncode == 0, done.stderr
    assert list(project.tmp.iterdir()) == []


def test_what_a_failed_test_wrote_is_kept_and_named(project: Project) -> None:
    done = project.test(pytest='touch "$TMPDIR/evidence"; exit 1')
    (kept,) = project.tmp.iterdir()
    assert (kept / "evidence").exists()
    assert str(kept) in done.stderr


OWN_MOUNTS = ("unshare", "--map-root-user", "--mount")
can_mount = subprocess.run([*OWN_MOUNTS, "true"], capture_output=True, timeout=10, check=False).returncode == 0


@pytest.mark.skipif(not can_mount, reason="needs a mount namespace of its own")
def test_a_mount_that_tests_left_behind_fails_them_and_is_not_deleted_through(project: Project) -> None:
    (project.tmp.parent / "precious").mkdir()
    (project.tmp.parent / "precious/file").write_text("here")
    mount = f'mkdir "$TMPDIR/leak" && mount --bind {project.tmp.parent}/precious "$TMPDIR/leak"'
    done = project.test(pytest=mount, within=OWN_MOUNTS)
    assert done.returncode != 0
    assert "these mounts were left behind" in done.stderr
    assert (project.tmp.parent / "precious/file").read_text() == "here"
