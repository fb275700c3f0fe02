"""The snapshot catalogue under any order of messages: each question is answered once, also by a copy."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shoal.machine.core import Cause, Inspect, Publish
from shoal.wire import messages as m
from shoal_snapshot.core import SnapshotCore

templates = st.sampled_from(["host", "dir:/a", "tar:/b"])


class Catalogue(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.core, self.twin = SnapshotCore(), SnapshotCore()
        self.sequence = 0
        self.waiting: set[tuple[int, str, str]] = set()

    def fold(self, message: Any) -> list[Any]:
        self.sequence += 1
        cause = Cause("S", self.sequence, self.sequence)
        effects = self.core.handle(message, cause)
        assert list(self.twin.handle(message, cause)) == list(effects)
        return list(effects)

    @rule(cell=st.integers(0, 1), tenant=st.sampled_from(["t", "u"]), template=templates)
    def ask(self, cell: int, tenant: str, template: str) -> None:
        asked_before = any(each[2] == template for each in self.waiting)
        assert self.fold(m.ResolveTemplate(cell, tenant, template)) == ([] if asked_before else [Inspect(template)])
        self.waiting.add((cell, tenant, template))

    @rule(template=templates, found=st.booleans())
    def look(self, template: str, found: bool) -> None:
        told = m.TemplateInspected(template, m.Snapshot("d", "host") if found else None, "" if found else "no")
        answers = self.fold(told)
        assert all(isinstance(each, Publish) for each in answers)
        asked = {each for each in self.waiting if each[2] == template}
        assert {(int(e.subject.split(".")[2]), e.message.tenant, e.message.template) for e in answers} == asked
        assert len(answers) == len(asked)
        self.waiting -= asked

    @rule()
    def restart(self) -> None:
        self.twin = SnapshotCore()
        self.twin.load(self.core.dump())

    @invariant()
    def lawful(self) -> None:
        self.core.check()
        assert self.core.dump() == self.twin.dump()
        assert list(self.core.outstanding()) == list(self.twin.outstanding())
        assert {effect.template for effect in self.core.outstanding()} == {each[2] for each in self.waiting}  # type: ignore[union-attr]  # all are Inspect


TestCatalogue = Catalogue.TestCase
TestCatalogue.settings = settings(max_examples=50, stateful_step_count=20, deadline=None)
