"""The snapshot service: its core's effects, and what it finds when it looks at real sources."""

import tarfile
from pathlib import Path

import pytest

from shoal.machine.core import Cause, Inspect, LawBrokenError, Publish
from shoal.wire import subjects
from shoal.wire.messages import (
    Blob,
    ExecutorLeft,
    ResolveTemplate,
    Snapshot,
    SnapshotAdded,
    TemplateInspected,
    TemplateResolved,
)
from shoal_snapshot.core import SnapshotCore
from shoal_snapshot.service import Inspector

HOST = Snapshot("host", "host")


def cause(sequence: int) -> Cause:
    return Cause("SHOAL_SNAPSHOT", sequence, 1000 + sequence)


def test_a_template_is_looked_at_once_and_every_asker_is_answered() -> None:
    core = SnapshotCore()
    assert core.handle(ResolveTemplate(0, "acme", "host"), cause(1)) == (Inspect("host"),)
    assert core.handle(ResolveTemplate(1, "zeta", "host"), cause(2)) == ()
    assert core.handle(ResolveTemplate(0, "acme", "host"), cause(3)) == ()
    assert core.outstanding() == [Inspect("host")]
    assert core.handle(TemplateInspected("host", HOST), cause(4)) == [
        Publish(subjects.rollout_system(0), TemplateResolved("acme", "host", HOST)),
        Publish(subjects.rollout_system(1), TemplateResolved("zeta", "host", HOST)),
    ]
    assert core.handle(TemplateInspected("host", HOST), cause(5)) == []
    assert core.outstanding() == []
    core.check()


def answer(core: SnapshotCore, tenant: str, template: str) -> tuple[str, str]:
    """Return the digest that a template stands for to a tenant, and the error."""
    (effect,) = core.handle(ResolveTemplate(3, tenant, template), cause(9))
    assert isinstance(effect, Publish)
    assert effect.subject == subjects.rollout_system(3)
    told = effect.message
    assert isinstance(told, TemplateResolved)
    return (told.snapshot.digest if told.snapshot else "", told.error)


def test_a_snapshot_is_its_tenants_by_name_and_digest() -> None:
    core = SnapshotCore()
    first, second = (Snapshot(letter * 64, "host", layers=(Blob(letter * 64, 9),)) for letter in "ab")
    near = Snapshot("a" * 63 + "b", "host")
    for number, (snapshot, name) in enumerate(((first, "mine"), (first, "mine"), (second, "mine"), (near, ""))):
        assert core.handle(SnapshotAdded("acme", snapshot, name, "r-0"), cause(number)) == ()
        core.check()
    copy = SnapshotCore()
    copy.load(core.dump())
    assert copy.dump() == core.dump()
    for each in (core, copy):
        assert answer(each, "acme", "mine") == (second.digest, "")
        assert answer(each, "acme", f"snapshot:{first.digest}") == (first.digest, "")
        assert answer(each, "acme", "snapshot:bbbbbbbb") == (second.digest, "")
        assert "several" in answer(each, "acme", "snapshot:aaaaaaaa")[1]
        assert "no snapshot" in answer(each, "acme", "snapshot:cccccccc")[1]
        assert "unknown template 'yours'" in answer(each, "acme", "yours")[1]
        assert "unknown template 'mine'" in answer(each, "zeta", "mine")[1]
        assert "no snapshot" in answer(each, "zeta", f"snapshot:{first.digest}")[1]
    with pytest.raises(LawBrokenError):
        core.handle(SnapshotAdded("acme", Snapshot("", "host")), cause(9))


def test_what_is_nothing_to_it_changes_nothing() -> None:
    core = SnapshotCore()
    with pytest.raises(LawBrokenError):
        core.handle(ExecutorLeft("e", "b"), cause(1))
    with pytest.raises(LawBrokenError):
        core.handle(ResolveTemplate(-1, "acme", "host"), cause(2))
    assert core.outstanding() == []


def test_sources_that_are_there(tmp_path: Path) -> None:
    inspector = Inspector()
    assert inspector.inspect("host") == TemplateInspected("host", HOST)
    found = inspector.inspect(f"dir:{tmp_path}").snapshot
    assert found is not None
    assert (found.kind, found.path) == ("dir", str(tmp_path))
    (tmp_path / "new").write_text("a change at the top is another snapshot")
    changed = inspector.inspect(f"dir:{tmp_path}").snapshot
    assert changed is not None
    assert changed.digest != found.digest

    one, same = tmp_path / "one.tar", tmp_path / "same.tar"
    with tarfile.open(one, "w") as tar:
        tar.add(tmp_path / "new", "new")
    same.write_bytes(one.read_bytes())
    digests = {snapshot.digest for path in (one, same) if (snapshot := inspector.inspect(f"tar:{path}").snapshot)}
    assert len(digests) == 1  # the content's name, not the file's


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("nope", "use host, dir:/path or tar:/path"),
        ("dir:relative", "use host, dir:/path or tar:/path"),
        ("dir:/no/such/place", "/no/such/place is not an existing directory"),
        ("tar:/no/such/file", "/no/such/file is not an existing file"),
        ("tar:/etc/hostname", "/etc/hostname is not a tar archive"),
        ("dir:/etc/hostname", "/etc/hostname is not an existing directory"),
    ],
)
def test_sources_that_are_not(template: str, says: str) -> None:
    found = Inspector().inspect(template)
    assert found.snapshot is None
    assert says in found.error
