"""How the agent starts a program: as a session of its own, with pipes whose other ends it keeps."""

import contextlib
import errno
import os
import signal
import stat
import subprocess
from typing import Final, NamedTuple

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_USUAL: Final = (signal.SIGPIPE, signal.SIGXFSZ)
"""What Python ignores, and a program should not."""
_ACCOUNTS: Final = 1024 * 1024
"""How much is read of /etc/passwd."""
_IDS: Final = 2**32 - 1
_NAMED_BY_NUMBER: Final = 65_536
_FIRST: Final = b"1000"
"""The mark, in oom_score_adj, of what the kernel is to end first."""
_score: int | None = None
_own = b"0"
"""The agent's own oom_score_adj, held open, and what it is while no program is being started."""


class Program(NamedTuple):
    """A program that runs, which the agent reaps: our ends of its standard output (1), error (2) and perhaps input."""

    pid: int
    outputs: dict[int, int]
    stdin: int | None


def account(user: str) -> tuple[int, int, str]:
    """Return uid, gid and home of a user of the image, by name or number. Raises OSError where there is none."""
    with (
        contextlib.suppress(OSError, ValueError),
        open("/etc/passwd", encoding="utf-8", errors="replace", opener=_open_file) as file,
    ):
        for line in file.read(_ACCOUNTS).split("\n"):
            fields = line.split(":")
            if len(fields) >= 6 and user in (fields[0], fields[2]):
                uid, gid = int(fields[2]), int(fields[3])
                if 0 <= uid < _IDS and 0 <= gid < _IDS:
                    return uid, gid, fields[5]
    if user.isascii() and user.isdigit() and len(user) <= len(str(_NAMED_BY_NUMBER)) and int(user) < _NAMED_BY_NUMBER:
        return int(user), int(user), "/"
    raise OSError(0, "no such user in the sandbox", user)


def _open_file(path: str, flags: int) -> int:
    """Open what is a file, and nothing that could be waited for: the sandbox makes of it what it likes."""
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "is not a regular file", path)
    return fd


def home(user: str) -> str:
    """Return the home of a user, or of root without one; the root directory where nobody knows."""
    try:
        return account(user or "root")[2]
    except OSError:
        return "/"


def start(
    argv: list[str], env: dict[str, str], cwd: str, user: str, *, stdin: bool, fds: tuple[int, ...] = (),
    few_calls: bool = False,
) -> Program:  # fmt: skip
    """Start a program as a session of its own, with these descriptors besides the usual three.

    `stdin`: whether there is something to be written to it. `few_calls`: system calls are dear here. Raises OSError
    naming the program or directory that is not there, or the program that cannot be told what is asked.
    """
    uid, gid, own = account(user) if user else (0, 0, "/root")
    full = env if "HOME" in env else {**env, "HOME": own}
    place = full["HOME"]
    if cwd:
        place = os.path.join(place, cwd)
    ours: list[int] = []
    theirs: list[int] = []
    try:
        for _ in (1, 2):
            read, write = os.pipe2(os.O_CLOEXEC)
            ours.append(read)
            theirs.append(write)
            os.set_blocking(read, False)
        if stdin:
            read, write = os.pipe2(os.O_CLOEXEC)
            ours.append(write)
            theirs.append(read)
        else:
            theirs.append(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
        before = os.getcwd()
        try:
            os.chdir(place)
        except OSError:
            if cwd:
                raise
            os.chdir("/")
        try:
            _mark(_FIRST)
            try:
                if uid or gid or few_calls:
                    pid = _popen(uid, gid, argv, full, theirs, fds)
                else:
                    pid = _spawn(argv, full, theirs, fds)
            finally:
                _mark(_own)
            if _score is None:
                _end_first(pid)
        finally:
            os.chdir(before)
    except BaseException as error:
        for fd in ours:
            os.close(fd)
        if isinstance(error, ValueError | OverflowError):  # a zero byte, say
            raise OSError(errno.EINVAL, str(error), argv[0]) from None
        raise
    finally:
        for fd in theirs:
            os.close(fd)
    return Program(pid, {1: ours[0], 2: ours[1]}, ours[2] if stdin else None)


def keep_mark() -> None:
    """Hold open what says whom the kernel ends first when memory runs out, while this process may open it still.

    From then on it takes that mark while it starts a program, which inherits it, and gives it back: a program that is
    marked once it runs may have started another by then, which is not. If memory runs out meanwhile, whoever eats it
    has the mark, too, and more memory than the agent.
    """
    global _score, _own
    with contextlib.suppress(OSError):
        score = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
        _score, _own = score, os.read(score, 16)


def _mark(mark: bytes) -> None:
    if _score is not None:
        os.write(_score, mark)


def _end_first(pid: int) -> None:
    """Mark a program that runs already as the first that the kernel ends when memory runs out."""
    with contextlib.suppress(OSError):
        score = os.open(f"/proc/{pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(score, _FIRST)
        finally:
            os.close(score)


def _spawn(argv: list[str], env: dict[str, str], theirs: list[int], fds: tuple[int, ...]) -> int:
    """Start it as who we are, at little cost to a fresh clone of the fork server.

    There `subprocess` takes 1 ms more, most of it for copies of its classes' pages. Where no page is to be copied and
    system calls are dear it is the other way round: the C library makes 130 of them, one or two for each signal, which
    is 2 ms in gVisor. It leaves signals 32 and 33, which are its own, ignored in the program; and descriptors that may
    be inherited are.
    """
    out, err, into = theirs
    actions = [(os.POSIX_SPAWN_DUP2, into, 0), (os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, err, 2)]
    actions += [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in fds]  # which lets it be inherited
    name = argv[0]
    refused = errno.ENOENT
    places = ("",) if "/" in name else env.get("PATH", os.defpath).split(":")
    for path in [f"{place}/{name}" if place else name for place in places]:
        try:
            os.stat(path)  # what is not there is seen sooner so than by a clone
            return os.posix_spawn(path, argv, env, file_actions=actions, setsid=True, setsigdef=_USUAL)
        except OSError as error:
            if refused in (errno.ENOENT, errno.ENOTDIR):
                refused = error.errno or refused
    raise OSError(refused, os.strerror(refused), name)


def _popen(uid: int, gid: int, argv: list[str], env: dict[str, str], theirs: list[int], fds: tuple[int, ...]) -> int:
    """Start it as that user, in that group."""
    process = subprocess.Popen(
        argv,
        stdin=theirs[2],
        stdout=theirs[0],
        stderr=theirs[1],
        env=env,
        start_new_session=True,
        restore_signals=True,
        user=uid or None,
        group=gid or None,
        extra_groups=[] if uid else None,
        pass_fds=fds,
    )
    process.returncode = 0  # the agent reaps
    return process.pid
