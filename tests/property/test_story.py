"""A sandbox's story beside the sandbox itself, which is lost, sleeps and is kept at any moment."""

import random
from dataclasses import dataclass, field

from hypothesis import given, strategies as st

from shoal.client.story import Story
from shoal.machine import ranges
from shoal.wire.messages import (
    AnyMessage,
    Command,
    CommandFinished,
    CommandResult,
    SandboxesBegan,
    SandboxSaved,
    SandboxSlept,
    Snapshot,
    Step,
)

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["begin", "do", "look"]), st.sampled_from("abcdefgh")),
        st.tuples(st.sampled_from(["end", "keep", "lose", "lose an old one", "sleep"]), st.just("")),
    ),
    max_size=40,
)


@dataclass
class Sandbox:
    """What a sandbox is, and all that is told of it."""

    attempt: int = 0
    number: int = 0
    behind: list[str] = field(default_factory=list)  # steps, in their order
    wrote: list[str] = field(default_factory=list)  # of those, what changed something
    done: set[int] = field(default_factory=set)  # numbers of this attempt
    under_way: list[tuple[str, int]] = field(default_factory=list)
    kept: list[tuple[str, list[str], list[str]]] = field(default_factory=list)
    told: list[AnyMessage] = field(default_factory=list)
    order: dict[str, tuple[int, int]] = field(default_factory=dict)  # of steps that are behind it

    def begin(self, id: str) -> None:
        if id in self.behind or id in [known for known, _ in self.under_way]:
            return  # it is not done twice
        self.number += 1
        self.under_way.append((id, self.number))

    def end(self, *, wrote: bool) -> None:
        if not self.under_way:
            return
        id, number = self.under_way.pop()
        self.behind.append(id)
        self.order[id] = (self.attempt, number)
        if wrote:
            self.wrote.append(id)
        self.done.add(number)
        step = Step(number, 0, "e1", number)
        self.told.append(CommandFinished(id, "r", 0, self.attempt, Command(line=id), CommandResult(0), step))

    def keep(self) -> str:
        digest = "+".join(self.wrote) or "host"  # the same content is the same snapshot
        if digest == "host":
            return digest
        self.kept.append((digest, list(self.behind), list(self.wrote)))
        steps = ranges.collect(self.done)
        self.told.append(SandboxSaved("r", self.attempt, 0, Snapshot(digest, "host"), 0, steps))
        return digest

    def lose(self, back: int) -> None:
        """Go on from the last snapshot, or from one before it that the scheduler heard of last."""
        digest, behind, wrote = self.kept[-min(back, len(self.kept))] if self.kept else ("host", [], [])
        same = [each for each in self.kept if each[0] == digest]
        if same:
            digest, behind, wrote = same[-1]
        self.attempt += 1
        self.number, self.done, self.under_way = 0, set(), []
        self.behind, self.wrote = list(behind), list(wrote)
        self.kept = [each for each in self.kept if set(each[1]) <= set(behind)]
        self.told.append(SandboxesBegan("r", self.attempt, ((0, 1),), "n1", "e1", "zygote", digest))

    def sleep(self) -> None:
        digest = self.keep()
        if self.under_way or digest == "host":
            return
        self.told.append(SandboxSlept("r", self.attempt, 0, "n1", Snapshot(digest, "host")))
        self.lose(1)


@given(OPERATIONS, st.integers(0, 2**32))
def test_the_story_says_what_the_sandbox_has_behind_it(operations: list[tuple[str, str]], seed: int) -> None:
    sandbox = Sandbox()
    for what, id in operations:
        match what:
            case "begin":
                sandbox.begin(id)
            case "do" | "look":
                sandbox.begin(id)
                sandbox.end(wrote=what == "do")
            case "end":
                sandbox.end(wrote=True)
            case "keep":
                sandbox.keep()
            case "sleep":
                sandbox.sleep()
            case _:
                sandbox.lose(1 if what == "lose" else 2)
    source = random.Random(seed)
    told = [*sandbox.told, *source.choices(sandbox.told, k=5)] if sandbox.told else []
    source.shuffle(told)
    story = Story()
    for message in told:
        story.take(message, 0)
    assert story.knows(sandbox.attempt)
    steps = [each.id for each in story.steps(sandbox.attempt)]
    assert sorted(steps) == sorted(sandbox.behind)
    assert steps == sorted(sandbox.behind, key=lambda id: sandbox.order[id])
    for id in "abcdefgh":
        recorded = story.recorded(id, sandbox.attempt)
        assert (recorded is not None) == (id in sandbox.behind)
        assert recorded is None or recorded.place == sandbox.order[id]
