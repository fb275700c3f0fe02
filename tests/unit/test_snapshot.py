"""The snapshot service: its core's effects, and what it finds when it looks at real sources."""

import tarfile
from pathlib import Path

import pytest

from shoal.machine.core import Cause, Inspect, LawBrokenError, Publish
from shoal.wire import subjects
from shoal.wire.messages import ExecutorLeft, ResolveTemplate, Snapshot, TemplateInspected, TemplateResolved
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
