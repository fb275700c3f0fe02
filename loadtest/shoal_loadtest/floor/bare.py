"""Programs that start a sandbox by themselves: bubblewrap, runc and runsc, each called for one `true`.

All of them show the same: the host's /usr, read-only, in an otherwise empty root, with a /tmp of one's own and no
network. They block; whoever wants many at a time calls them from threads that live as long as their sandboxes do.
"""

import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final, Protocol

from shoal.wire.messages import Resources, Snapshot
from shoal_executor.drivers import roots

PATIENCE_S: Final = 60.0
"""How long any of them may take."""
_LIMITS: Final = Resources()
_ENVIRONMENT: Final = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
_TMP: Final = "/tmp"  # noqa: S108 - the sandbox's own
_NAMESPACES: Final = ("pid", "network", "mount", "ipc", "uts")


class Missing(Exception):
    """It cannot be run here; the text says why, and what to do about it."""


class Program(Protocol):
    """A program that starts sandboxes."""

    name: str
    settings: str

    def open(self, place: Path) -> None:
        """Make ready in an empty directory. Raises Missing."""
        ...

    def unit(self) -> float:
        """Start a sandbox, run `true` in it, end it; return the seconds until `true` had ended. Raises Missing."""
        ...

    def close(self) -> None:
        """Leave nothing behind."""
        ...


def needed(program: str, package: str) -> str:
    """Return where a program is. Raises Missing where it is not installed, or nobody is root who could use it."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise Missing(f"{program} is not installed: apt install {package}")
    if os.geteuid() != 0:
        raise Missing(f"{program} is compared as root: run this as root")
    return found


def called(line: Sequence[str]) -> None:
    """Call a program and wait for it. Raises Missing with the last it said."""
    try:
        done = subprocess.run(
            line, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE_S, check=False, cwd="/"
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Missing(f"{Path(line[0]).name} did not end within {PATIENCE_S:g} s") from None
    if done.returncode:
        said = (done.stderr + done.stdout).decode(errors="replace").strip().splitlines()
        raise Missing(f"{Path(line[0]).name} failed: {said[-1] if said else done.returncode}")


class Bubblewrap:
    """One bwrap a sandbox."""

    name = "bwrap"
    settings = "--unshare-all --die-with-parent; no limits"

    def __init__(self) -> None:
        self._line: list[str] = []

    def open(self, place: Path) -> None:
        """Make a root."""
        program = needed("bwrap", "bubblewrap")
        root, usr = roots.root_of(Snapshot("host", "host"), place)
        # Root's own sandbox could write the host's /proc/sys otherwise.
        self._line = [
            program, "--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--ro-bind", str(root), "/",
            "--ro-bind", usr, "/usr", "--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", "--dev", "/dev",
            "--tmpfs", _TMP, "--cap-drop", "ALL", "--", "/usr/bin/true",
        ]  # fmt: skip

    def unit(self) -> float:
        """Call it."""
        began = time.perf_counter()
        called(self._line)
        return time.perf_counter() - began

    def close(self) -> None:
        """Nothing is left."""


def bundle(place: Path, root: Path, usr: str, args: Sequence[str], **linux: Any) -> None:
    """Write a bundle for a container with this root and program."""
    config = {
        "ociVersion": "1.0.0",
        "process": {"terminal": False, "user": {"uid": 0, "gid": 0}, "args": list(args), "cwd": "/",
                    "env": [_ENVIRONMENT], "noNewPrivileges": True},
        "root": {"path": str(root), "readonly": True},
        "hostname": "sandbox",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": _TMP, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"]},
            {"destination": "/usr", "type": "bind", "source": usr, "options": ["ro", "rbind"]},
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in _NAMESPACES],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/sched_debug"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus"],
            **linux,
        },
    }  # fmt: skip
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.json").write_text(json.dumps(config))


class Runc:
    """One runc a sandbox, with limits of memory and processes."""

    name = "runc"
    settings = "run --bundle; limits of memory and pids by control groups"

    def __init__(self) -> None:
        self._line: list[str] = []
        self._id = f"shoal-floor-{os.getpid()}"
        self._numbers = itertools.count()

    def open(self, place: Path) -> None:
        """Make a bundle."""
        program = needed("runc", "runc")
        root, usr = roots.root_of(Snapshot("host", "host"), place)
        limits = {"memory": {"limit": _LIMITS.memory}, "pids": {"limit": _LIMITS.pids}}
        bundle(place / "bundle", root, usr, ["/usr/bin/true"], resources=limits)
        self._line = [program, "--root", str(place / "runc")]
        self._run = ["run", "--bundle", str(place / "bundle")]

    def unit(self) -> float:
        """Call it; what failed is removed."""
        id = f"{self._id}-{next(self._numbers)}"
        began = time.perf_counter()
        try:
            called([*self._line, *self._run, id])
        except Missing:
            with contextlib.suppress(Missing):
                called([*self._line, "delete", "--force", id])
            raise
        return time.perf_counter() - began

    def close(self) -> None:
        """Nothing is left."""


class Runsc:
    """One container of runsc a sandbox: cold, or restored from a checkpoint of a waiting shell."""

    def __init__(self, restored: bool) -> None:
        self._restored = restored
        self.name = "runsc restore" if restored else "runsc run"
        self.settings = ""
        self._flags: list[str] = []
        self._place = Path()
        self._numbers = itertools.count()

    def open(self, place: Path) -> None:
        """Make a bundle, and the checkpoint."""
        program = needed("runsc", "runsc")
        self._place = place
        root, usr = roots.root_of(Snapshot("host", "host"), place)
        bundle(place / "bundle", root, usr, ["/usr/bin/sh"])
        for platform in ("systrap", "ptrace"):  # never without one: kvm hangs where there is none
            self._flags = [
                program, f"--root={place / 'runsc'}", f"--platform={platform}", "--network=none", "--ignore-cgroups",
            ]  # fmt: skip
            self.settings = " ".join(["restore" if self._restored else "run", *self._flags[2:]])
            try:
                self._checkpoint() if self._restored else self.unit()
            except Missing:
                if platform == "ptrace":
                    raise
            else:
                return

    def _checkpoint(self) -> None:
        id, process = self._start("run")
        with self._ending(id, process):
            self._ask(process)
            image = self._place / "image"
            shutil.rmtree(image, ignore_errors=True)
            image.mkdir()
            called([*self._flags, "checkpoint", f"--image-path={image}", id])

    def _start(self, *words: str) -> "tuple[str, subprocess.Popen[bytes]]":
        id = f"floor-{os.getpid()}-{next(self._numbers)}"
        line = [*self._flags, *words, f"--bundle={self._place / 'bundle'}", id]
        return id, subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/",
            start_new_session=True,
        )  # fmt: skip

    @staticmethod
    def _ask(process: "subprocess.Popen[bytes]") -> None:
        """Have the shell run `true`, and wait until it says so."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(b"/usr/bin/true && echo up\n")
            process.stdin.flush()
            said = _line_within(process.stdout, PATIENCE_S)
        except BrokenPipeError:
            said = b""
        if said != b"up\n":
            raise Missing("runsc failed: its container gave no answer")

    @contextlib.contextmanager
    def _ending(self, id: str, process: "subprocess.Popen[bytes]") -> Iterator[None]:
        try:
            yield
        finally:
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    assert pipe is not None
                    pipe.close()
            try:
                process.wait(timeout=PATIENCE_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(Missing):
                    called([*self._flags, "kill", id, "KILL"])
                process.kill()
                process.wait()
            with contextlib.suppress(OSError):  # `runsc delete` waits a second; there is nothing left but its notes
                for path in (self._place / "runsc").glob(f"*{id}*"):
                    path.unlink(missing_ok=True)

    def unit(self) -> float:
        """Start one, ask it, end it."""
        began = time.perf_counter()
        words = ["restore", f"--image-path={self._place / 'image'}"] if self._restored else ["run"]
        id, process = self._start(*words)
        with self._ending(id, process):
            self._ask(process)
            return time.perf_counter() - began

    def close(self) -> None:
        """Nothing is left."""


def _line_within(stream: "IO[bytes]", seconds: float) -> bytes:
    """Return a line, or what came of it in so many seconds."""
    found, until = b"", time.monotonic() + seconds
    while not found.endswith(b"\n") and (left := until - time.monotonic()) > 0:
        if not select.select([stream], [], [], left)[0]:
            break
        piece = os.read(stream.fileno(), 4096)
        if not piece:
            break
        found += piece
    return found
