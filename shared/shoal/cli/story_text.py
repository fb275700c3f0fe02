"""A story for people: a tree of what followed from what, with many of a kind as one line."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from shoal.archive.happenings import ANSWERS, COMMANDS, Happening, Ref
from shoal.archive.nodes import NodeStory
from shoal.archive.stories import Story
from shoal.archive.words import duration, said, summed

_MOST: Final = 8
"""So many of a kind that follow from the same are told one by one; more are one line."""


@dataclass(frozen=True, slots=True)
class _Row:
    """A line, and what is below it. `group` has one happening, or many of a kind."""

    group: list[Happening]
    text: str
    below: "list[_Row]"

    @property
    def time_ms(self) -> int:
        return self.group[0].time_ms


def lines(story: Story, *, everything: bool = False) -> Iterator[str]:
    """Yield a story's lines; `everything`: each happening has one of its own."""
    tree = _Tree(story, 10**9 if everything else _MOST)
    rows: list[_Row | tuple[int, str]] = list(tree.roots())
    if isinstance(story, NodeStory):
        rows += [
            (silence.since_ms, f"silent for {duration(silence.until_ms - silence.since_ms)}")
            for silence in story.silences
        ]
    yield head(story)
    day = ""
    for row in sorted(rows, key=lambda row: row[0] if isinstance(row, tuple) else row.time_ms):
        began = _clock(row[0] if isinstance(row, tuple) else row.time_ms)
        if began[:10] != day:
            day = began[:10]
            yield day
        if isinstance(row, tuple):
            yield f"{began[11:]}             {row[1]}"
        else:
            yield from tree.lines(row)
    if isinstance(story, NodeStory):
        yield f"last heard of {_clock(story.heard_ms)}"


def head(story: Story) -> str:
    """Return what a story is of, and how long it took."""
    told = [each for each in story.told if not each.context]
    first, last = min(each.time_ms for each in told), max(each.time_ms for each in told)
    what = f"{story.of} {story.name}"
    if isinstance(story, NodeStory):
        what += f", served by {', '.join(story.executors)}"
    elif story.submitted is not None:
        what += f", run {story.submitted.run} of {story.submitted.tenant}"
    return f"{what}: {len(told):,} messages in {duration(last - first)}"


def _clock(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


class _Tree:
    """What follows from what."""

    def __init__(self, story: Story, most: int) -> None:
        self._story = story
        self._known = story.by_ref
        self._most = most
        self._own = story.submitted.rollout if story.submitted is not None else None
        self._below: dict[Ref | None, list[Happening]] = {}
        for each in story.told:
            cause = each.cause if each.cause in self._known else None
            self._below.setdefault(cause, []).append(each)

    def roots(self) -> list[_Row]:
        """Return what has no cause that is told; of a node, each by itself."""
        return self._rows(self._below.get(None, []), 10**9 if self._own is None else self._most)

    def _rows(self, told: Sequence[Happening], most: int) -> list[_Row]:
        kinds: dict[tuple[str, str, bool], list[Happening]] = {}
        for each in told:
            kinds.setdefault((each.kind, getattr(each.message, "op", ""), each.context), []).append(each)
        groups = [part for group in kinds.values() for part in ([group] if len(group) > most else [[e] for e in group])]
        return sorted((self._row(group) for group in groups), key=lambda row: row.time_ms)

    def _row(self, group: list[Happening]) -> _Row:
        below = [each for parent in group for each in self._below.get(parent.ref, [])]
        text = summed(group) if len(group) > 1 else self._said(group[0])
        if isinstance(group[0].message, COMMANDS):
            answers = [each for each in below if isinstance(each.message, ANSWERS)]
            below = [each for each in below if not isinstance(each.message, ANSWERS)]
            text += f": {self._answers(group, answers)}"
        return _Row(group, text, self._rows(below, self._most))

    def _answers(self, group: Sequence[Happening], answers: Sequence[Happening]) -> str:
        if not answers:
            return "no answer"
        silent = len(group) - len({each.cause for each in answers})
        kinds: dict[str, list[Happening]] = {}
        for each in answers:
            kinds.setdefault(each.kind, []).append(each)
        parts = [summed(same) if len(same) > 1 else said(same[0].message) for same in kinds.values()]
        return "; ".join([*parts, *([f"{silent} without an answer"] if silent else [])])

    def _said(self, each: Happening) -> str:
        text = said(each.message)
        rollout = getattr(each.message, "rollout", None)
        if rollout is not None and rollout != self._own:
            text += f" [{rollout}]"
        return f"({text})" if each.context else text

    def lines(self, row: _Row, first: str = "", rest: str = "") -> Iterator[str]:
        """Yield a row and all below it."""
        yield f"{_clock(row.time_ms)[11:]} {self._since(row):>11} {first}{row.text}".rstrip()
        for number, each in enumerate(row.below):
            last = number == len(row.below) - 1
            yield from self.lines(each, rest + ("└ " if last else "├ "), rest + ("  " if last else "│ "))

    def _since(self, row: _Row) -> str:
        """Return how long after its cause it was."""
        causes = [(each, self._known.get(each.cause)) for each in row.group if each.cause is not None]
        after = [max(each.time_ms - cause.time_ms, 0) for each, cause in causes if cause is not None]
        if not after:
            return ""
        low, high = min(after), max(after)
        return f"+{duration(low)}" if low == high else f"+{low}-{high} ms" if high < 10_000 else f"+{duration(high)}"
