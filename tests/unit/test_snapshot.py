"""The snapshot service: its core's effects, and what it finds when it looks at real sources."""

import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from shoal.blobs.files import FileStore
from shoal.bus.memory import MemoryBroker, MemoryBus
from shoal.machine.core import Cause, Collect, Inspect, LawBrokenError, Make, Publish, Seal
from shoal.runtime.sealing import Seals
from shoal.runtime.steady import SteadyPublisher
from shoal.wire import subjects
from shoal.wire.messages import (
    Blob,
    BlobKept,
    BlobsCollected,
    BuildBegun,
    BuildTemplate,
    ExecutorLeft,
    Recipe,
    RemoveSnapshot,
    ResolveTemplate,
    Snapshot,
    SnapshotAdded,
    SnapshotChanged,
    SnapshotHeld,
    SnapshotLetGo,
    TemplateBuilt,
    TemplateInspected,
    TemplateMade,
    TemplateResolved,
    Tick,
)
from shoal_snapshot.core.catalogue import GRACE_MS
from shoal_snapshot.core.snapshot import SnapshotCore
from shoal_snapshot.images.allowed import read_from
from shoal_snapshot.images.errors import ImageError
from shoal_snapshot.inspecting import Inspector
from shoal_snapshot.making import Maker

HOST = Snapshot("host", "host")


def cause(sequence: int) -> Cause:
    return Cause("SHOAL_SNAPSHOT", sequence, 1000 + sequence)


def test_a_template_is_looked_at_once_and_every_asker_is_answered() -> None:
    core = SnapshotCore()
    assert core.handle(ResolveTemplate(0, "acme", "host"), cause(1)) == [Inspect("host")]
    assert core.handle(ResolveTemplate(1, "zeta", "host"), cause(2)) == []
    assert core.handle(ResolveTemplate(0, "acme", "host"), cause(3)) == []
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
    first, second = (Snapshot(letter * 64, "host", layers=(Blob(letter * 64, 9),), seal="5ea1") for letter in "ab")
    near = Snapshot("a" * 63 + "b", "host", seal="5ea1")
    for number, (snapshot, name) in enumerate(((first, "mine"), (first, "mine"), (second, "mine"), (near, ""))):
        assert core.handle(SnapshotAdded("acme", snapshot, name, "r-0"), cause(number)) == []
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
        assert "is called 'yours'" in answer(each, "acme", "yours")[1]
        assert "is called 'mine'" in answer(each, "zeta", "mine")[1]
        assert "no snapshot" in answer(each, "zeta", f"snapshot:{first.digest}")[1]
    with pytest.raises(LawBrokenError):
        core.handle(SnapshotAdded("acme", Snapshot("", "host")), cause(9))


def told(effects: object) -> list[object]:
    """Return the messages of effects that publish one, and the other effects."""
    assert isinstance(effects, Sequence)
    return [effect.message if isinstance(effect, Publish) else effect for effect in effects]


def test_a_template_is_made_once_and_again_only_for_another_recipe() -> None:
    core = SnapshotCore()
    recipe = Recipe("tar:/a", ("make",))
    made = Snapshot("c" * 64, "disk", disks=(Blob("c" * 64, 9),))
    assert core.handle(BuildTemplate("q1", "acme", "one", recipe), cause(1)) == [Inspect("tar:/a")]
    assert core.handle(BuildTemplate("q2", "acme", "two", recipe), cause(2)) == []
    base = Snapshot("a" * 64, "tar", "/a")
    begun, make, joined = told(core.handle(TemplateInspected("tar:/a", base), cause(3)))
    assert isinstance(make, Make)
    assert (make.tenant, make.recipe, make.base) == ("acme", recipe, base)
    assert [begun, joined] == [BuildBegun("q1", make.key), BuildBegun("q2", make.key)]
    assert core.outstanding() == [make]
    copy = SnapshotCore()
    copy.load(core.dump())
    for each in (core, copy):
        assert told(each.handle(TemplateMade(make.key, made), cause(4))) == [
            TemplateBuilt("q1", "one", made), TemplateBuilt("q2", "two", made),
        ]  # fmt: skip
        assert each.handle(TemplateMade(make.key, made), cause(5)) == []  # a second service made it, too
        assert answer(each, "acme", "one") == answer(each, "acme", "two") == (made.digest, "")
        each.handle(BuildTemplate("q3", "acme", "three", recipe), cause(6))
        assert told(each.handle(TemplateInspected("tar:/a", base), cause(7))) == [
            TemplateBuilt("q3", "three", made, cached=True)
        ]
        for number, other in enumerate((Recipe("tar:/a"), Recipe("tar:/a", ("make", "make")))):
            each.handle(BuildTemplate(f"o{number}", "acme", "other", other), cause(8))
            assert isinstance(told(each.handle(TemplateInspected("tar:/a", base), cause(9)))[1], Make)
        each.handle(BuildTemplate("q4", "acme", "changed", recipe), cause(10))
        changed = told(each.handle(TemplateInspected("tar:/a", Snapshot("b" * 64, "tar", "/a")), cause(11)))
        assert isinstance(changed[1], Make)
        failed = told(each.handle(TemplateMade(changed[1].key, None, "make failed"), cause(12)))
        assert failed == [TemplateBuilt("q4", "changed", None, "make failed")]
        each.handle(BuildTemplate("q5", "acme", "absent", recipe), cause(13))
        absent = told(each.handle(TemplateInspected("tar:/a", None, "no such file"), cause(14)))
        assert absent == [TemplateBuilt("q5", "absent", None, "source: no such file")]
        unknown = told(each.handle(BuildTemplate("q6", "acme", "x", Recipe("template:nope")), cause(15)))
        assert isinstance(unknown[0], TemplateBuilt)
        assert "is called 'nope'" in unknown[0].error
        each.check()
    with pytest.raises(LawBrokenError):
        core.handle(BuildTemplate("q7", "acme", "no name", recipe), cause(16))


def test_what_nothing_needs_goes_after_an_hour_and_its_blobs_with_it() -> None:
    core = SnapshotCore()
    old = Snapshot("a" * 64, "host", layers=(Blob("a" * 64, 9),))
    grown = Snapshot("b" * 64, "host", layers=(*old.layers, Blob("b" * 64, 9)), parent=old.digest)
    core.handle(SnapshotAdded("acme", old), Cause("S", 1, 0))
    core.handle(SnapshotAdded("acme", grown, "mine"), Cause("S", 2, 0))
    core.handle(SnapshotHeld("acme", grown.digest, "r1", 9 * GRACE_MS), Cause("S", 3, 0))
    assert core.wake_at_ms() is not None
    assert core.handle(Tick(0), Cause("S", 4, 2 * GRACE_MS)) == []  # a name needs the one, and that the other
    (kept,) = told(core.handle(RemoveSnapshot("q", "acme", "mine"), Cause("S", 5, 3 * GRACE_MS)))
    assert kept == SnapshotChanged("q", grown.digest, needed="a rollout runs from it")
    core.handle(SnapshotLetGo("acme", "r1"), Cause("S", 6, 4 * GRACE_MS))
    assert core.handle(Tick(0), Cause("S", 7, 4 * GRACE_MS + 60_000)) == []  # it was used just now
    (collect,) = core.handle(Tick(0), Cause("S", 8, 6 * GRACE_MS))
    assert isinstance(collect, Collect)
    assert sorted(collect.digests) == ["a" * 64, "b" * 64]
    assert core.outstanding() == [collect]
    core.handle(SnapshotAdded("acme", old), Cause("S", 9, 6 * GRACE_MS))  # somebody has put it there anew
    seal = Seal((("acme", old.digest, ""),))
    assert core.outstanding() == [Collect(("b" * 64,)), seal]
    assert core.handle(BlobsCollected(collect.digests), Cause("S", 10, 6 * GRACE_MS)) == []
    assert core.outstanding() == [seal]
    core.check()


def test_an_output_is_kept_for_its_time_and_then_collected() -> None:
    core = SnapshotCore()
    output = Blob("e" * 64, 9)
    core.handle(BlobKept("acme", output, 3 * GRACE_MS), Cause("S", 1, 0))
    core.handle(BlobKept("acme", output, 2 * GRACE_MS), Cause("S", 2, 0))  # the same again, by another command
    assert core.handle(Tick(0), Cause("S", 3, 2 * GRACE_MS + 60_000)) == []
    again = SnapshotCore()
    again.load(core.dump())
    for each in (core, again):
        assert each.handle(Tick(0), Cause("S", 4, 3 * GRACE_MS + 60_000)) == [Collect((output.digest,))]
        each.check()
    with pytest.raises(LawBrokenError):
        core.handle(BlobKept("acme", Blob("", 9), 1), Cause("S", 5, 0))


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
    digests = {found.digest}
    (tmp_path / "deep").mkdir()
    for change in ("new", "deep/new"):
        (tmp_path / change).write_text("a change anywhere is another snapshot")
        changed = inspector.inspect(f"dir:{tmp_path}").snapshot
        assert changed is not None
        digests.add(changed.digest)
    assert len(digests) == 3

    one, same = tmp_path / "one.tar", tmp_path / "same.tar"
    with tarfile.open(one, "w") as tar:
        tar.add(tmp_path / "new", "new")
    same.write_bytes(one.read_bytes())
    digests = {snapshot.digest for path in (one, same) if (snapshot := inspector.inspect(f"tar:{path}").snapshot)}
    assert len(digests) == 1  # the content's name, not the file's


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("nope", "use host, dir:/path, tar:/path"),
        ("dir:relative", "use host, dir:/path, tar:/path"),
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


@pytest.mark.parametrize("kind", ["dir", "tar", "docker-archive", "oci"])
@pytest.mark.parametrize("name", ["elsewhere", "templates/../elsewhere", "templates/out", "templates-too", ""])
def test_sources_are_taken_only_from_where_the_service_says(tmp_path: Path, kind: str, name: str) -> None:
    for each in ("templates", "templates-too", "elsewhere"):
        (tmp_path / each).mkdir()
    (tmp_path / "templates" / "out").symlink_to(tmp_path / "elsewhere")
    source = f"{kind}:{tmp_path / name}"
    for allowed, says in (
        ((tmp_path / "templates",), f"only from below {tmp_path / 'templates'}; see its --template-roots"),
        ((), "from no directory; see its --template-roots"),
    ):
        found = Inspector(allowed).inspect(source)
        assert found.snapshot is None
        assert says in found.error
        with pytest.raises(ImageError, match="--template-roots"):
            read_from(kind, str(tmp_path / name), allowed)


def test_a_source_below_an_allowed_directory_is_read_where_it_really_is(tmp_path: Path) -> None:
    (tmp_path / "templates" / "one").mkdir(parents=True)
    (tmp_path / "templates" / "other").symlink_to(tmp_path / "templates" / "one")
    (tmp_path / "link").symlink_to(tmp_path / "templates")
    allowed = (tmp_path / "link",)
    one = str(tmp_path / "templates" / "one")
    assert read_from("dir", str(tmp_path / "templates" / "other"), allowed) == one
    assert read_from("oci", f"{one}:v1", allowed) == f"{one}:v1"
    assert read_from("docker", "//registry/image", allowed) == "//registry/image"
    found = Inspector(allowed).inspect(f"dir:{tmp_path / 'templates' / 'other'}").snapshot
    assert found is not None
    assert found.path == str(tmp_path / "templates" / "other")


async def test_a_source_that_was_exchanged_after_it_was_looked_at_is_not_made(tmp_path: Path) -> None:
    (tmp_path / "templates" / "one").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    source = tmp_path / "templates" / "link"
    source.symlink_to(tmp_path / "templates" / "one")
    allowed = (tmp_path / "templates",)
    base = Inspector(allowed).inspect(f"dir:{source}").snapshot
    assert base is not None
    source.unlink()
    source.symlink_to(tmp_path / "secret")
    publisher = SteadyPublisher(MemoryBus(MemoryBroker()), "snapshot")
    store = FileStore(tmp_path / "blobs")
    maker = Maker(publisher, store, "nats://127.0.0.1:1", tmp_path / "scratch", Seals(b"key"), allowed)
    (told,) = await maker.perform(Make("key", "acme", Recipe(f"dir:{source}"), base))
    assert isinstance(told.message, TemplateMade)
    assert told.message.snapshot is None
    assert f"only from below {tmp_path / 'templates'}; see its --template-roots" in told.message.error
    assert not (tmp_path / "scratch").exists()
