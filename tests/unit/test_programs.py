"""How the agent starts a program: which one is found, what it is given, and what it is not."""

import builtins
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from shoal_executor.drivers.agent import programs
from shoal_executor.drivers.agent.programs import Program, account, start as start_any

Start = Callable[..., Program]

USUAL = os.defpath


@pytest.fixture(params=[False, True], ids=["spawn", "popen"])
def start(request: pytest.FixtureRequest) -> Start:
    """Both ways: whoever asks for a program notices nothing of it."""
    return partial(start_any, few_calls=request.param)


def ran(program: Program) -> tuple[int, str, str]:
    """Return its exit code, and what it wrote."""
    _, status = os.waitpid(program.pid, 0)
    wrote = {}
    for channel, fd in program.outputs.items():
        os.set_blocking(fd, True)
        with open(fd, "rb") as pipe:
            wrote[channel] = pipe.read().decode()
    if program.stdin is not None:
        os.close(program.stdin)
    return os.waitstatus_to_exitcode(status), wrote[1], wrote[2]


def executable(path: Path, text: str) -> Path:
    """Make a program."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def same_descriptors() -> Iterator[None]:
    """Nothing stays open."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) <= before


def test_it_has_what_was_asked_for(start: Start, tmp_path: Path) -> None:
    env = {"PATH": USUAL, "HOME": str(tmp_path), "WHO": "me"}
    (tmp_path / "in").mkdir()
    here = os.getcwd()
    line = 'echo "$WHO in $PWD"; echo to err >&2; exit 3'
    assert ran(start(["sh", "-c", line], env, "in", "", stdin=False)) == (3, f"me in {tmp_path}/in\n", "to err\n")
    assert os.getcwd() == here


def test_without_a_directory_it_is_at_home_or_in_the_root(start: Start, tmp_path: Path) -> None:
    assert ran(start(["pwd"], {"PATH": USUAL, "HOME": str(tmp_path)}, "", "", stdin=False))[1] == f"{tmp_path}\n"
    assert ran(start(["pwd"], {"PATH": USUAL, "HOME": "/gone"}, "", "", stdin=False))[1] == "/\n"


def test_what_is_written_to_it_it_reads(start: Start) -> None:
    program = start(["cat"], {"PATH": USUAL, "HOME": "/"}, "", "", stdin=True)
    assert program.stdin is not None
    os.write(program.stdin, b"said")
    os.close(program.stdin)
    assert ran(program._replace(stdin=None)) == (0, "said", "")


def test_without_input_it_reads_nothing(start: Start) -> None:
    assert ran(start(["cat"], {"PATH": USUAL, "HOME": "/"}, "", "", stdin=False)) == (0, "", "")


def test_it_has_the_descriptors_it_is_given_and_none_of_ours(start: Start, tmp_path: Path) -> None:
    own = os.open(tmp_path, os.O_RDONLY)
    given = os.open("/dev/null", os.O_RDONLY)
    try:
        line = "cd /proc/self/fd && echo *"
        program = start(["sh", "-c", line], {"PATH": USUAL, "HOME": "/"}, "", "", stdin=False, fds=(given,))
        there = set(ran(program)[1].split())
        assert {"0", "1", "2", str(given)} <= there
        assert str(own) not in there
        assert not os.get_inheritable(given)
    finally:
        os.close(own)
        os.close(given)


def test_it_leads_a_session_and_ignores_no_signal_that_python_does(start: Start) -> None:
    assert signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN, "or this would show nothing"
    line = "echo $$; cut -d' ' -f6 /proc/$$/stat; grep SigIgn /proc/$$/status"
    _, out, _ = ran(start(["sh", "-c", line], {"PATH": USUAL, "HOME": "/"}, "", "", stdin=False))
    pid, session, _, ignored = out.split()
    assert pid == session
    assert not int(ignored, 16) & (1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1))


def test_the_first_in_its_path_is_taken(start: Start, tmp_path: Path) -> None:
    executable(tmp_path / "a/tool", "#!/bin/sh\necho a")
    executable(tmp_path / "b/tool", "#!/bin/sh\necho b")
    env = {"PATH": f"{tmp_path}/none:{tmp_path}/b:{tmp_path}/a", "HOME": "/"}
    assert ran(start(["tool"], env, "", "", stdin=False))[1] == "b\n"


def test_what_may_not_be_run_gives_way_to_what_may(start: Start, tmp_path: Path) -> None:
    (tmp_path / "a/tool").mkdir(parents=True)
    executable(tmp_path / "b/tool", "#!/bin/sh\necho b")
    assert ran(start(["tool"], {"PATH": f"{tmp_path}/a:{tmp_path}/b", "HOME": "/"}, "", "", stdin=False))[1] == "b\n"
    with pytest.raises(PermissionError) as told:
        start(["tool"], {"PATH": f"{tmp_path}/a:{tmp_path}/none", "HOME": "/"}, "", "", stdin=False)
    assert told.value.filename == "tool"


def test_an_empty_place_in_its_path_is_where_it_is(start: Start, tmp_path: Path) -> None:
    executable(tmp_path / "tool", "#!/bin/sh\necho here")
    assert ran(start(["tool"], {"PATH": ":/none", "HOME": str(tmp_path)}, "", "", stdin=False))[1] == "here\n"


def test_a_path_is_seen_from_its_directory(start: Start, tmp_path: Path) -> None:
    executable(tmp_path / "in/tool", "#!/bin/sh\necho here")
    assert ran(start(["./tool"], {"HOME": str(tmp_path)}, "in", "", stdin=False))[1] == "here\n"
    with pytest.raises(FileNotFoundError) as told:
        start(["./other"], {"HOME": str(tmp_path)}, "in", "", stdin=False)
    assert told.value.filename == "./other"


@pytest.mark.parametrize("user", ["", "65534"])
def test_what_is_missing_is_named(start: Start, tmp_path: Path, user: str) -> None:
    if user and os.geteuid():
        pytest.skip("only root starts programs as others")  # setuid is refused to anybody else; "" is tried by all
    env = {"PATH": USUAL, "HOME": str(tmp_path)}
    with pytest.raises(FileNotFoundError) as told:
        start(["no-such-program"], env, "", user, stdin=False)
    assert told.value.filename == "no-such-program"
    with pytest.raises(FileNotFoundError) as told:
        start(["true"], env, "no/such", user, stdin=True)
    assert told.value.filename == f"{tmp_path}/no/such"


@pytest.mark.parametrize("user", ["", "65534"])
def test_it_and_its_children_are_ended_first_and_we_are_not(
    start: Start, monkeypatch: pytest.MonkeyPatch, user: str
) -> None:
    if user and os.geteuid():
        pytest.skip("only root starts programs as others")
    monkeypatch.setattr(programs, "_score", None)
    programs.keep_mark()
    assert programs._score is not None
    score = Path("/proc/self/oom_score_adj")
    before = score.read_text()
    try:
        for _ in range(20):  # they are marked before they run, not soon after
            line = "cat /proc/self/oom_score_adj; exec cat /proc/self/oom_score_adj"
            program = start(["/bin/sh", "-c", line], {"HOME": "/"}, "", user, stdin=False)
            assert score.read_text() == before
            assert ran(program)[1] == "1000\n1000\n"
        with pytest.raises(FileNotFoundError):
            start(["no-such-program"], {"HOME": "/"}, "", user, stdin=False)
        assert score.read_text() == before
    finally:
        os.close(programs._score)


@pytest.mark.parametrize(
    ("argv", "env", "cwd"),
    [(["a\0b"], {}, ""), (["true", "\0"], {}, ""), (["true"], {"A": "\0"}, ""), (["true"], {}, "a\0")],
)
def test_what_cannot_be_told_to_a_program_is_said(start: Start, argv: list[str], env: dict[str, str], cwd: str) -> None:
    with pytest.raises(OSError, match="embedded null") as told:
        start(argv, {"PATH": USUAL, "HOME": "/", **env}, cwd, "", stdin=True)
    assert told.value.filename == argv[0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("/etc/passwd/x", "Not a directory"),
        ("loop", "Too many levels"),
        ("/x" + 300 * "x", "too long"),
        (300 * "x", "too long"),
    ],
)
def test_what_cannot_be_looked_for_is_said(start: Start, tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match=said) as told:
        start([name], {"PATH": f"{tmp_path}:/none", "HOME": "/"}, "", "", stdin=False)
    assert told.value.filename == name


def test_what_is_no_program_is_said(start: Start, tmp_path: Path) -> None:
    executable(tmp_path / "empty", "no program")
    with pytest.raises(OSError, match="Exec format error"):
        start([str(tmp_path / "empty")], {"HOME": "/"}, "", "", stdin=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts programs as others")
def test_another_user_has_none_of_our_groups(start: Start) -> None:
    env = {"PATH": USUAL, "HOME": "/"}
    assert ran(start(["sh", "-c", "id -u; id -g; id -G"], env, "", "12345", stdin=False))[1].split() == ["12345"] * 3


def test_a_line_of_passwd_that_makes_no_sense_is_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text("odd:x:many:0::/odd:/bin/sh\n")
    there = open
    monkeypatch.setattr(builtins, "open", lambda path, **how: there(tmp_path / "passwd", **how))
    with pytest.raises(OSError, match="no such user"):
        account("odd")
    assert account("7") == (7, 7, "/")
    assert programs.home("odd") == "/"


@pytest.mark.parametrize("number", ["99999999999", "-1", "4294967295", "9" * 5000])
def test_a_number_that_no_user_has_is_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: str) -> None:
    (tmp_path / "passwd").write_text(f"odd:x:{number}:0::/:/bin/sh\nodder:x:0:{number}::/:/bin/sh\n")
    there = open
    monkeypatch.setattr(builtins, "open", lambda path, **how: there(tmp_path / "passwd", **how))
    for user in ("odd", "odder", number, "\u00b2"):
        with pytest.raises(OSError, match="no such user"):
            account(user)


def test_what_is_no_file_of_accounts_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    with open(tmp_path / "large", "w") as large:
        large.truncate(1 << 40)
    there = open
    for name in ("pipe", "endless", "large"):
        monkeypatch.setattr(builtins, "open", lambda path, name=name, **how: there(tmp_path / name, **how))
        assert programs.home("root") == "/"
        assert account("7") == (7, 7, "/")


def test_a_home_that_cannot_be_told_to_a_program_is_said(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "passwd").write_text("odd:x:0:0::/ho\0me:/bin/sh\n")
    there = open
    monkeypatch.setattr(builtins, "open", lambda path, **how: there(tmp_path / "passwd", **how))
    with pytest.raises(OSError, match="embedded null"):
        start(["true"], {"PATH": USUAL}, "", "odd", stdin=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts programs in other groups")
def test_a_user_may_be_root_by_another_name_and_in_another_group(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "account", lambda user: (0, 5, "/"))
    program = start(["sh", "-c", "id -u; id -g"], {"PATH": USUAL, "HOME": "/"}, "", "toor", stdin=False)
    assert ran(program)[1] == "0\n5\n"
