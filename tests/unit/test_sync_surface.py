"""What the synchronous face has to show: to a type checker, to help(), and to who holds two of the same."""

import asyncio
import copy
import inspect
import pickle
import pydoc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import shoal
from architecture.typed import type_checked
from shoal import sync
from shoal.bus.protocol import Bus
from unit.client_fabric import Fabric, all_ready

FACES = [
    (sync.Cluster, shoal.Cluster),
    (sync.Files, shoal.Files),
    (sync.Replay, shoal.Replay),
    (sync.Rollout, shoal.Rollout),
    (sync.Run, shoal.Run),
    (sync.Sandbox, shoal.Sandbox),
]
PROGRAM = """
import shoal

with shoal.connect_sync() as cluster, cluster.rollout("host", n=2) as rollout:
    for sandbox in rollout.ready():
        print(sandbox.run("true").exit_code + sandbox.index, sandbox.rollout.id, rollout.n, sandbox.ended is None)
        {line}
    print(len(rollout.failures), rollout.status().ready, cluster.tenant, cluster.url, rollout.run.upper())
"""


@pytest.fixture
def cluster() -> Iterator[sync.Cluster]:
    def bus() -> Bus:  # called in the client's thread, whose loop the fabric shares
        fabric = Fabric(all_ready)
        asyncio.get_running_loop().create_task(fabric.__aenter__())
        return fabric.connect()

    with shoal.connect_sync(bus=bus) as cluster:
        yield cluster


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ('sandbox.run("true", check=True)', ""),
        ('sandbox.rnu("true")', '"Sandbox" has no attribute "rnu"'),
        ("sandbox.index.upper()", '"int" has no attribute "upper"'),
        ("cluster.node()", '"Cluster" has no attribute "node"'),
    ],
)
def test_a_type_checker_knows_what_is_there(tmp_path: Path, line: str, wrong: str) -> None:
    right, said = type_checked(PROGRAM.format(line=line), tmp_path)
    assert (right, wrong in said) == (not wrong, True), said


@pytest.mark.parametrize(("face", "behind"), FACES, ids=lambda each: each.__name__)
def test_what_is_public_there_is_written_down_here(face: type, behind: type) -> None:
    for name, value in vars(behind).items():
        if isinstance(value, property) and not name.startswith("_"):
            assert isinstance(inspect.getattr_static(face, name), property), name


def test_help_shows_what_a_method_takes_and_gives() -> None:
    for method, behind in ((sync.Sandbox.run, shoal.Sandbox.run), (sync.Cluster.map, shoal.Cluster.map)):
        assert inspect.signature(method) == inspect.signature(behind)
        assert inspect.unwrap(method) is behind
    gives: dict[Callable[..., object], object] = {
        sync.Cluster.rollout: sync.Rollout,
        sync.Cluster.events: Iterator[shoal.Event],
    }
    assert {method: inspect.signature(method).return_annotation for method in gives} == gives
    assert "output_limit: int | str | None = None" in pydoc.plain(pydoc.render_doc(sync.Sandbox.run))


def test_two_faces_of_the_same_are_equal(cluster: sync.Cluster) -> None:
    rollout = cluster.rollout("host", n=2)
    one, other = rollout.ready()
    assert one.rollout == other.rollout == rollout
    assert len({one.rollout, other.rollout, rollout}) == 1
    assert one.files == one.files
    assert one != other
    assert one != one.name


def test_what_a_face_has_is_listed_and_nothing_else_of_it_is_looked_for_behind(cluster: sync.Cluster) -> None:
    rollout = cluster.rollout("host")
    sandbox = next(rollout.ready())
    listed = [name for name in dir(sandbox) if not name.startswith("__")]
    assert {"index", "ready_ms", "run", "files", "rollout"} <= set(listed)
    assert not [name for name in listed if name.startswith("_")]
    assert {"id", "n", "run", "status", "failures"} <= set(dir(rollout))
    for face in (cluster, rollout, sandbox, sandbox.files):
        assert copy.copy(face) is face
        for name in ("rnu", "_link", "__len__"):
            with pytest.raises(AttributeError, match=name):
                getattr(face, name)
        with pytest.raises(TypeError, match=r"hand over rollout\.id"):
            pickle.dumps(face)
