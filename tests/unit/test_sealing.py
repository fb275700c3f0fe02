"""The cluster's word that a snapshot is a tenant's: whose it is, who has the key, and how those of before get one."""

import asyncio
import hashlib

import msgspec

import shoal
from shoal.bus.memory import MemoryBroker, MemoryBus
from shoal.machine.core import Cause, Effect, Publish, Seal, respond
from shoal.machine.lineage import identified
from shoal.runtime.cluster import ensure_cluster
from shoal.runtime.sealing import Seals, seals_of
from shoal.wire import messages as m, streams, subjects
from shoal.wire.codec import encode
from shoal_placement.core.placement import PlacementCore
from shoal_snapshot.core.catalogue import GRACE_MS
from shoal_snapshot.core.snapshot import SnapshotCore
from shoal_snapshot.service import Sealer
from unit.client_fabric import Fabric

BLOB = m.Blob("a" * 64, 9)
DISK = identified(m.Snapshot("", "disk", disks=(BLOB,)))
ADDED = subjects.snapshot("acme", "added")


def test_a_seal_is_of_one_tenants_snapshot_with_one_key() -> None:
    seals = Seals(b"key")
    sealed = seals.sealed("acme", DISK)
    assert msgspec.structs.replace(sealed, seal="") == DISK
    assert len(sealed.seal) == 64
    assert Seals(b"key").right("acme", sealed)
    assert not seals.right("acm", msgspec.structs.replace(sealed, digest=f"e{DISK.digest}"))
    for tenant, key in (("umbra", b"key"), ("acme", b"another")):
        assert not Seals(key).right(tenant, sealed)
    for seal in ("", sealed.seal[:-1], "ö"):
        assert not seals.right("acme", msgspec.structs.replace(sealed, seal=seal))


def test_the_digest_is_as_it_was_before_there_were_seals_and_of_no_seal() -> None:
    """What is in catalogues goes by the digest of all fields that there were then."""
    whole = m.Snapshot("", "disk", "p", (BLOB,), "w", (BLOB,), BLOB, "gvisor", "00", (("A", "b"),), "11")
    before = ["", "disk", "p", [BLOB], "w", [BLOB], BLOB, "gvisor", "00", [["A", "b"]], "11"]
    assert identified(whole).digest == hashlib.sha256(msgspec.msgpack.encode(before)).hexdigest()
    assert identified(msgspec.structs.replace(whole, seal="x")) == identified(whole)


async def test_there_is_one_key_in_a_bucket_of_its_own() -> None:
    broker = MemoryBroker()
    one, other = MemoryBus(broker), MemoryBus(broker)
    await ensure_cluster(one)
    key = await one.get(streams.SECRET_BUCKET, streams.SEAL_KEY)
    assert key is not None
    assert len(key.value) == 32
    assert (await seals_of(one)).right("acme", (await seals_of(other)).sealed("acme", DISK))
    await ensure_cluster(other)
    assert await other.get(streams.SECRET_BUCKET, streams.SEAL_KEY) == key
    assert streams.SEAL_KEY not in await one.keys(streams.CLUSTER_BUCKET)


def drive(core: SnapshotCore, message: m.AnyMessage, now: int = 0) -> list[Effect]:
    effects = list(core.handle(message, Cause("SHOAL_SNAPSHOT", 1, now)))
    core.check()
    return effects


async def test_snapshots_of_before_and_of_a_lost_key_get_their_seals_through_the_log() -> None:
    core, seals = SnapshotCore(), Seals(b"key")
    assert drive(core, m.SnapshotAdded("acme", DISK, "mine")) == [Seal((("acme", DISK.digest, ""),))]
    other = identified(m.Snapshot("", "disk", disks=(m.Blob("b" * 64, 9),)))
    assert drive(core, m.SnapshotAdded("umbra", Seals(b"lost").sealed("umbra", other))) == []
    third = seals.sealed("umbra", DISK)
    assert drive(core, m.SnapshotAdded("umbra", third)) == []
    (asked,) = core.outstanding()
    assert isinstance(asked, Seal)
    assert [each[:2] for each in asked.sealed] == [
        ("acme", DISK.digest), ("umbra", other.digest), ("umbra", DISK.digest),
    ]  # fmt: skip
    (told,) = await Sealer(seals).perform(asked)
    assert told == Publish(
        "shoal.snapshot._.sealed",
        m.SnapshotsSealed(
            (
                ("acme", DISK.digest, seals.of("acme", DISK.digest)),
                ("umbra", other.digest, seals.of("umbra", other.digest)),
            )
        ),
    )
    assert drive(core, told.message) == []
    assert drive(core, told.message) == []
    assert drive(core, m.SnapshotsSealed((("acme", other.digest, "5ea1"),))) == []  # which that tenant does not have
    (again,) = core.outstanding()
    assert isinstance(again, Seal)
    assert await Sealer(seals).perform(again) == []
    copy = SnapshotCore()
    copy.load(core.dump())
    for each in (core, copy):
        (answer,) = drive(each, m.ListSnapshots("q", "acme"))
        assert isinstance(answer, Publish)
        assert answer.message == m.SnapshotsListed(
            "q", (m.SnapshotEntry(seals.sealed("acme", DISK), ("mine",), False, "", 0, 0, 0),)
        )
        assert drive(each, m.SnapshotAdded("acme", DISK)) == [Seal((("acme", DISK.digest, ""),))]
        assert each.outstanding() == [again]  # who knows no seals takes none away


def test_a_rollout_holds_all_that_its_sandboxes_were_made_of() -> None:
    core = SnapshotCore()
    first, second = (identified(m.Snapshot("", "disk", disks=(m.Blob(letter * 64, 9),), seal="x")) for letter in "ab")
    for snapshot in (first, second):
        drive(core, m.SnapshotAdded("acme", msgspec.structs.replace(snapshot, seal="5ea1")))
        for _ in range(2):
            drive(core, m.SnapshotHeld("acme", snapshot.digest, "r1", 20 * GRACE_MS))
    copy = SnapshotCore()
    copy.load(core.dump())
    for each in (core, copy):
        assert drive(each, m.Tick(0), 10 * GRACE_MS) == []
        (answer,) = drive(each, m.ListSnapshots("q", "acme"), 10 * GRACE_MS)
        assert isinstance(answer, Publish)
        assert isinstance(answer.message, m.SnapshotsListed)
        assert [entry.held for entry in answer.message.entries] == [1, 1]
    drive(core, m.SnapshotLetGo("acme", "r1"), 10 * GRACE_MS)
    for each, later in ((core, 12 * GRACE_MS), (copy, 21 * GRACE_MS)):
        (collect,) = drive(each, m.Tick(0), later)
        assert getattr(collect, "digests", ()) == ("a" * 64, "b" * 64)


def test_a_tenant_adds_no_snapshot_and_says_nothing_in_the_systems_name() -> None:
    core, cause = SnapshotCore(), Cause("SHOAL_SNAPSHOT", 1, 0)
    mine = subjects.snapshot("acme", "request")
    forged: list[m.AnyMessage] = [
        m.SnapshotAdded("acme", DISK), m.TemplateMade("k", DISK), m.SnapshotsSealed((("acme", "d", "s"),)),
        m.TemplateInspected("host", DISK), m.SnapshotHeld("acme", DISK.digest, "r", 1), m.BlobsCollected(("a" * 64,)),
    ]  # fmt: skip
    before = core.dump()
    for message in forged:
        effects, problem = respond(core, mine, encode(message), cause)
        assert (effects, problem.partition(" is not said on ")[0]) == ((), f"a {type(message).__name__}")
        assert "BuildTemplate, ListSnapshots" in problem
    effects, problem = respond(core, mine, encode(m.ListSnapshots("q", "umbra")), cause)
    assert (effects, problem) == ((), "tenant: 'umbra' does not speak on 'shoal.snapshot.acme.request'")
    assert core.dump() == before
    assert respond(core, mine, encode(m.ListSnapshots("q", "acme")), cause)[1] == ""
    assert respond(core, ADDED, encode(m.SnapshotAdded("acme", DISK)), cause)[1] == ""


def test_nor_is_another_log_told_what_its_template_is() -> None:
    placement, cause = PlacementCore(0), Cause("SHOAL_PLACEMENT_0", 1, 0)
    mine = subjects.placement_prefetch(0, "acme")
    wish = m.PrefetchSnapshot(DISK, "acme")
    assert respond(placement, mine, encode(wish), cause)[1] == ""
    assert "does not speak" in respond(placement, mine, encode(m.PrefetchSnapshot(DISK, "umbra")), cause)[1]
    assert "is not said on" in respond(placement, mine, encode(m.ExecutorLeft("e", "b")), cause)[1]
    spoken = subjects.rollout_request(0, "acme", "run")
    assert "is not said on" in respond(placement, spoken, encode(m.TemplateResolved("acme", "host", DISK)), cause)[1]


async def test_a_client_has_a_snapshot_of_before_sealed_by_the_catalogue() -> None:
    sealed = Seals(b"key").sealed("default", DISK)
    async with Fabric() as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        answers = SnapshotCore()
        answers.handle(m.SnapshotAdded("default", sealed), Cause("S", 1, 0))
        bus = fabric.connect()
        reader = await bus.reader("SHOAL_SNAPSHOT", filters=[subjects.snapshot("default", "request")])
        for given in (DISK, sealed):
            task = asyncio.create_task(cluster.prefetch(shoal.Snapshot(given)))
            if given is DISK:
                (asked,) = await reader.batch()
                (answer,) = answers.handle(m.ListSnapshots(asked.id.partition(":")[0], "default"), Cause("S", 2, 0))
                assert isinstance(answer, Publish)
                await bus.publish(answer.subject, encode(answer.message), "answer")
            await task
        placed = await bus.reader("SHOAL_PLACEMENT_0", filters=[subjects.placement_prefetch(0, "default")])
        found = [each.payload for each in await placed.batch()]
        assert found == [encode(m.PrefetchSnapshot(sealed, "default"))] * 2
