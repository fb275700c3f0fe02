"""Peers: a fake one through the harness, what comes of it, and the command's errors."""

import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from shoal_loadtest.peers import environments, measuring, processes, report
from shoal_loadtest.peers.catalogue import PEERS, Entry, Kind, chosen, line_of
from shoal_loadtest.peers.command import peers
from shoal_loadtest.peers.harness import PeerFailed, Worker
from shoal_loadtest.peers.measuring import Found, Measuring
from shoal_loadtest.peers.workers import protocol

FAKE = [sys.executable, str(Path(__file__).with_name("fake_peer.py"))]
SOON_S = 30.0


@pytest.fixture
def marks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The marks of all workers of a test, none of which leaves a process or a file."""
    made: list[str] = []
    places: list[Path] = []

    def token_hex(size: int) -> str:
        made.append(os.urandom(size).hex())
        return made[-1]

    def mkdtemp(prefix: str) -> str:
        places.append(Path(real(prefix=prefix)))
        return str(places[-1])

    real = tempfile.mkdtemp
    monkeypatch.setattr(secrets, "token_hex", token_hex)
    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    yield made
    assert [mark for mark in made if processes.marked(mark)] == []
    assert [place for place in places if place.exists()] == []


def worker(mode: str) -> Worker:
    return Worker(FAKE, arguments=(mode,))


def test_a_peer_is_started_asked_and_ended(marks: list[str]) -> None:
    with worker("works") as peer:
        assert peer.ask(SOON_S, do="start")["settings"]["mode"] == "works"
        assert peer.ask(SOON_S, do="fan_out", n=1000)["seconds"] >= 0
        ms = peer.ask(SOON_S, do="one", times=3, pause_s=0.0)["ms"]
        assert len(ms) == 3
        assert all(each >= 1 for each in ms)
        assert peer.count() == 1
        assert peer.memory_mib() > 1
        assert peer.ask(SOON_S, do="stop") == {"stopped": True}


def test_a_peer_has_nothing_but_a_loopback_where_that_is_allowed(marks: list[str]) -> None:
    with worker("works") as peer:
        settings = peer.ask(SOON_S, do="start")["settings"]
    allowed = subprocess.run(["unshare", "--net", "true"], capture_output=True, timeout=30, check=False)
    assert settings["shut off"] == str(allowed.returncode == 0)


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("crashes", "it ended with status 3: Segmentation fault, perhaps"),
        ("hangs", "no answer to fan_out within 0.5 s"),
        ("loses", "of 10 results 9 came"),
    ],
)
def test_what_goes_wrong_is_told_and_nothing_stays(marks: list[str], mode: str, said: str) -> None:
    with worker(mode) as peer:
        peer.ask(SOON_S, do="start")
        with pytest.raises(PeerFailed, match=said):
            peer.ask(0.5 if mode == "hangs" else SOON_S, do="fan_out", n=10)


def test_a_peer_that_cannot_start_says_why(marks: list[str]) -> None:
    with worker("cannot") as peer, pytest.raises(PeerFailed, match=r"no broker listens \(OSError: refused\)"):
        peer.ask(SOON_S, do="start")


def test_what_is_no_answer_is_shown(marks: list[str]) -> None:
    with worker("rubbish") as peer, pytest.raises(PeerFailed, match="this is no JSON"):
        peer.ask(SOON_S, do="start")


def test_a_program_that_ends_at_once_is_told(marks: list[str]) -> None:
    with Worker([sys.executable, "-c", "raise SystemExit('no module named ray')"]) as peer:
        with pytest.raises(PeerFailed, match="no module named ray"):
            peer.ask(SOON_S, do="start")
        with pytest.raises(PeerFailed, match="it ended with status 1"):
            peer.ask(SOON_S, do="start")


def test_what_a_peer_detached_is_counted_and_ended(marks: list[str]) -> None:
    with worker("litters") as peer:
        peer.ask(SOON_S, do="start")
        (mark,) = marks
        # The one without the mark is a child of one that has it.
        until = time.monotonic() + SOON_S
        while peer.count() < 3 and time.monotonic() < until:
            time.sleep(0.01)
        found = processes.marked(mark)
        assert len(found) == 3
    assert [pid for pid in found if Path(f"/proc/{pid}").exists() and not zombie(pid)] == []


def zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_one_that_is_left_alone_stops_by_itself(marks: list[str]) -> None:
    with worker("works") as peer:
        peer.ask(SOON_S, do="start")
        assert peer._process is not None
        assert peer._process.stdin is not None
        peer._process.stdin.close()
        assert peer._process.wait(timeout=SOON_S) == 0


class Scripted(protocol.Peer):
    def start(self) -> protocol.Settings:
        return {}

    def fan_out(self, n: int) -> int:
        return n

    def one(self) -> None:
        return

    def stop(self) -> None:
        return


def test_what_is_not_understood_is_an_answer(tmp_path: Path) -> None:
    told = protocol.answer(Scripted(tmp_path), {"do": "dance"})
    assert "is not understood" in told["error"]


# --- taking turns


def fake(mode: str, name: str, **changes: Any) -> Entry:
    return replace(Entry(name, Kind.TASKS, "no_module", arguments=(mode,)), **changes)


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "line_of", lambda entry, python="": FAKE)
    monkeypatch.setattr(measuring, "_SINGLES", 1)


def measured(*entries: Entry, rounds: int = 1) -> dict[str, Found]:
    measuring_ = Measuring(entries, 100, 10, Path("/nowhere"), 1.0, lambda _: None)
    return {found.name: found for found in measuring_.run(rounds)}


def test_peers_take_turns_and_one_that_fails_leaves_the_others(marks: list[str], turns: None) -> None:
    found = measured(
        fake("works", "Shoal"), fake("works", "fast", share=0.5), fake("hangs", "stuck"), fake("crashes", "broken"),
        fake("works", "absent", program="no-such-program"), rounds=2,
    )  # fmt: skip
    assert (found["Shoal"].n, found["fast"].n) == (100, 50)
    for name in ("Shoal", "fast"):
        each = found[name]
        assert [len(values) for values in (each.a_second, each.one_p50_ms, each.one_p99_ms, each.memory_mib)] == [2] * 4
        assert each.settings["mode"] == "works"
        assert each.note == ""
    assert "no answer to fan_out" in found["stuck"].note
    assert "Segmentation fault" in found["broken"].note
    assert found["absent"].note == "no-such-program is not installed: apt install no-such-program"
    assert len(marks) == 2 * 2 + 2  # those that failed had no second turn


def test_an_environment_that_cannot_be_made_is_a_row(
    marks: list[str], turns: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def python_of(place: Path, name: str, say: object) -> Path:
        raise environments.NotInstalled(f"{name} cannot be installed: no matching distribution")

    monkeypatch.setattr(measuring, "python_of", python_of)
    found = measured(fake("works", "one", environment="ray"), fake("works", "two", environment="ray"))
    assert found["one"].note == "ray cannot be installed: no matching distribution"
    assert found["two"].note == found["one"].note
    assert marks == []


# --- environments


def test_every_peer_has_a_worker_and_a_lock_with_exact_versions() -> None:
    for entry in PEERS:
        assert (Path(protocol.__file__).parent / f"{entry.module}.py").exists()
        assert entry.against in {"", *(other.name for other in PEERS)}
    for name in {*(entry.environment for entry in PEERS if entry.environment), "plot"}:
        lines = environments.lock_of(name).splitlines()
        assert lines
        assert all(line.count("==") == 1 and "/" not in line for line in lines)


def test_an_environment_is_made_once_for_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []

    def call(line: list[str], name: str) -> None:
        called.append(line)
        (tmp_path / "ray" / "bin").mkdir(exist_ok=True)
        (tmp_path / "ray" / "bin" / "python").touch()

    monkeypatch.setattr(environments, "_call", call)
    told: list[str] = []
    lock = "ray==1.0\n"
    monkeypatch.setattr(environments, "lock_of", lambda name: lock)
    for _ in range(2):
        assert environments.python_of(tmp_path, "ray", told.append) == tmp_path / "ray" / "bin" / "python"
    assert len(called) == 2
    assert "--no-deps" in called[1]
    assert len(told) == 1
    lock = "ray==1.1\n"
    environments.python_of(tmp_path, "ray", told.append)
    assert len(told) == 2
    assert (tmp_path / "ray" / "lock.txt").read_text() == lock


def test_what_pip_says_is_told(tmp_path: Path) -> None:
    with pytest.raises(environments.NotInstalled, match="ray cannot be installed: ERROR: no such version"):
        environments._call(["/bin/sh", "-c", "echo WARNING: x >&2; echo ERROR: no such version >&2; exit 1"], "ray")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(environments.NotInstalled, match="--envs"):
        environments.python_of(file, "ray", lambda _: None)


# --- what is said


def found(name: str, rates: list[float], ms: list[float], mib: list[float], against: str = "") -> Found:
    return Found(name, "no-op units", "no", "no", against, 1000, rates, ms, ms, mib, 4, {"version": "1"})


SHOAL = found("Shoal", [1000.0, 2000.0, 3000.0], [5.0] * 3, [100.0] * 3)


def test_ratios_are_those_of_the_turns() -> None:
    other = found("other", [100.0, 200.0, 3000.0], [10.0] * 3, [50.0] * 3, "Shoal")
    by_name = {"Shoal": SHOAL, "other": other}
    assert report.ratios(other, by_name) == {"a_second": 0.1, "one_p50_ms": 2.0, "memory_mib": 0.5}
    assert report.ratios(SHOAL, by_name) == {}
    assert report.wins(other, by_name) == "wins: 0.5 of the memory"
    row = report.as_object(other, by_name)
    assert (row["a_second"], row["a_second_ratio"], row["a_second_rounds"]) == (200, 0.1, [100, 200, 3000])
    assert (row["units"], row["processes"], row["settings"]) == (1000, 4, {"version": "1"})


def test_where_a_peer_wins_it_is_said_by_what() -> None:
    fast = found("fast", [4000.0] * 3, [1.0] * 3, [400.0] * 3, "Shoal")
    assert report.wins(fast, {"Shoal": SHOAL, "fast": fast}) == (
        "wins: 2 times the units a second, 0.2 of the one unit, p50"
    )


def test_a_row_of_the_table_has_all_columns_whether_measured_or_not() -> None:
    absent = found("absent", [], [], [], "Shoal")
    absent.note = "it is not installed"
    by_name = {"Shoal": SHOAL, "absent": absent}
    for each in by_name.values():
        assert len(report.cells(each, by_name)) == len(report.COLUMNS)
    assert report.cells(SHOAL, by_name)[:5] == ("Shoal", "1,000", "2,000", "1,000 to 3,000", "")
    assert report.words(absent, by_name) == "it is not installed"
    assert report.words(SHOAL, by_name) == ""
    assert report.as_object(absent, by_name)["a_second"] is None


def test_a_picture_that_cannot_be_drawn_is_a_sentence(tmp_path: Path) -> None:
    said = report.draw("/bin/false", [], "", tmp_path / "x.svg")
    assert said == "the picture could not be drawn: 1"


def test_peers_are_chosen_by_words_with_the_shoal_beside_them() -> None:
    assert [entry.name for entry in chosen(["dask"])] == ["Shoal, simulated", "Dask distributed"]
    assert [entry.name for entry in chosen(["runsc run"])] == ["Shoal, gvisor", "threads over runsc run"]
    assert chosen([]) == list(PEERS)
    assert chosen(["nobody"]) == []
    assert line_of(PEERS[1], "/x/python")[0] == "/x/python"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--only", "nobody"], "Dask distributed"),
        (["--picture", "peers.gif"], ".png"),
        (["--rounds", "0"], "--rounds"),
        (["-n", "0"], "-n"),
    ],
)
def test_bad_input_is_a_sentence_before_anything_starts(arguments: list[str], word: str) -> None:
    done = CliRunner().invoke(peers, arguments)
    assert done.exit_code == 2
    assert word in done.output
