"""What a file holds so far: kept by whoever writes one, and found again by whoever reads one without an end."""

from dataclasses import dataclass, field
from typing import Final

from shoal.archive import records
from shoal.archive.records import Entry, Footer, Group, Header, Missing, Part

_MOST_ENTRIES: Final = 1024
_MOST_PARTS: Final = 4096


@dataclass(slots=True)
class Account:
    """The blocks of a file. `entries` are those since the last index block; what is before is only in `groups`."""

    entries: list[Entry] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    totals: dict[str, Part] = field(default_factory=dict)
    saved: list[Entry] = field(default_factory=list)
    values: list[Entry] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    positions: dict[str, int] = field(default_factory=dict)
    newest_ms: int = 0
    blocks: int = 0
    _parts: int = 0

    @property
    def index_due(self) -> bool:
        """Whether so much came since the last index block that it is time for one."""
        return len(self.entries) >= _MOST_ENTRIES or self._parts >= _MOST_PARTS

    def add(self, entry: Entry) -> None:
        """Count a block in."""
        summary = entry.summary
        if entry.kind == records.MESSAGES:
            self.entries.append(entry)
            self.blocks += 1
            self._parts += len(summary.parts)
        elif entry.kind == records.CHECKPOINT:
            self.saved.append(entry)
        elif entry.kind == records.VALUES:
            self.values.append(entry)
        self.missing += summary.missing
        for part in summary.parts:
            known = self.totals.get(part.stream)
            self.totals[part.stream] = part if known is None else known.joined(part)
            self.positions[part.stream] = part.last
            self.newest_ms = max(self.newest_ms, part.last_ms)
        for gap in summary.missing:
            self.positions[gap.stream] = max(gap.last, self.positions.get(gap.stream, 0))

    def index(self, offset: int, size: int) -> None:
        """Note that an index block has all entries; from now on it alone does."""
        parts: dict[str, Part] = {}
        for entry in self.entries:
            for part in entry.summary.parts:
                parts[part.stream] = parts[part.stream].joined(part) if part.stream in parts else part
        self.groups.append(Group(offset, size, tuple(parts.values())))
        self.entries = []
        self._parts = 0

    def footer(self, packed: int) -> Footer:
        """Return all of it as a file's last block has it."""
        return Footer(
            totals=tuple(self.totals[name] for name in sorted(self.totals)),
            missing=tuple(self.missing), saved=tuple(self.saved), values=tuple(self.values), groups=tuple(self.groups),
            positions=dict(sorted(self.positions.items())), newest_ms=self.newest_ms,
            blocks=self.blocks, packed=packed,
        )  # fmt: skip

    @classmethod
    def after(cls, header: Header) -> "Account":
        """Return what there is behind a file's header: nothing, and what came before it in its series."""
        return cls(positions=dict(header.positions), newest_ms=header.newest_ms)

    @classmethod
    def of(cls, footer: Footer) -> "Account":
        """Return what a footer tells."""
        return cls(
            groups=list(footer.groups), totals={part.stream: part for part in footer.totals},
            saved=list(footer.saved), values=list(footer.values), missing=list(footer.missing),
            positions=dict(footer.positions), newest_ms=footer.newest_ms, blocks=footer.blocks,
        )  # fmt: skip
