"""Every message of Shoal, as data.

A message is encoded as a MessagePack array whose first element is its type's name: compact, readable without types, and
open at the end (a new field is appended with a default). Times are milliseconds since the epoch, by the broker's clock;
durations say their unit in their name. Groups of sandboxes travel as index ranges, never one message each.
"""

from shoal.wire.messages.base import Message as Message
from shoal.wire.messages.dead import (
    DEAD_PAYLOAD_KEPT as DEAD_PAYLOAD_KEPT,
    DeadLetter as DeadLetter,
)
from shoal.wire.messages.executor import (
    DestroySandboxes as DestroySandboxes,
    ExecutorDismissed as ExecutorDismissed,
    ExecutorReplaced as ExecutorReplaced,
    GiveUp as GiveUp,
    Hibernate as Hibernate,
    ManageFile as ManageFile,
    PreemptSandboxes as PreemptSandboxes,
    ReadBlob as ReadBlob,
    ReadFile as ReadFile,
    RollBack as RollBack,
    RunCommand as RunCommand,
    StartSandboxes as StartSandboxes,
    TakeSnapshot as TakeSnapshot,
    WriteFile as WriteFile,
)
from shoal.wire.messages.placement import (
    ExecutorBeat as ExecutorBeat,
    ExecutorHolds as ExecutorHolds,
    ExecutorJoined as ExecutorJoined,
    ExecutorLeft as ExecutorLeft,
    NodeDrained as NodeDrained,
    PlaceRequested as PlaceRequested,
    PreemptRequested as PreemptRequested,
    PrefetchSnapshot as PrefetchSnapshot,
    ReleaseRequested as ReleaseRequested,
    SlotsReleased as SlotsReleased,
)
from shoal.wire.messages.rollout import (
    CellCapacity as CellCapacity,
    QuotaLent as QuotaLent,
    QuotaWanted as QuotaWanted,
    RolloutCancelled as RolloutCancelled,
    RolloutConcluded as RolloutConcluded,
    RolloutDispatched as RolloutDispatched,
    RolloutQueued as RolloutQueued,
    RolloutRejected as RolloutRejected,
    RolloutReleased as RolloutReleased,
    RolloutSubmitted as RolloutSubmitted,
    RoomLent as RoomLent,
    RoomReturned as RoomReturned,
    RoomWanted as RoomWanted,
    SandboxesClosed as SandboxesClosed,
    SandboxesEnded as SandboxesEnded,
    SandboxesFinished as SandboxesFinished,
    SandboxesHedged as SandboxesHedged,
    SandboxesReady as SandboxesReady,
    SandboxesWanted as SandboxesWanted,
    SandboxResult as SandboxResult,
    SandboxSaved as SandboxSaved,
    SandboxSlept as SandboxSlept,
    SettingsChanged as SettingsChanged,
    StepGivenUp as StepGivenUp,
    StepsGivenUp as StepsGivenUp,
    TemplateResolved as TemplateResolved,
    TenantAdded as TenantAdded,
    TenantLimited as TenantLimited,
    TenantRemoved as TenantRemoved,
    TenantSet as TenantSet,
    Tick as Tick,
)
from shoal.wire.messages.snapshot import (
    BlobKept as BlobKept,
    BlobsCollected as BlobsCollected,
    BuildBegun as BuildBegun,
    BuildProgress as BuildProgress,
    BuildTemplate as BuildTemplate,
    ListSnapshots as ListSnapshots,
    PinSnapshot as PinSnapshot,
    RemoveSnapshot as RemoveSnapshot,
    ResolveTemplate as ResolveTemplate,
    SnapshotAdded as SnapshotAdded,
    SnapshotChanged as SnapshotChanged,
    SnapshotHeld as SnapshotHeld,
    SnapshotLetGo as SnapshotLetGo,
    SnapshotsListed as SnapshotsListed,
    SnapshotsSealed as SnapshotsSealed,
    TemplateBuilt as TemplateBuilt,
    TemplateInspected as TemplateInspected,
    TemplateMade as TemplateMade,
)
from shoal.wire.messages.trajectory import (
    BlobRead as BlobRead,
    CommandFinished as CommandFinished,
    CommandOutput as CommandOutput,
    CommandRefused as CommandRefused,
    FileManaged as FileManaged,
    FileRead as FileRead,
    FileWritten as FileWritten,
    Hibernated as Hibernated,
    RolledBack as RolledBack,
    SandboxesBegan as SandboxesBegan,
    SnapshotTaken as SnapshotTaken,
    StepBegun as StepBegun,
)
from shoal.wire.values import (
    Blob as Blob,
    Command as Command,
    CommandResult as CommandResult,
    EndReason as EndReason,
    FileEntry as FileEntry,
    FileOp as FileOp,
    InputFile as InputFile,
    Isolation as Isolation,
    Limits as Limits,
    NodeSpec as NodeSpec,
    OnLost as OnLost,
    OnPreempted as OnPreempted,
    Pool as Pool,
    Ranges as Ranges,
    Recipe as Recipe,
    Resources as Resources,
    RolloutSpec as RolloutSpec,
    Room as Room,
    Snapshot as Snapshot,
    SnapshotEntry as SnapshotEntry,
    Step as Step,
    Value as Value,
)

AnyMessage = (
    RolloutSubmitted | RolloutReleased | RolloutCancelled | SandboxesWanted | StepsGivenUp
    | SandboxesReady | SandboxesFinished | SandboxesEnded | SandboxSaved | SandboxSlept
    | RolloutQueued | RolloutDispatched | RolloutRejected | RolloutConcluded | SandboxesHedged | SandboxesClosed
    | TemplateResolved | CellCapacity | TenantAdded | TenantRemoved | TenantSet | Tick
    | SettingsChanged | TenantLimited | QuotaWanted | QuotaLent | RoomWanted | RoomLent | RoomReturned
    | PlaceRequested | ReleaseRequested | PreemptRequested | NodeDrained | ExecutorJoined | ExecutorBeat | ExecutorHolds
    | ExecutorLeft | SlotsReleased | PrefetchSnapshot
    | StartSandboxes | DestroySandboxes | PreemptSandboxes | ExecutorDismissed | ExecutorReplaced
    | RunCommand | WriteFile | ReadFile | ManageFile | TakeSnapshot | RollBack
    | Hibernate | GiveUp | CommandOutput | CommandFinished | FileWritten | FileRead | FileManaged | SnapshotTaken
    | RolledBack | Hibernated | CommandRefused | SandboxesBegan | StepBegun | ReadBlob | BlobRead
    | ResolveTemplate | TemplateInspected | SnapshotAdded | BlobKept | SnapshotHeld | SnapshotLetGo
    | SnapshotsSealed
    | BuildTemplate | BuildBegun | BuildProgress | TemplateMade | TemplateBuilt
    | ListSnapshots | SnapshotsListed | PinSnapshot | RemoveSnapshot | SnapshotChanged | BlobsCollected
    | DeadLetter
)  # fmt: skip
