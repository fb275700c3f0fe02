"""The snapshot log: what can be started, how it is made, and how long it is kept."""

from shoal.wire.bounds import Integer
from shoal.wire.messages.base import Message
from shoal.wire.values import Blob, Recipe, Snapshot, SnapshotEntry


class ResolveTemplate(Message, frozen=True):
    """A scheduler asks what a template's name stands for."""

    cell: Integer
    tenant: str
    template: str


class TemplateInspected(Message, frozen=True):
    """The snapshot service looked at a template's source and found this."""

    template: str
    snapshot: Snapshot | None
    error: str = ""


class SnapshotAdded(Message, frozen=True):
    """A snapshot was taken and all its bytes are stored. `origin` is the sandbox's name; `name` may be empty.

    Its own rollout may need it until `until_ms`. One that is `automatic` takes the place of the one before it of the
    same sandbox.
    """

    tenant: str
    snapshot: Snapshot
    name: str = ""
    origin: str = ""
    until_ms: Integer = 0
    automatic: bool = False


class BlobKept(Message, frozen=True):
    """An executor has stored an output of a command as a blob; it is kept until that moment.

    0: it was stored for something that came to nothing, and is needed by nobody unless a snapshot refers to it.
    """

    tenant: str
    blob: Blob
    until_ms: Integer


class SnapshotHeld(Message, frozen=True):
    """A rollout starts sandboxes from this snapshot, or one of its was rolled back to it; until that moment at most.

    It may hold several.
    """

    tenant: str
    digest: str
    rollout: str
    until_ms: Integer


class SnapshotLetGo(Message, frozen=True):
    """A rollout is over."""

    tenant: str
    rollout: str


class SnapshotsSealed(Message, frozen=True):
    """The seals of snapshots that had none, or one of another key: tenant, digest and seal of each."""

    seals: tuple[tuple[str, str, str], ...]


class BuildTemplate(Message, frozen=True):
    """A client wants a template made and called so."""

    id: str
    tenant: str
    name: str
    recipe: Recipe


class BuildBegun(Message, frozen=True):
    """A template is being made for whoever asked under this id; others may wait for the same build."""

    id: str
    key: str


class BuildProgress(Message, frozen=True):
    """How far a build is. `step` is what it does, `line` the last it had to say."""

    key: str
    step: str
    line: str = ""


class TemplateMade(Message, frozen=True):
    """The snapshot service made a template, or could not: `error` then has the failing command's output."""

    key: str
    snapshot: Snapshot | None
    error: str = ""


class TemplateBuilt(Message, frozen=True):
    """What came of a wish for a template. `cached`: it was there already."""

    id: str
    name: str
    snapshot: Snapshot | None
    error: str = ""
    cached: bool = False


class ListSnapshots(Message, frozen=True):
    """A client wants to see its tenant's snapshots."""

    id: str
    tenant: str


class SnapshotsListed(Message, frozen=True):
    """A part of a tenant's snapshots; `more` follow."""

    id: str
    entries: tuple[SnapshotEntry, ...]
    more: bool = False


class PinSnapshot(Message, frozen=True):
    """Keep a snapshot, named by its name or digest, for good; or no longer."""

    id: str
    tenant: str
    snapshot: str
    pinned: bool = True


class RemoveSnapshot(Message, frozen=True):
    """A snapshot, named by its name or digest, is of no use any more: its names go, and it when nothing needs it."""

    id: str
    tenant: str
    snapshot: str


class SnapshotChanged(Message, frozen=True):
    """A wish about a snapshot was fulfilled, or `error` says why not. `needed`: why it is kept nevertheless."""

    id: str
    digest: str
    error: str = ""
    needed: str = ""


class BlobsCollected(Message, frozen=True):
    """These blobs are in the store no longer, or somebody has put them there anew."""

    digests: tuple[str, ...]
