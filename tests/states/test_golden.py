"""Each version of a core's state that may be in a cluster is read, and goes on as if the log had been folded anew."""

import base64
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shoal.machine.core import Cause, Core, Effect, Publish, effect_id
from shoal.machine.versions import UnknownVersionError, upgraded
from shoal.wire.codec import decode
from states.make_golden import GOLDEN, STORIES, main, make

FILES = sorted(path for path in GOLDEN.glob("*.json") if path.stem.rpartition("-")[0] in STORIES)
MAKE = "a state_version has an upgrade from the one before it, and a golden state: python tests/states/make_golden.py"
every_core = pytest.mark.parametrize("name", STORIES)
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


class Kept:
    """A golden file, read."""

    def __init__(self, path: Path) -> None:
        self.core, _, version = path.stem.rpartition("-")
        self.version = int(version)
        found = json.loads(path.read_text())
        self.before: list[tuple[int, str]] = found["before"]
        self.after: list[tuple[int, str]] = found["after"]
        self.state = zlib.decompress(base64.b85decode(found["state"]))


def fold(core: Core, story: Sequence[tuple[int, str]], begin: int = 0) -> list[list[tuple[str, Effect]]]:
    """Fold a story; return what each message led to, with the ids it goes out under."""
    said = []
    for sequence, (time_ms, payload) in enumerate(story, begin + 1):
        cause = Cause("GOLDEN", sequence, time_ms)
        effects = core.handle(decode(bytes.fromhex(payload)), cause)
        said.append([(effect_id(cause, number), effect) for number, effect in enumerate(effects)])
        core.check()
    return said


def loaded(kept: Kept) -> Core:
    core = make(kept.core)
    try:
        core.load(upgraded(kept.state, kept.version, core.state_version, core.upgrades))
    except ValueError as error:
        pytest.fail(f"{kept.core}'s state of version {kept.version} cannot be loaded ({error}): {MAKE}")
    core.check()
    return core


@every_core
def test_every_version_that_is_read_has_a_golden_state(name: str) -> None:
    core = make(name)
    first = min(core.upgrades)
    assert set(core.upgrades) == set(range(first, core.state_version)), MAKE
    kept = {int(path.stem.rpartition("-")[2]) for path in FILES if path.stem.startswith(f"{name}-")}
    assert kept == set(range(first, core.state_version + 1)), MAKE


@every_file
def test_who_loads_a_golden_state_goes_on_as_who_folded_everything(path: Path) -> None:
    kept = Kept(path)
    core, whole = loaded(kept), make(kept.core)
    fold(whole, kept.before)
    mine, theirs = (fold(each, kept.after, len(kept.before)) for each in (core, whole))
    if kept.version == core.state_version:
        assert mine == theirs
        assert core.dump() == whole.dump()
    else:  # what is performed may be performed once more; what is said is the same
        assert [_said(each) for each in mine] == [_said(each) for each in theirs]
    assert len([each for each in mine if each]) > 5  # there was something to say


def _said(effects: Sequence[tuple[str, Effect]]) -> list[tuple[str, Effect]]:
    return [each for each in effects if isinstance(each[1], Publish)]


@every_core
def test_the_golden_state_of_this_version_is_what_its_story_leads_to(name: str) -> None:
    kept = Kept(GOLDEN / f"{name}-{make(name).state_version}.json")
    whole = make(name)
    fold(whole, kept.before)
    assert loaded(kept).dump() == whole.dump(), f"the same story leads to another state than before: {MAKE}"


UNKNOWN = {
    "placement-5": {"away"},  # executors that left
    "scheduler-6": {"early", "quotas", "rollouts"},  # what came back before its ask; whose the asks were; what ran
    "scheduler-7": {"rollouts", "quotas"},  # which sandboxes ran before; and when what has a number was said
    "scheduler-8": {"rollouts", "quotas"},  # since when sandboxes are there; and when what has a number was said
    "snapshot-3": {"catalogue"},  # when blobs were asked to be removed
}
"""What an earlier version did not keep, so that it cannot be as if the log had been folded anew."""


@pytest.mark.parametrize("stem", UNKNOWN)
def test_all_that_an_earlier_version_kept_is_kept(stem: str) -> None:
    kept = Kept(GOLDEN / f"{stem}.json")
    whole = make(kept.core)
    fold(whole, kept.before)
    mine, theirs = (_by_field(core) for core in (loaded(kept), whole))
    assert {field for field in theirs if mine[field] != theirs[field]} == UNKNOWN[stem]
    if stem == "scheduler-6":
        (*sent, asks), (*all_sent, all_asks) = (
            [*found["quotas"][3:], found["quotas"][2]]
            for found in (mine, theirs)  # without numbers of what it said
        )
        assert sent == all_sent
        assert all(each in asks for each in all_asks)
    if stem == "snapshot-3":
        (*known, collecting, due, outputs), (*all_known, all_collecting, all_due, all_outputs) = (
            found["catalogue"] for found in (mine, theirs)
        )
        assert (known, due, outputs) == (all_known, all_due, all_outputs)
        assert [digest for digest, _ in collecting] == [digest for digest, _ in all_collecting]


def _by_field(core: Core) -> dict[str, Any]:
    return dict(zip(_fields(core), msgspec.msgpack.decode(core.dump()), strict=True))


TRANSIENT = {"scheduler": {"turn", "untold"}}
"""Fields that have something only between two messages, or while there is more than a story's room."""


@every_core
def test_there_is_something_of_everything_in_a_golden_state(name: str) -> None:
    core = make(name)
    core.load(Kept(GOLDEN / f"{name}-{core.state_version}.json").state)
    empty = {field for field, value in _by_field(core).items() if not _has(value)}
    assert empty == TRANSIENT.get(name, set())


def _fields(core: Core) -> Sequence[str]:
    module = type(core).__module__.replace("scheduler.core.scheduler", "scheduler.core.checkpoint")
    state: Any = getattr(__import__(module, fromlist=["State"]), "State")  # noqa: B009 — a module has no such type
    return tuple(state.__struct_fields__)


def _has(value: object) -> bool:
    if isinstance(value, list):
        return any(map(_has, value))
    return bool(value)


@every_file
def test_an_upgrade_changes_nothing_of_what_it_is_given(path: Path) -> None:
    kept = Kept(path)
    core = make(kept.core)
    for version in range(kept.version, core.state_version):
        value = msgspec.msgpack.decode(kept.state)
        made = core.upgrades[version](value)
        assert msgspec.msgpack.encode(value) == kept.state
        assert core.upgrades[version](value) == made
        assert kept.version < core.state_version


@every_core
@pytest.mark.parametrize("by", [-1, 1])
def test_a_version_that_leads_nowhere_is_named(name: str, by: int) -> None:
    core = make(name)
    version = core.state_version + 1 if by > 0 else min(core.upgrades) - 1
    reads = f"{min(core.upgrades)} to {core.state_version}"
    with pytest.raises(UnknownVersionError, match=f"of version {version}, and this program reads {reads}$"):
        upgraded(core.dump(), version, core.state_version, core.upgrades)


@every_core
def test_what_is_no_state_of_an_earlier_version_is_not_loaded(name: str) -> None:
    core = make(name)
    for value in ([], 7, {}, [[[1]]], {"a": 1}):
        with pytest.raises(ValueError, match=r".+"):
            core.load(upgraded(msgspec.msgpack.encode(value), min(core.upgrades), core.state_version, core.upgrades))


def test_upgrades_are_applied_one_after_another() -> None:
    upgrades = {1: lambda state: [*state, 2], 2: lambda state: [*state, 3]}
    assert upgraded(msgspec.msgpack.encode([1]), 1, 3, upgrades) == msgspec.msgpack.encode([1, 2, 3])
    with pytest.raises(UnknownVersionError):
        upgraded(msgspec.msgpack.encode([1]), 1, 3, {1: upgrades[1]})


def test_what_is_kept_stays(capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in FILES}
    assert main() == 0
    assert capsys.readouterr().out == "0 made\n"
    assert {path: path.read_bytes() for path in FILES} == before


@every_core
def test_the_golden_files_of_this_version_tell_the_stories_there_are(name: str) -> None:
    kept = Kept(GOLDEN / f"{name}-{make(name).state_version}.json")
    for told, story in zip((kept.before, kept.after), STORIES[name], strict=True):
        assert [(time_ms, decode(bytes.fromhex(text))) for time_ms, text in told] == list(story)
