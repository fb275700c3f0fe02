"""What happens to each core before its golden state is kept, and what it is asked afterwards.

As much as fits into a page is under way at once, so that most of what a state can hold is in it. What comes afterwards
has answers that follow from the state.
"""

from typing import Final

from shoal.machine.ledger import HEDGE
from shoal.wire import messages as m

Story = tuple[tuple[int, m.AnyMessage], ...]
"""Messages with the time (ms of the broker's clock) at which each was stored."""

_GIB: Final = 1024**3
HOST: Final = m.Snapshot("host", "host")
LAYERED: Final = m.Snapshot("c" * 64, "host", layers=(m.Blob("d" * 64, 4096),), parent="host")
KEPT: Final = m.Snapshot("e" * 64, "host", layers=(m.Blob("f" * 64, 8192),), parent="c" * 64, template="c" * 64)
_DONE: Final = m.CommandResult(0, b"42\n", b"")


def _timed(begin_ms: int, *messages: m.AnyMessage) -> Story:
    return tuple((begin_ms + 10 * number, message) for number, message in enumerate(messages))


def _submitted(name: str, tenant: str, spec: m.RolloutSpec) -> m.RolloutSubmitted:
    return m.RolloutSubmitted(name, tenant, "train-7", spec, f"key-{name}")


_ZONE_A: Final = (("zone", "a"),)
_SMALL: Final = m.Resources(memory=_GIB, cpu_milli=1000, disk=_GIB)
_POOLS: Final = (
    m.Pool("zygote", _ZONE_A, 2, m.Room(40, 40 * _GIB, 40_000, 400 * _GIB), m.Room(20, 20 * _GIB, 20_000, 200 * _GIB)),
    m.Pool("gvisor", (), 1, m.Room(8, 8 * _GIB, 8_000, 80 * _GIB), m.Room(8, 8 * _GIB, 8_000, 80 * _GIB)),
)
_JOBS: Final = tuple(m.Command(("python", "-c", f"print({n})")) for n in range(4))
_SPECS: Final = {
    "agents": m.RolloutSpec(
        "tools", 6, resources=_SMALL, on_lost=m.OnLost.RESUME, files=(m.InputFile("task", b"sum"),), env=(("A", "1"),)
    ),
    "jobs": m.RolloutSpec("host", 4, _JOBS, _SMALL, on_lost=m.OnLost.RESTART, priority=2),
    "gang": m.RolloutSpec("host", 40, resources=_SMALL, min_ready=40),
    "quick": m.RolloutSpec("host", 32, resources=_SMALL, on_lost=m.OnLost.RESTART),
    "short": m.RolloutSpec("host", 2, resources=_SMALL),
    "odd": m.RolloutSpec("unknown", 3, resources=_SMALL),
}

SCHEDULER: Final[tuple[Story, Story]] = (
    _timed(
        1_700_000_000_000,
        m.CellCapacity(48, 3, ("gvisor", "zygote"), _POOLS),
        m.TenantLimited("acme", m.Limits(2.0, 960, 2000 * _GIB, 0, 300.0, 500), 3),
        m.TenantLimited("zeta", m.Limits(1.0, 300), 1),
        m.TenantAdded("acme"),
        m.TenantAdded("zeta"),
        m.RoomReturned(2, 9, ((0, 1),)),
        _submitted("agents", "acme", _SPECS["agents"]),
        m.TemplateResolved("acme", "tools", LAYERED),
        m.SandboxesReady("agents", 0, ((0, 4),), "n1", "e1", "zygote", LAYERED.digest),
        m.SandboxSaved("agents", 0, 1, KEPT, 3, ((1, 3),)),
        m.SandboxSlept("agents", 0, 2, "n1", KEPT),
        m.SandboxesEnded("agents", 0, ((3, 1),), "n1", m.EndReason.DIED, "of 1 GiB"),
        m.SandboxesEnded("agents", 0, ((5, 1),), "n3", m.EndReason.START_FAILED, "its template cannot be mounted"),
        _submitted("jobs", "zeta", _SPECS["jobs"]),
        m.TemplateResolved("zeta", "host", HOST),
        m.SandboxesReady("jobs", 0, ((0, 4),), "n2", "e2", "zygote", "host"),
        m.SandboxesFinished("jobs", 0, "n2", "e2", "zygote", (m.SandboxResult(0, _DONE, 900),)),
        m.SandboxesEnded("jobs", 0, ((1, 1),), "n2", m.EndReason.START_FAILED, "no room on the disk"),
        _submitted("short", "zeta", _SPECS["short"]),
        m.SandboxesReady("short", 0, ((0, 2),), "n2", "e2", "zygote", "host"),
        m.RolloutReleased("short"),
        _submitted("odd", "acme", _SPECS["odd"]),
        m.RoomWanted(1, 1, "acme", "train-7", m.RolloutSpec("host", 5, resources=_SMALL)),
        m.QuotaWanted(1, 1, "acme", 3, (4, 0, 0, 0), 1_700_000_000_000),
        m.QuotaLent(2, 1, "acme", 3, (2, 0, 0, 0)),
        _submitted("quick", "acme", _SPECS["quick"]),
        m.TemplateResolved("acme", "host", HOST),
        m.SandboxesReady("quick", 0, ((0, 20),), "n1", "e1", "zygote", "host"),
        m.SandboxesHedged("quick", 0, HEDGE, ((20, 1),)),
        m.SandboxesEnded("quick", 0, ((21, 1),), "", m.EndReason.PREEMPTED, "there was no room for it after all"),
        _submitted("gang", "zeta", _SPECS["gang"]),
        _submitted("more", "acme", _SPECS["quick"]),
        m.Tick(1_700_000_000_300),
    ),
    _timed(
        1_700_000_001_000,
        m.SandboxesReady("agents", 0, ((4, 1),), "n3", "e3", "zygote", LAYERED.digest),
        m.SandboxesWanted("agents", ((2, 1),)),
        m.SandboxesEnded("agents", 0, ((0, 2),), "n1", m.EndReason.NODE_LOST, "its executor left"),
        m.SandboxesReady("quick", HEDGE, ((20, 1),), "n2", "e2", "zygote"),
        m.SandboxesFinished("jobs", 0, "n2", "e2", "zygote", tuple(m.SandboxResult(i, _DONE, 9) for i in (2, 3))),
        m.QuotaWanted(1, 1, "acme", 3, (9, 0, 0, 0), 1_700_000_000_000),
        m.QuotaLent(2, 1, "acme", 3, (2, 0, 0, 0)),
        m.TemplateResolved("acme", "unknown", None, "there is no such template"),
        m.RoomReturned(1, 1, ((0, 1),)),
        m.RolloutCancelled("quick", "alice"),
        m.RolloutReleased("agents"),
        m.Tick(1_700_000_001_000),
        m.CellCapacity(96, 6, ("gvisor", "zygote"), _POOLS + _POOLS[:1] + _POOLS),
        m.RolloutReleased("gang"),
        m.Tick(1_700_000_001_500),
    ),
)

_NODES: Final = (
    m.NodeSpec("n1", 4, 4 * _GIB, _ZONE_A, 4_000, 40 * _GIB),
    m.NodeSpec("n2", 4, 4 * _GIB, (("zone", "b"),), 4_000, 40 * _GIB),
)


def _place(name: str, n: int, deadline_ms: int = 1_700_003_600_000, **named: object) -> m.PlaceRequested:
    spread = str(named.pop("spread", ""))
    spec = m.RolloutSpec("host", n, resources=_SMALL, spread_over=spread)
    snapshot = named.pop("snapshot", HOST)
    return m.PlaceRequested(name, "acme", "train-7", 0, 0, ((0, n),), spec, snapshot, deadline_ms, **named)  # type: ignore[arg-type]  # a snapshot and the request's own fields


PLACEMENT: Final[tuple[Story, Story]] = (
    _timed(
        1_700_000_000_000,
        m.ExecutorJoined("e1", "b1", "zygote", _NODES, 50.0),
        m.ExecutorJoined("e1", "b2", "zygote", _NODES, 50.0),
        m.ExecutorJoined("e2", "b3", "gvisor", (m.NodeSpec("n3", 2, 2 * _GIB, _ZONE_A),), 2.0),
        m.ExecutorJoined("e4", "b4", "zygote", (m.NodeSpec("n4", 2, 16 * _GIB),), 50.0),
        m.ExecutorBeat("e1", "b2", 3, 1, 40, 2_000),
        m.ExecutorHolds("e1", "b2", ("d" * 64,)),
        _place("spread", 4, spread="zone"),
        _place("layered", 2, snapshot=LAYERED),
        m.SlotsReleased("e1", "b2", "n1", "spread", 0, ((0, 1),)),
        m.ReleaseRequested("layered", ((0, 1),), m.EndReason.RELEASED),
        m.ReleaseRequested("layered", ((1, 1),), m.EndReason.NODE_LOST, 0),
        m.ReleaseRequested("over", (), m.EndReason.CANCELLED),
        m.NodeDrained("n3", True),
        m.ExecutorLeft("e4", "b4"),
        _place("waits", 9),
        m.Tick(1_700_000_000_150),
    ),
    _timed(
        1_700_000_000_400,
        _place("over", 3),
        _place("spread", 4, spread="zone"),
        m.SlotsReleased("e1", "b2", "n2", "spread", 0, ((1, 3),)),
        m.SlotsReleased("e1", "b1", "n1", "layered", 0, ((0, 2),)),
        m.ReleaseRequested("waits", ((0, 3),), m.EndReason.RELEASED),
        m.NodeDrained("n3", False),
        m.ReleaseRequested("spread", (), m.EndReason.CANCELLED),
        m.ExecutorLeft("e1", "b2"),
        m.ExecutorJoined("e1", "b2", "zygote", _NODES, 50.0),
        m.ExecutorJoined("e1", "b5", "zygote", _NODES, 50.0),
        m.Tick(1_700_000_002_000),
    ),
)

_RECIPE: Final = m.Recipe("tar:/srv/images/tools.tar", ("pip install pytest",), "import json")

SNAPSHOT: Final[tuple[Story, Story]] = (
    _timed(
        1_700_000_000_000,
        m.SnapshotAdded("acme", LAYERED, "tools", "agents-0"),
        m.SnapshotAdded("acme", KEPT, "", "agents-1", 1_700_020_000_000, automatic=True),
        m.SnapshotHeld("acme", LAYERED.digest, "agents", 1_700_003_600_000),
        m.SnapshotAdded("zeta", m.Snapshot("1" * 64, "host", layers=(m.Blob("2" * 64, 64),)), "gone", "z-0"),
        m.RemoveSnapshot("x1", "zeta", "gone"),
        m.BlobKept("acme", m.Blob("3" * 64, 20_000_000), 1_700_010_000_000),
        m.ResolveTemplate(0, "acme", "dir:/srv/tools"),
        m.ResolveTemplate(1, "zeta", "dir:/srv/tools"),
        m.BuildTemplate("b1", "acme", "built", _RECIPE),
        m.BuildTemplate("b2", "acme", "again", _RECIPE),
        m.TemplateInspected("tar:/srv/images/tools.tar", m.Snapshot("4" * 64, "tar", disks=(m.Blob("5" * 64, 99),))),
        m.BuildTemplate("b3", "zeta", "other", m.Recipe("dir:/srv/other", ("make",))),
    ),
    _timed(
        1_700_000_300_000,
        m.TemplateInspected("dir:/srv/tools", HOST),
        m.ResolveTemplate(2, "acme", "tools"),
        m.ResolveTemplate(2, "acme", f"snapshot:{KEPT.digest[:12]}"),
        m.ResolveTemplate(2, "zeta", "gone"),
        m.ListSnapshots("l1", "acme"),
        m.PinSnapshot("p1", "acme", KEPT.digest, True),
        m.SnapshotLetGo("acme", "agents"),
        m.RemoveSnapshot("x2", "acme", "tools"),
        m.TemplateInspected("dir:/srv/other", None, "no such directory"),
        m.BlobsCollected(("2" * 64,)),
        m.ListSnapshots("l2", "acme"),
    ),
)
