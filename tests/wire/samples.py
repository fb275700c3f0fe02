"""One specimen of every message with each field set to something else than its default, and some with defaults.

`golden.json` keeps their bytes. A specimen is never changed: a changed meaning is a new message, and a new field at the
end of one gets a specimen of its own (`Name/with_field`).
"""

import types
from typing import Final, get_args

from shoal.wire.messages import (
    AnyMessage,
    Blob,
    CellCapacity,
    Command,
    CommandFinished,
    CommandOutput,
    CommandRefused,
    CommandResult,
    DeadLetter,
    DestroySandboxes,
    EndReason,
    ExecutorBeat,
    ExecutorJoined,
    ExecutorLeft,
    FileRead,
    FileWritten,
    Hibernate,
    Hibernated,
    InputFile,
    NodeSpec,
    OnLost,
    PlaceRequested,
    ReadFile,
    ReleaseRequested,
    ResolveTemplate,
    Resources,
    RollBack,
    RolledBack,
    RolloutCancelled,
    RolloutConcluded,
    RolloutDispatched,
    RolloutQueued,
    RolloutRejected,
    RolloutReleased,
    RolloutSpec,
    RolloutSubmitted,
    RunCommand,
    SandboxesEnded,
    SandboxesFinished,
    SandboxesReady,
    SandboxesWanted,
    SandboxResult,
    SandboxSaved,
    SandboxSlept,
    SlotsReleased,
    Snapshot,
    SnapshotAdded,
    SnapshotTaken,
    StartSandboxes,
    TakeSnapshot,
    TemplateInspected,
    TemplateResolved,
    TenantAdded,
    TenantRemoved,
    Tick,
    WriteFile,
)

assert isinstance(AnyMessage, types.UnionType)
MESSAGE_TYPES: Final[tuple[type[AnyMessage], ...]] = get_args(AnyMessage)

_RESOURCES = Resources(memory=512 * 1024**2, cpu_milli=2500, pids=128, disk=1024**3)
_COMMAND = Command(
    argv=("python3", "-c", "print(6*7)"),
    line="cd /tmp && make",
    cwd="/work",
    env=(("LANG", "C.UTF-8"), ("PYTHONHASHSEED", "0")),
    stdin=b"in\x00\xff",
    timeout_ms=30_000,
    output_limit=4096,
    user="nobody",
    session=True,
)
_RESULT = CommandResult(
    exit_code=137,
    stdout=b"out\n",
    stderr=b"\xfferr",
    duration_us=1_250_000,
    timed_out=True,
    stdout_dropped=70_000,
    stderr_dropped=3,
    out_of_memory=True,
)
_FILE = InputFile(path="solve.py", data=b"print(42)\n", mode=0o755)
_SNAPSHOT = Snapshot(digest="sha256:00ff", kind="dir", path="/srv/images/python")
_SPEC = RolloutSpec(
    template="dir:/srv/images/python",
    n=256,
    commands=(_COMMAND, Command(argv=("true",))),
    resources=_RESOURCES,
    files=(_FILE,),
    env=(("SEED", "7"),),
    user="agent",
    timeout_ms=600_000,
    on_lost=OnLost.RESTART,
    max_attempts=5,
    priority=-3,
    isolation="zygote",
)
_RANGES = ((0, 128), (130, 1), (255, 1))
_TAKEN = Snapshot(
    digest="77aa",
    kind="disk",
    disks=(Blob("ab12", 163_840), Blob("cd34", 4096)),
    warm="import json",
    layers=(Blob("ef56", 8192),),
    memory=Blob("0012", 4_100_000),
    isolation="gvisor",
    parent="00ff",
    env=(("LANG", "C.UTF-8"),),
    template="00ff",
)
_PYTHON = Command(python="x += 1", timeout_ms=1000)
_KEPT_SPEC = RolloutSpec(
    template="snapshot:77aa",
    n=2,
    on_lost=OnLost.RESUME,
    isolation="zygote",
    checkpoint_every_ms=300_000,
    checkpoint_commands=10,
    warm="import json",
)
_PLACE = ("r7k2m4n6p8q2s4t6v", "acme", "grpo-7")

SAMPLES: Final[dict[str, AnyMessage]] = {
    "RolloutSubmitted": RolloutSubmitted(*_PLACE, _SPEC),
    "RolloutSubmitted/defaults": RolloutSubmitted("r1", "default", "default", RolloutSpec("host", 1)),
    "RolloutSubmitted/kept": RolloutSubmitted(*_PLACE, _KEPT_SPEC),
    "RolloutSubmitted/idle": RolloutSubmitted("r1", "acme", "grpo-7", RolloutSpec("host", 1, idle_after_ms=600_000)),
    "RolloutReleased": RolloutReleased("r1", _RANGES),
    "RolloutReleased/defaults": RolloutReleased("r1"),
    "RolloutCancelled": RolloutCancelled("r1", by="shoal cancel"),
    "RolloutCancelled/defaults": RolloutCancelled("r1"),
    "SandboxesWanted": SandboxesWanted("r1", _RANGES),
    "SandboxSlept": SandboxSlept("r1", 1, 3, "node-1", _TAKEN),
    "SandboxSaved": SandboxSaved("r1", 1, 3, _TAKEN, commands=10),
    "SandboxSaved/defaults": SandboxSaved("r1", 0, 0, Snapshot("host", "host")),
    "SandboxesReady": SandboxesReady("r1", 2, _RANGES, "node-1", "executor-1", "zygote"),
    "SandboxesFinished": SandboxesFinished(
        "r1",
        1,
        "node-1",
        "executor-1",
        "zygote",
        (SandboxResult(3, _RESULT, 70_000), SandboxResult(4, CommandResult(0), 0)),
    ),
    **{
        f"SandboxesEnded/{reason}": SandboxesEnded("r1", 1, _RANGES, "node-1", reason, "its executor went silent")
        for reason in EndReason
    },
    "SandboxesEnded/defaults": SandboxesEnded("r1", 0, ((0, 1),), "", EndReason.START_FAILED),
    "RolloutQueued": RolloutQueued("r1", ahead=512, waiting=200, reason="every slot is taken"),
    "RolloutDispatched": RolloutDispatched("r1", _SNAPSHOT),
    "RolloutRejected": RolloutRejected("r1", "unknown_template", "no template is called nope"),
    "RolloutConcluded": RolloutConcluded("r1", ((EndReason.SUCCEEDED, 250), (EndReason.NODE_LOST, 6)), "finished"),
    "TemplateResolved": TemplateResolved("acme", "host", _SNAPSHOT),
    "TemplateResolved/error": TemplateResolved("acme", "nope", None, "no template is called nope"),
    "CellCapacity": CellCapacity(slots=4096, nodes=3, isolations=("simulated", "zygote")),
    "TenantAdded": TenantAdded("acme"),
    "TenantRemoved": TenantRemoved("acme"),
    "Tick": Tick(1_700_000_000_000),
    "PlaceRequested": PlaceRequested(
        *_PLACE, 12, 1, _RANGES, _SPEC, _SNAPSHOT, 1_700_000_600_000, avoid=("node-2", "node-3")
    ),
    "PlaceRequested/defaults": PlaceRequested(
        "r1", "default", "default", 0, 0, ((0, 1),), RolloutSpec("host", 1), Snapshot("host", "host"), 1
    ),
    "ReleaseRequested": ReleaseRequested("r1", _RANGES, EndReason.CANCELLED),
    "ExecutorJoined": ExecutorJoined(
        "executor-1",
        "b00t",
        "zygote",
        (NodeSpec("node-1", 512, 64 * 1024**3, (("zone", "a"),)), NodeSpec("node-2", 1, 1)),
        starts_per_s=330.5,
        unenforced=("cpu: no cgroup controller",),
    ),
    "ExecutorJoined/defaults": ExecutorJoined("executor-1", "b00t", "simulated", ()),
    "ExecutorBeat": ExecutorBeat("executor-1", "b00t", live=300, starting=20),
    "ExecutorBeat/defaults": ExecutorBeat("executor-1", "b00t"),
    "ExecutorLeft": ExecutorLeft("executor-1", "b00t"),
    "SlotsReleased": SlotsReleased("executor-1", "b00t", "node-1", "r1", 1, _RANGES),
    "StartSandboxes": StartSandboxes(
        "b00t",
        "node-1",
        *_PLACE,
        12,
        1,
        ((0, 2),),
        _SNAPSHOT,
        _RESOURCES,
        (_COMMAND, Command(line="true")),
        (_FILE,),
        (("SEED", "7"),),
        "agent",
        1_700_000_600_000,
    ),
    "StartSandboxes/kept": StartSandboxes(
        "b00t",
        "node-1",
        *_PLACE,
        12,
        1,
        ((3, 1),),
        _TAKEN,
        _RESOURCES,
        (),
        (),
        (),
        "",
        1_700_000_600_000,
        checkpoint_every_ms=300_000,
        checkpoint_commands=10,
    ),
    "DestroySandboxes": DestroySandboxes("b00t", "r1", _RANGES, EndReason.RELEASED),
    "RunCommand": RunCommand("c-1", "acme", "grpo-7", 12, "r1", 3, 1, _COMMAND, stream=True),
    "RunCommand/defaults": RunCommand("c-1", "acme", "grpo-7", 0, "r1", 0, 0, Command()),
    "RunCommand/python": RunCommand("c-1", "acme", "grpo-7", 12, "r1", 3, 1, _PYTHON),
    "StartSandboxes/idle": StartSandboxes(
        "b00t", "node-1", *_PLACE, 12, 1, ((3, 1),), _TAKEN, _RESOURCES, (), (), (), "", 1, idle_after_ms=600_000
    ),
    "TakeSnapshot": TakeSnapshot("c-4", "acme", "grpo-7", 12, "r1", 3, 1, name="warm", memory="yes"),
    "TakeSnapshot/defaults": TakeSnapshot("c-4", "acme", "grpo-7", 0, "r1", 0, 0),
    "Hibernate": Hibernate("c-6", "acme", "grpo-7", 12, "r1", 3, 1),
    "Hibernated": Hibernated("c-6", "r1", 3, 1, "77aa"),
    "RollBack": RollBack("c-5", "acme", "grpo-7", 12, "r1", 3, 1, _TAKEN),
    "SnapshotTaken": SnapshotTaken("c-4", "r1", 3, 1, _TAKEN, name="warm", took_us=12_000),
    "SnapshotTaken/defaults": SnapshotTaken("c-4", "r1", 0, 0, _SNAPSHOT),
    "RolledBack": RolledBack("c-5", "r1", 3, 1, "77aa"),
    "WriteFile": WriteFile(
        "c-2", "acme", "grpo-7", 12, "r1", 3, 1, "solve.py", b"\x00\xff", offset=262_144, mode=0o600
    ),
    "WriteFile/defaults": WriteFile("c-2", "acme", "grpo-7", 0, "r1", 0, 0, "solve.py", b""),
    "ReadFile": ReadFile("c-3", "acme", "grpo-7", 12, "r1", 3, 1, "out.txt", offset=1, limit=2),
    "ReadFile/defaults": ReadFile("c-3", "acme", "grpo-7", 0, "r1", 0, 0, "out.txt"),
    "CommandOutput": CommandOutput("c-1", "r1", 3, part=2, channel=1, data=b"line\n"),
    "CommandFinished": CommandFinished("c-1", "r1", 3, 1, _COMMAND, _RESULT),
    "FileWritten": FileWritten("c-2", "r1", 3, 1, "solve.py", 262_146),
    "FileRead": FileRead("c-3", "r1", 3, 1, "out.txt", b"42\n", 3, eof=True),
    "CommandRefused": CommandRefused(
        "c-1", "r1", 3, 1, "sandbox_gone", "it ran out of memory", EndReason.OUT_OF_MEMORY
    ),
    "CommandRefused/defaults": CommandRefused("c-1", "r1", 3, 1, "file_error", "no such file"),
    "ResolveTemplate": ResolveTemplate(12, "acme", "tar:/srv/images/python.tar"),
    "TemplateInspected": TemplateInspected("dir:/srv/images/python", _SNAPSHOT),
    "TemplateInspected/error": TemplateInspected("dir:/nope", None, "there is no directory /nope"),
    "SnapshotAdded": SnapshotAdded("acme", _TAKEN, name="warm", origin="r1-3"),
    "SnapshotAdded/defaults": SnapshotAdded("acme", _TAKEN),
    "DeadLetter": DeadLetter(
        "SHOAL_EXECUTOR_e1", 78, "shoal.executor.e1.control", "executor.e1", "too large", b"\xc1\x00", size=300_000
    ),
    "DeadLetter/defaults": DeadLetter(
        "SHOAL_ROLLOUT_0", 77, "shoal.rollout.0._._.system", "scheduler.0", "no message", b"\xc1"
    ),
}
