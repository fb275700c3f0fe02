"""Where the roots of templates are kept: within one directory, and each by what it is made of."""

import tarfile
from pathlib import Path

import msgspec
import pytest

from shoal.wire.messages import Blob, Snapshot
from shoal_executor.drivers import roots
from shoal_executor.drivers.protocol import BadInputError
from shoal_executor.drivers.roots import key_of, root_of

HOST = Snapshot("host", "host")


@pytest.fixture(autouse=True)
def _no_copy_of_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roots, "host_root", Path.mkdir)


@pytest.mark.parametrize("field", ["digest", "template"])
@pytest.mark.parametrize("climb", ["x/../../../victim", "/../../../victim", "../victim", "", ".", "/"])
def test_what_a_digest_says_leads_nowhere(tmp_path: Path, climb: str, field: str) -> None:
    victim, state = tmp_path / "victim", tmp_path / "node" / "state"
    victim.mkdir()
    (victim / "precious").touch()
    (state / "images" / "host-x").mkdir(parents=True)
    (state / "images" / "of-another").mkdir()
    snapshot = msgspec.structs.replace(Snapshot("x", "host"), **{field: climb})
    target, _ = root_of(snapshot, state)
    assert target.resolve().parent == (state / "images").resolve()
    assert (victim / "precious").exists()
    assert (state / "images" / "of-another").exists()


@pytest.mark.parametrize("digest", ["", "..", "/", "0" * 64])
def test_an_archive_is_unpacked_into_a_directory_of_its_own(tmp_path: Path, digest: str) -> None:
    found = set()
    for name in ("mine", "yours"):
        (tmp_path / name).write_text(name)
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            tar.add(tmp_path / name, "whose")
        target, _ = root_of(Snapshot(digest, "tar", str(tmp_path / f"{name}.tar")), tmp_path / "state")
        assert (target / "whose").read_text() == name
        assert target.parent == tmp_path / "state" / "images"
        found.add(target)
    assert len(found) == 2


def test_the_hosts_own_root_is_made_anew_in_its_place(tmp_path: Path) -> None:
    first, usr = root_of(HOST, tmp_path)
    (first / "old").touch()
    assert (first, usr) == (tmp_path / "images/host", "/usr")
    assert root_of(HOST, tmp_path)[0] == first
    assert list(first.iterdir()) == []
    assert root_of(msgspec.structs.replace(HOST, env=(("A", "b"),)), tmp_path)[0] != first  # its digest lies


def test_a_template_goes_by_what_is_made_of_it() -> None:
    disk = Blob("d" * 64, 9)
    made = Snapshot("a" * 64, "disk", disks=(disk,))
    grown = Snapshot("b" * 64, "disk", disks=(disk,), layers=(Blob("e" * 64, 9),), parent="c", template=made.digest)
    assert key_of(made) == key_of(grown)
    others = [
        msgspec.structs.replace(made, digest="c" * 64),
        msgspec.structs.replace(made, disks=(Blob("f" * 64, 9),)),
        msgspec.structs.replace(made, kind="dir", path="/a", disks=()),
        msgspec.structs.replace(made, warm="import os"),
        msgspec.structs.replace(made, env=(("A", "b"),)),
        msgspec.structs.replace(grown, template="g" * 64),
    ]
    keys = [key_of(each) for each in (made, *others)]
    assert len(set(keys)) == len(keys)
    assert all(key.isalnum() for key in keys)


@pytest.mark.parametrize("name", ["elsewhere", "templates/../elsewhere", "templates/out", "templates-too", ""])
def test_a_directory_or_an_archive_is_taken_only_from_where_the_executor_says(tmp_path: Path, name: str) -> None:
    for each in ("templates", "templates-too", "elsewhere"):
        (tmp_path / each).mkdir()
    (tmp_path / "templates" / "out").symlink_to(tmp_path / "elsewhere")
    allowed = (tmp_path / "templates",)
    for kind in ("dir", "tar"):
        with pytest.raises(BadInputError, match=r"only from below .*/templates; see --template-roots"):
            root_of(Snapshot("x", kind, str(tmp_path / name)), tmp_path / "state", allowed)
    with pytest.raises(BadInputError, match="from no directory; see --template-roots"):
        root_of(Snapshot("x", "dir", str(tmp_path)), tmp_path / "state", ())


def test_what_is_below_a_directory_that_the_executor_says_is_taken(tmp_path: Path) -> None:
    (tmp_path / "templates" / "one").mkdir(parents=True)
    (tmp_path / "linked").symlink_to(tmp_path / "templates")
    for allowed in ((tmp_path / "linked",), (tmp_path / "none", tmp_path / "templates" / "one"), roots.ANYWHERE):
        for path in ("templates/one", "linked/one"):
            found, usr = root_of(Snapshot("x", "dir", str(tmp_path / path)), tmp_path / "state", allowed)
            assert (found, usr) == (tmp_path / "templates" / "one", "")
