"""Templates being made: each once, however many ask, and again only when its source or its recipe is another."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from shoal.machine.core import Effect, Inspect, Make, Publish
from shoal.wire import subjects
from shoal.wire.messages import BuildBegun, BuildTemplate, Recipe, Snapshot, TemplateBuilt

_TEMPLATE = "template:"


@dataclass(slots=True)
class Build:
    """One that is under way: `base` is what is at its source. `askers` are who asked, in the order they did."""

    tenant: str
    recipe: Recipe
    base: Snapshot
    askers: dict[str, str] = field(default_factory=dict)  # id: name


class Dumped(msgspec.Struct, frozen=True, array_like=True):
    """Builds in a checkpoint. Orders are kept, so that equal states are equal bytes."""

    looking: list[tuple[str, list[BuildTemplate]]]
    under_way: list[tuple[str, str, Recipe, Snapshot, list[tuple[str, str]]]]
    made: list[tuple[str, str]]


class Builds:
    """See the module. `find` looks a name up in the catalogue, `has` tells whether a tenant has a digest still."""

    def __init__(
        self, find: Callable[[str, str], tuple[Snapshot | None, str]], has: Callable[[str, str], bool]
    ) -> None:
        self._find = find
        self._has = has
        self._looking: dict[str, list[BuildTemplate]] = {}  # by source
        self._under_way: dict[str, Build] = {}
        self._made: dict[str, str] = {}  # by key: the digest of what came of it

    def ask(self, asked: BuildTemplate) -> tuple[list[Effect], Snapshot | None]:
        """Take a wish for a template; returns what follows, and what it was where it is there already."""
        source = asked.recipe.source
        if any(each.id == asked.id for waiting in self._looking.values() for each in waiting) or any(
            asked.id in build.askers for build in self._under_way.values()
        ):
            return [], None
        if source.startswith(_TEMPLATE):
            base, error = self._find(asked.tenant, source.removeprefix(_TEMPLATE))
            if base is None:
                return [told(asked.tenant, asked.id, asked.name, None, f"source: {error}")], None
            return self._begin(asked, base)
        known = source in self._looking
        self._looking.setdefault(source, []).append(asked)
        return [] if known else [Inspect(source)], None

    def looked(self, source: str, base: Snapshot | None, error: str) -> tuple[list[Effect], list[BuildTemplate]]:
        """Take what is at a source; returns what follows, and the wishes that are fulfilled by what is there."""
        effects: list[Effect] = []
        cached: list[BuildTemplate] = []
        for asked in self._looking.pop(source, ()):
            if base is None:
                effects.append(told(asked.tenant, asked.id, asked.name, None, f"source: {error}"))
                continue
            more, found = self._begin(asked, base)
            effects += more
            if found is not None:
                cached.append(asked)
        return effects, cached

    def _begin(self, asked: BuildTemplate, base: Snapshot) -> tuple[list[Effect], Snapshot | None]:
        key = key_of(asked.tenant, asked.recipe, base)
        digest = self._made.get(key)
        if digest is not None and self._has(asked.tenant, digest):
            return [], self._find(asked.tenant, f"snapshot:{digest}")[0]
        build = self._under_way.get(key)
        effects: list[Effect] = []
        if build is None:
            build = self._under_way[key] = Build(asked.tenant, asked.recipe, base)
            effects.append(Make(key, asked.tenant, asked.recipe, base))
        build.askers[asked.id] = asked.name
        begun = BuildBegun(asked.id, key)
        return [Publish(subjects.snapshot(asked.tenant, "answer"), begun), *effects], None

    def made_of(self, asked: BuildTemplate, base: Snapshot) -> str:
        """Return the digest of what was made of this before."""
        return self._made[key_of(asked.tenant, asked.recipe, base)]

    def finish(self, key: str, snapshot: Snapshot | None) -> Build | None:
        """Take what came of a build; returns it, unless it is not under way any more."""
        build = self._under_way.pop(key, None)
        if build is not None and snapshot is not None:
            self._made[key] = snapshot.digest
            if len(self._made) > 2 * len(self._under_way) + 1024:
                del self._made[next(iter(self._made))]
        return build

    def outstanding(self) -> Sequence[Effect]:
        """Return what is being looked at and made."""
        making = [Make(key, build.tenant, build.recipe, build.base) for key, build in self._under_way.items()]
        return [*(Inspect(source) for source in self._looking), *making]

    def dump(self) -> Dumped:
        """Return it as data."""
        under_way = [(key, b.tenant, b.recipe, b.base, list(b.askers.items())) for key, b in self._under_way.items()]
        return Dumped(list(self._looking.items()), under_way, list(self._made.items()))

    def load(self, dumped: Dumped) -> None:
        """Take over what was dumped."""
        self._looking = {source: list(waiting) for source, waiting in dumped.looking}
        self._under_way = {
            key: Build(tenant, recipe, base, dict(askers)) for key, tenant, recipe, base, askers in dumped.under_way
        }
        self._made = dict(dumped.made)

    def check(self) -> None:
        """Assert that somebody waits for each."""
        assert all(self._looking.values())
        assert all(build.askers for build in self._under_way.values())


def key_of(tenant: str, recipe: Recipe, base: Snapshot) -> str:
    """Return what a template is made of and how, as one digest: not where the source is, but what is there."""
    how = msgspec.structs.replace(recipe, source="", resources=Recipe("").resources, timeout_ms=0)
    content = (tenant, how, base.digest, base.kind, base.env)
    return hashlib.sha256(msgspec.msgpack.encode(content)).hexdigest()


def told(
    tenant: str, id: str, name: str, snapshot: Snapshot | None, error: str = "", *, cached: bool = False
) -> Publish:
    """Return the answer to a wish for a template."""
    return Publish(subjects.snapshot(tenant, "answer"), TemplateBuilt(id, name, snapshot, error, cached))
