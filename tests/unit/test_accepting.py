"""What an executor is told by whom it may be told that, and what makes no sense to it."""

import msgspec
import pytest

from shoal.machine.lineage import grown, identified, warmed
from shoal.runtime.sealing import Seals
from shoal.wire import subjects
from shoal.wire.messages import (
    AnyMessage,
    Blob,
    Command,
    DestroySandboxes,
    EndReason,
    ExecutorDismissed,
    ExecutorReplaced,
    OnPreempted,
    PreemptSandboxes,
    PrefetchSnapshot,
    ReadBlob,
    Resources,
    RollBack,
    RunCommand,
    Snapshot,
    StartSandboxes,
    TakeSnapshot,
)
from shoal.wire.quantities import BadValueError
from shoal_executor.service.accepting import Accepting, check_given, check_snapshot

CONTROL = subjects.executor_control("e1")
MINE = subjects.executor_command("e1", "acme")
HEAD = ("c", "acme", "run", 1, "r1", 0, 0)
HOST = Snapshot("host", "host")
BLOB = Blob("a" * 64, 9)
RUN = RunCommand(*HEAD, Command(line="x"))
START = StartSandboxes(
    "b1", "n1", "r1", "acme", "run", 1, 0, ((0, 3),), HOST, Resources(), (Command(line="x"),), (), (), "", 1
)  # fmt: skip
DESTROY = DestroySandboxes("b1", "r1", (), EndReason.RELEASED)
PREEMPT = PreemptSandboxes("b1", "r1", 0, ((0, 3),), OnPreempted.RESTART)
SEALS = Seals(b"secret")
accepting = Accepting("e1", 2, SEALS)


@pytest.mark.parametrize(
    "message",
    [START, DESTROY, PREEMPT, ExecutorDismissed("b1"), ExecutorReplaced("b1"), PrefetchSnapshot(HOST)],
    ids=lambda m: type(m).__name__,
)
def test_the_system_speaks_on_one_subject_and_tenants_on_theirs(message: AnyMessage) -> None:
    accepting.check(message, CONTROL)
    with pytest.raises(BadValueError, match=r"^subject: 'shoal\.executor\.e1\.acme\.command' is not where"):
        accepting.check(message, MINE)


@pytest.mark.parametrize(
    "message", [RUN, TakeSnapshot(*HEAD), RollBack(*HEAD, HOST), ReadBlob("q", "acme", "run", 1, BLOB, 0, 9)],
    ids=lambda m: type(m).__name__,
)  # fmt: skip
def test_a_tenant_speaks_in_no_others_name(message: AnyMessage) -> None:
    accepting.check(message, MINE)
    for other in (CONTROL, subjects.executor_command("e1", "evil"), subjects.executor_command("e2", "acme")):
        with pytest.raises(BadValueError, match=r"^subject: .*it is said on 'shoal\.executor\.e1\.acme\.command'"):
            accepting.check(message, other)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tenant", "a b"), ("tenant", ""), ("tenant", "a.b"), ("run", "a b"), ("run", ""), ("run", "*"), ("cell", -1),
        ("cell", 2), ("cell", 10_000), ("index", -1), ("index", 2**40), ("attempt", -1),
    ],
)  # fmt: skip
def test_a_command_that_cannot_be_answered_names_its_field(field: str, value: object) -> None:
    with pytest.raises(BadValueError, match=f"^{field}: "):
        accepting.check(msgspec.structs.replace(RUN, **{field: value}), MINE)


@pytest.mark.parametrize(("field", "value"), [("name", "a\r\nb"), ("memory", "maybe")])
def test_a_snapshot_is_asked_for_as_it_can_be_taken(field: str, value: str) -> None:
    accepting.check(TakeSnapshot(*HEAD, "warm", "yes"), MINE)
    with pytest.raises(BadValueError, match=f"^{field}: "):
        accepting.check(msgspec.structs.replace(TakeSnapshot(*HEAD), **{field: value}), MINE)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rollout", "../up"), ("tenant", "a b"), ("cell", -1), ("indices", ((-1, 2),)), ("indices", ((0, -2),)),
        ("indices", ((0, 2**40),)), ("indices", ((2, 2), (0, 1))), ("commands", (Command(), Command())),
    ],
)  # fmt: skip
def test_an_order_that_makes_no_sense_names_its_field(field: str, value: object) -> None:
    with pytest.raises(BadValueError, match=f"^{field}: "):
        accepting.check(msgspec.structs.replace(START, **{field: value}), CONTROL)
    if field == "indices":
        for order in (DESTROY, PREEMPT):
            with pytest.raises(BadValueError, match=r"^indices: "):
                accepting.check(msgspec.structs.replace(order, indices=value), CONTROL)


def test_snapshots_as_they_are_made_are_accepted() -> None:
    disk = identified(Snapshot("", "disk", disks=(BLOB,), env=(("A", "b"),)))
    tree = Snapshot("t" * 64, "dir", "/srv/root")
    for template in (HOST, disk, tree, warmed(disk, "import os"), warmed(HOST, "import os")):
        kept = grown(template, BLOB, None, "zygote")
        for each in (kept, grown(kept, BLOB, BLOB, "gvisor"), warmed(kept, "import re")):
            check_snapshot(each)
    for each in (HOST, disk):
        check_snapshot(each)


@pytest.mark.parametrize(
    "snapshot",
    [
        Snapshot("x/../../../victim", "host"), Snapshot("", "host"), Snapshot("host", "dir", "/"),
        Snapshot("host", "host", env=(("A", "b"),)), Snapshot("a" * 64, "dir", "/srv"), Snapshot("a" * 64, "tar", "/a"),
        msgspec.structs.replace(grown(HOST, BLOB, None, "zygote"), template="of-another"),
    ],
)  # fmt: skip
def test_a_snapshot_goes_by_what_it_says(snapshot: Snapshot) -> None:
    with pytest.raises(BadValueError, match=r"^snapshot\.digest: "):
        check_snapshot(snapshot)
    with pytest.raises(BadValueError, match=r"^snapshot\.digest: "):
        accepting.check(PrefetchSnapshot(snapshot), CONTROL)


def test_a_clients_snapshot_is_sealed_for_its_tenant_unless_it_is_the_plain_host() -> None:
    disk = identified(Snapshot("", "disk", disks=(BLOB,)))
    for snapshot in (disk, grown(HOST, BLOB, None, "zygote"), warmed(HOST, "import os")):
        given = SEALS.sealed("acme", snapshot)
        check_given(given, "acme", SEALS)
        accepting.check(PrefetchSnapshot(given, "acme"), CONTROL)
        for other in (snapshot, SEALS.sealed("umbra", snapshot), Seals(b"another").sealed("acme", snapshot)):
            with pytest.raises(BadValueError, match=r"^snapshot\.seal: .*cluster\.snapshots\(\)"):
                check_given(other, "acme", SEALS)
            with pytest.raises(BadValueError, match=r"^snapshot\.seal: "):
                accepting.check(PrefetchSnapshot(other, "acme"), CONTROL)
        with pytest.raises(BadValueError, match=r"^snapshot\.seal: "):
            accepting.check(PrefetchSnapshot(given), CONTROL)  # of nobody
        with pytest.raises(BadValueError, match=r"^snapshot\.digest: "):  # one seal for all that has this digest?
            check_given(msgspec.structs.replace(given, kind="dir", path="/root"), "acme", SEALS)
    for host in (HOST, SEALS.sealed("acme", HOST), msgspec.structs.replace(HOST, seal="x")):
        check_given(host, "umbra", SEALS)


@pytest.mark.parametrize("blob", [Blob("../" * 9, 9), Blob("A" * 64, 9), Blob("a" * 63, 9), Blob("a" * 64, -1)])
def test_a_blob_is_called_as_blobs_are(blob: Blob) -> None:
    for snapshot in (Snapshot("", "disk", disks=(blob,)), Snapshot("", "host", layers=(blob,), memory=BLOB)):
        with pytest.raises(BadValueError, match=r"^snapshot\.blobs: "):
            check_snapshot(identified(snapshot))
