"""`shoal archive`, `history`, `audit` and `export` on archives: no broker runs."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from archive.made import small
from archive.test_stories import RECORDED
from shoal.cli.__main__ import run
from shoal.cli.archive import rolls
from shoal.cli.exits import Exit
from shoal.cli.moments import moment_ms
from shoal.wire.quantities import BadValueError

AGENTS, LOST = str(RECORDED / "agents.shoal"), str(RECORDED / "lost.shoal")
NOWHERE = ["--url", "nats://127.0.0.1:1"]
Output = pytest.CaptureFixture[str]


def said(capsys: Output, *arguments: str, status: int = Exit.OK) -> str:
    """Run a command; return what it printed for people or programs, not what it told beside."""
    found = run(arguments)
    out, err = capsys.readouterr()
    assert found == status, err
    return out


def objects(capsys: Output, *arguments: str, status: int = Exit.OK) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said(capsys, *arguments, "--json", status=status).splitlines()]


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """An archive with a byte altered in the middle."""
    small(tmp_path / "x.shoal")
    data = bytearray((tmp_path / "x.shoal").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "damaged.shoal").write_bytes(data)
    return tmp_path / "damaged.shoal"


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    """An archive without its last part."""
    small(tmp_path / "y.shoal")
    data = (tmp_path / "y.shoal").read_bytes()
    (tmp_path / "cut.shoal").write_bytes(data[: len(data) // 2])
    return tmp_path / "cut.shoal"


def test_info(capsys: Output) -> None:
    (found,) = objects(capsys, "archive", "info", LOST)
    assert (found["trouble"], found["growing"], found["partial"], found["wire"], found["files"]) == (
        None, False, False, 1, 1,
    )  # fmt: skip
    assert found["messages"] == sum(each["messages"] for each in found["streams"].values())
    assert next(iter(found["streams"])) == "SHOAL_ROLLOUT_0"
    shown = said(capsys, "archive", "info", LOST)
    assert found["digest"] in shown
    assert f"for {found['messages']} messages" in shown
    assert "SHOAL_TRAJECTORY_0" in shown


def test_cat(capsys: Output) -> None:
    (info,) = objects(capsys, "archive", "info", AGENTS)
    everything = objects(capsys, "archive", "cat", AGENTS)
    assert len(everything) == info["messages"]
    assert [each["time_ms"] for each in everything] == sorted(each["time_ms"] for each in everything)
    jobs = objects(capsys, "archive", "cat", AGENTS, "--run", "jobs")
    (rollout,) = {each["message"]["rollout"] for each in jobs}
    assert {each["type"] for each in jobs} >= {"RolloutSubmitted", "StartSandboxes", "SlotsReleased"}
    assert len([each for each in everything if rollout in str(each["message"])]) == len(jobs)
    inbox = objects(capsys, "archive", "cat", AGENTS, "--stream", "SHOAL_EXEC*")
    assert {each["stream"] for each in inbox} == {"SHOAL_EXECUTOR_local"}
    middle = everything[len(everything) // 2]["time_ms"] // 1000 * 1000
    moment = datetime.fromtimestamp(middle / 1000, UTC).isoformat()
    late = objects(capsys, "archive", "cat", AGENTS, "--since", moment)
    assert late == [each for each in everything if each["time_ms"] >= middle]
    early = objects(capsys, "archive", "cat", AGENTS, "--until", moment)
    assert early == [each for each in everything if each["time_ms"] <= middle]
    assert len(said(capsys, "archive", "cat", AGENTS).splitlines()) == len(everything)
    assert objects(capsys, "archive", "cat", AGENTS, "--tenant", "nobody") == []


def test_verify(capsys: Output, damaged: Path, cut: Path) -> None:
    (found,) = objects(capsys, "archive", "verify", AGENTS)
    assert (found["whole"], found["trouble"], found["digest_known"]) == (True, None, None)
    assert f"digest {found['digest']}" in said(capsys, "archive", "verify", AGENTS)
    assert "is whole" in said(capsys, "archive", "verify", AGENTS, "--digest", found["digest"])
    (other,) = objects(capsys, "archive", "verify", LOST, "--digest", found["digest"], status=Exit.DAMAGED)
    assert (other["whole"], other["digest_known"]) == (False, False)
    for path, unfinished in ((damaged, False), (cut, True)):
        (bad,) = objects(capsys, "archive", "verify", str(path), status=Exit.DAMAGED)
        assert (bad["whole"], bad["unfinished"]) == (False, unfinished)
        assert 0 < bad["good_bytes"] < path.stat().st_size
        assert 0 < bad["messages"] < 239
        assert bad["streams"]["SHOAL_EXECUTOR_a"]["last"] > 10
        assert run(["archive", "verify", str(path)]) == Exit.DAMAGED
        out, err = capsys.readouterr()
        assert "SHOAL_EXECUTOR_a" in out
        assert f"it is good up to byte {bad['good_bytes']:,}" in err
        assert ("gone on with by the same command" in err) == unfinished


def test_what_is_damaged_is_read_as_far_as_it_is_good(capsys: Output, damaged: Path, cut: Path) -> None:
    whole = objects(capsys, "archive", "cat", str(damaged.with_name("x.shoal")), "--stream", "SHOAL_EXECUTOR_a")
    for path in (damaged, cut):
        assert run(["archive", "cat", str(path), "--json", "--stream", "SHOAL_EXECUTOR_a"]) == Exit.DAMAGED
        out, err = capsys.readouterr()
        found = [json.loads(line) for line in out.splitlines()]
        assert 0 < len(found) < len(whole)
        assert found == whole[: len(found)]
        assert path.name in err
    assert run(["archive", "info", str(cut)]) == Exit.DAMAGED
    out, err = capsys.readouterr()
    assert "SHOAL_EXECUTOR_a" in out
    assert "what is shown is of what is good" in err


def test_history(capsys: Output, tmp_path: Path) -> None:
    submitted = [each["message"]["rollout"] for each in objects(capsys, "archive", "cat", AGENTS, "--run", "agent")
                 if each["type"] == "RolloutSubmitted"]  # fmt: skip
    name = submitted[0]
    trace = tmp_path / "trace.json"
    told = objects(capsys, "history", name, "--from", AGENTS, "--trace", str(trace))
    assert told[0]["type"] == "RolloutSubmitted"
    assert all(each["cause"] is None or {"stream", "sequence"} == each["cause"].keys() for each in told)
    assert [each["after_ms"] for each in told if each["type"] == "SandboxesReady"]
    written = json.loads(trace.read_text())
    assert written["displayTimeUnit"] == "ms"
    assert len(written["traceEvents"]) > len(told)
    shown = said(capsys, "history", name, "--from", AGENTS)
    assert shown.startswith(f"rollout {name}, run agent of default: ")
    assert said(capsys, "history", f"{name}-1", "--from", AGENTS).startswith(f"sandbox {name}-1, ")
    assert said(capsys, "history", "local", "--from", AGENTS).startswith("node local, served by local: ")
    assert len(said(capsys, "history", name, "--from", AGENTS, "--all").splitlines()) >= len(shown.splitlines())


def test_audit(capsys: Output) -> None:
    found = objects(capsys, "audit", "--from", AGENTS, "--tenant", "default")
    assert {each["who"] for each in found} == {"default"}
    assert "command" in {each["what"] for each in found}
    assert "operator tenant added default" in said(capsys, "audit", "--from", AGENTS)
    assert run(["audit", "--from", AGENTS, "--tenant", "nobody"]) == Exit.OK
    out, err = capsys.readouterr()
    assert (out, err) == ("", "nothing was done by nobody in that time\n")


def test_an_archive_is_a_source_of_others(capsys: Output, tmp_path: Path) -> None:
    path = tmp_path / "jobs.shoal"
    (made,) = objects(capsys, "export", "--from", AGENTS, "--run", "jobs", "-o", str(path))
    (info,) = objects(capsys, "archive", "info", str(path))
    assert (info["partial"], info["messages"], info["asked"]) == (
        True,
        made["messages"],
        {"run": "jobs", "origin": AGENTS},
    )
    assert "cannot be replayed" in said(capsys, "archive", "info", str(path))
    (again,) = objects(capsys, "export", "--from", AGENTS, "--run", "jobs", "-o", str(path))
    assert again["complete_before"]
    assert run(["export", "--from", AGENTS, "-o", str(path)]) == Exit.INPUT
    assert "choose another name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (["archive", "info", "nothing.shoal"], Exit.INPUT, "there is no archive nothing.shoal"),
        (["archive", "info", "/etc/hostname"], Exit.DAMAGED, "is no archive"),
        (["archive", "verify", "/etc"], Exit.INPUT, "there is no archive in /etc"),
        (["archive", "verify", AGENTS, "--digest", "xyz"], Exit.INPUT, "64 hexadecimal digits"),
        (["archive", "cat", AGENTS, "--stream", "SHOAL_X"], Exit.USAGE, "it has SHOAL_ROLLOUT_0"),
        (["archive", "cat", AGENTS, "--since", "yesterday"], Exit.USAGE, "since: 'yesterday' is neither"),
        (["archive", "cat", "s3://b?colour=red"], Exit.USAGE, "colour"),
        (["archive", "follow", *NOWHERE, "--to", "/tmp/x", "--roll", "12 potatoes"], Exit.USAGE, "roll"),
        (["archive", "follow", *NOWHERE, "--to", "/tmp/x", "--roll", "1KiB"], Exit.USAGE, "from 64KiB"),
        (["archive", "follow", *NOWHERE, "--to", "s3://b", "--roll", "1GiB"], Exit.USAGE, "256MiB"),
        (["archive", "follow", *NOWHERE, "--to", "/tmp/x", "--spool", "/tmp/y"], Exit.USAGE, "--spool"),
        (["archive", "follow", *NOWHERE, "--to", "/tmp/x"], Exit.UNREACHABLE, "--url"),
        (["export", *NOWHERE, "-o", "x.shoal"], Exit.UNREACHABLE, "--url"),
        (["export", *NOWHERE], Exit.USAGE, "-o"),
        (["export", *NOWHERE, "-o", "x.shoal", "--since", "soon"], Exit.USAGE, "since"),
        (["export", *NOWHERE, "-o", "x.shoal", "--run", "a.b"], Exit.USAGE, "a.b"),
        (["export", "--live", "-o", "x.shoal"], Exit.USAGE, "--from"),
        (["export", "--from", AGENTS, "--cell", "7", "-o", "/tmp/none/x.shoal"], Exit.USAGE, "cell: 7"),
        (["export", "--from", AGENTS, "-o", "/proc/none/x.shoal"], Exit.INPUT, "/proc/none/x.shoal cannot be written"),
        (["history", "rnone", "--from", AGENTS], Exit.UNKNOWN_ROLLOUT, "rnone"),
        (["history", "rnone", *NOWHERE], Exit.UNREACHABLE, "--url"),
        (["history", "local", "--from", AGENTS, "--trace", "/proc/none/x"], Exit.INPUT, "--trace"),
        (["audit", *NOWHERE], Exit.UNREACHABLE, "--url"),
        (["audit", "--from", AGENTS, "--tenant", "a b"], Exit.USAGE, "a b"),
    ],
)
def test_a_mistake_is_one_sentence_and_a_status(
    arguments: list[str], status: Exit, word: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == status
    _, err = capfd.readouterr()
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("shoal: ")
    assert word in err


def test_every_command_has_help() -> None:
    for name in ("export", "history", "audit", "archive", "archive info", "archive cat", "archive verify",
                 "archive follow"):  # fmt: skip
        assert run([*name.split(), "--help"]) == Exit.OK


def test_moments() -> None:
    now = 1_700_000_000_000
    assert moment_ms("2h", "since", now) == now - 7_200_000
    assert moment_ms("2023-11-14T22:13:20Z", "since") == now
    assert moment_ms("2023-11-14T23:13:20+01:00", "since") == now
    local = datetime.fromtimestamp(now / 1000, UTC).astimezone().replace(tzinfo=None).isoformat()
    assert moment_ms(local, "since") == now
    assert abs(moment_ms("1s", "since") - time.time() * 1000 + 1000) < 5000
    with pytest.raises(BadValueError, match=r"^until: 'now-ish' is neither how long ago"):
        moment_ms("now-ish", "until")


def test_when_a_file_ends() -> None:
    assert rolls((), bucket=False) == (64 * 1024**2, 3600.0)
    assert rolls(("10m",), bucket=False) == (64 * 1024**2, 600.0)
    assert rolls(("1GiB", "1d"), bucket=False) == (1024**3, 86400.0)
    assert rolls(("256MiB",), bucket=True) == (256 * 1024**2, 3600.0)


@pytest.mark.parametrize("command", [["archive", "verify"], ["replay", "verify"], ["replay", "whatif"]])
@pytest.mark.parametrize("cut", [400, 2620])
def test_a_torn_file_is_damaged_whatever_cannot_be_done_with_the_rest(
    command: list[str], cut: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torn = tmp_path / "torn.shoal"
    torn.write_bytes((Path(__file__).parents[1] / "archive" / "golden" / "wire-4.shoal").read_bytes()[:cut])
    assert run([*command, str(torn)]) == Exit.DAMAGED
    assert f"shoal: {torn}: at byte 394 it ends within a block" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "status", "says"),
    [
        (["history", "m1", "--since", "1h", "--until", "2h"], Exit.USAGE, "since: '1h' is later than --until '2h'"),
        (["export", "-o", "OUT", "--run", "nosuch"], Exit.UNKNOWN_ROLLOUT, "there is nothing of run 'nosuch'"),
        (["export", "-o", "-"], Exit.USAGE, "--output: an archive is a file"),
        (["state", "snapshot", "--cell", "1"], Exit.USAGE, "--cell: the snapshot service has one partition"),
    ],
)
def test_what_is_nothing_is_said_to_be(
    command: list[str], status: Exit, says: str, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(tmp_path / "out.shoal") if each == "OUT" else each for each in command]
    assert run([*given, "--from", AGENTS]) == status
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_node_of_another_time_is_there(capsys: Output) -> None:
    node = next(
        each["message"]["nodes"][0]["node"]
        for each in objects(capsys, "archive", "cat", AGENTS)
        if each["type"] == "ExecutorJoined"
    )
    assert run(["history", node, "--from", AGENTS, "--until", "2001-01-01"]) == Exit.UNKNOWN_ROLLOUT
    assert f"nothing was heard of node {node!r} in that time, but at others" in capsys.readouterr().err


def test_a_size_that_is_none_to_roll_at_is_told_as_it_was_given() -> None:
    with pytest.raises(BadValueError, match="roll: 16KiB is not a size from 64KiB"):
        rolls(("16KiB",), bucket=False)
