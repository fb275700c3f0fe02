"""Images made into disks, for real: every kind of source, deletions across layers, and what strangers may send."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shoal_snapshot.images.disk import Image, digest_of, make_disk
from shoal_snapshot.images.errors import ImageError
from shoal_snapshot.inspecting import Inspector

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("mkfs.erofs") is None,
        reason="disks are made with mkfs.erofs of erofs-utils, and looked into as root",
    ),
]

Entry = tuple[str, bytes, Any]
DIR, LINK, HARD, CHAR = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE
FILE = tarfile.REGTYPE


def archive(path: Path, entries: Sequence[Entry], mode: str = "w") -> Path:
    """Write a tar of (name, type, content or target)."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]  # one of tarfile's modes
        for name, kind, value in entries:
            info = tarfile.TarInfo(name)
            info.type, info.mtime, info.mode = kind, 1000, 0o755 if kind == DIR else 0o644
            if kind == FILE:
                info.size = len(value)
                tar.addfile(info, io.BytesIO(value))
                continue
            if kind == CHAR:
                info.devmajor, info.devminor = value
            elif kind != DIR:
                info.linkname = value
            tar.addfile(info)
    return path


def layout(directory: Path, layers: Sequence[Sequence[Entry]], env: Sequence[str] = ()) -> Path:
    """Write an OCI layout with one image, tagged v1."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes) -> dict[str, Any]:
        name = hashlib.sha256(data).hexdigest()
        (blobs / name).write_bytes(data)
        return {"digest": f"sha256:{name}", "size": len(data)}

    packed = [put(archive(directory / "layer", layer, "w:gz").read_bytes()) for layer in layers]
    config = put(json.dumps({"config": {"Env": list(env)}}).encode())
    manifest = put(json.dumps({"schemaVersion": 2, "config": config, "layers": packed}).encode())
    tagged = {**manifest, "annotations": {"org.opencontainers.image.ref.name": "v1"}}
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [tagged]}))
    return directory


@contextmanager
def opened(image: Image, place: Path) -> Iterator[Path]:
    """Mount a disk and show what is in it."""
    place.mkdir()
    command = ["mount", "-t", "erofs", "-o", "ro,nodev,nosuid", str(image.disk), str(place)]
    subprocess.run(command, check=True, timeout=30)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True, timeout=30)
        place.rmdir()


def made(source: str, directory: Path) -> Image:
    directory.mkdir(exist_ok=True)
    steps: list[str] = []
    image = make_disk(source, directory, steps.append)
    assert "making the disk" in steps
    assert [path.name for path in directory.iterdir()] == ["disk"]
    return image


def failed(source: str, directory: Path) -> str:
    """Return the error; nothing stays behind."""
    directory.mkdir(exist_ok=True)
    with pytest.raises(ImageError) as error:
        make_disk(source, directory, lambda _: None)
    assert list(directory.iterdir()) == []
    return str(error.value)


LAYERS: list[list[Entry]] = [
    [
        ("a", DIR, 0), ("a/x", FILE, b"1"), ("a/y", FILE, b"2"), ("b", DIR, 0), ("b/z", FILE, b"3"),
        ("l", LINK, "/etc"), ("usr", DIR, 0), ("bin", LINK, "usr"), ("was", DIR, 0), ("was/in", FILE, b"5"),
    ],
    [
        ("a/.wh.x", FILE, b""), ("b/.wh..wh..opq", FILE, b""), ("b/n", FILE, b"4"), ("l", FILE, b"a file now"),
        ("bin/sh", FILE, b"#!"), ("h", HARD, "a/y"), ("was", FILE, b"a file, too"),
    ],
]  # fmt: skip


def test_layers_are_stacked_and_what_one_deletes_is_gone(tmp_path: Path) -> None:
    directory = layout(tmp_path / "oci", LAYERS, ["A=1", "PATH=/usr/bin", "no variable"])
    image = made(f"oci:{directory}:v1", tmp_path / "out")
    assert image.env == (("A", "1"), ("PATH", "/usr/bin"))
    with opened(image, tmp_path / "m") as root:
        there = {str(path.relative_to(root)): path for path in root.rglob("*")}
        assert sorted(there) == ["a", "a/y", "b", "b/n", "bin", "h", "l", "usr", "usr/sh", "was"]
        assert (there["l"].read_text(), there["was"].read_text()) == ("a file now", "a file, too")
        assert there["h"].stat().st_nlink == 2
        assert there["a"].stat().st_mtime == there["a/y"].stat().st_mtime == 1000
    same = made(f"oci:{directory}", tmp_path / "again")
    assert same.disk.read_bytes() == image.disk.read_bytes()
    assert digest_of(f"oci:{directory}") == digest_of(f"oci:{directory}:v1")
    assert "it has no image tagged 'v2'; there is: v1" in failed(f"oci:{directory}:v2", tmp_path / "none")


def test_a_directory_in_the_place_of_a_link_leaves_alone_what_the_link_was_to(tmp_path: Path) -> None:
    below: list[Entry] = [
        ("app", DIR, 0),
        ("app/releases", DIR, 0),
        ("app/releases/main.py", FILE, b"1"),
        ("app/current", LINK, "releases"),
        ("app/old", DIR, 0),
        ("app/old/file", FILE, b"2"),
    ]
    above: list[Entry] = [
        ("app/current", DIR, 0),
        ("app/current/.wh..wh..opq", FILE, b""),
        ("app/current/new", FILE, b"3"),
        ("app/old", DIR, 0),
        ("app/old/.wh..wh..opq", FILE, b""),
    ]
    image = made(f"oci:{layout(tmp_path / 'oci', [below, above])}:v1", tmp_path / "work")
    with opened(image, tmp_path / "mounted") as place:
        found = {str(path.relative_to(place / "app")) for path in (place / "app").rglob("*")}
    assert found == {"releases", "releases/main.py", "current", "current/new", "old"}


def test_an_archive_of_docker_save_a_tar_and_a_directory(tmp_path: Path) -> None:
    inner = [archive(tmp_path / f"layer{number}", layer).read_bytes() for number, layer in enumerate(LAYERS)]
    listed = [{"Config": "c.json", "RepoTags": ["it:1"], "Layers": ["0/layer.tar", "1/layer.tar"]}]
    saved: list[Entry] = [
        ("manifest.json", FILE, json.dumps(listed).encode()),
        ("c.json", FILE, json.dumps({"config": {"Env": ["B=2"]}}).encode()),
        ("0/layer.tar", FILE, inner[0]), ("1/layer.tar", FILE, inner[1]),
    ]  # fmt: skip
    image = made(f"docker-archive:{archive(tmp_path / 'saved.tar', saved)}", tmp_path / "out")
    assert image.env == (("B", "2"),)
    with opened(image, tmp_path / "m") as root:
        assert sorted(path.name for path in root.iterdir()) == ["a", "b", "bin", "h", "l", "usr", "was"]
        copy = tmp_path / "copy"
        shutil.copytree(root, copy, symlinks=True)
    with opened(made(f"dir:{copy}", tmp_path / "of-dir"), tmp_path / "m") as root:
        assert (root / "b" / "n").read_text() == "4"
        assert os.readlink(root / "bin") == "usr"
    packed = archive(tmp_path / "plain.tar.xz", LAYERS[0], "w:xz")
    with opened(made(f"tar:{packed}", tmp_path / "of-tar"), tmp_path / "m") as root:
        assert (root / "a" / "x").read_text() == "1"


def test_nothing_reaches_out_of_an_image(tmp_path: Path) -> None:
    target = tmp_path / "outside"
    target.mkdir()
    (target / "victim").write_text("unharmed")
    hostile: list[Entry] = [
        ("../../../../../../../../escaped", FILE, b"x"), ("/absolute", FILE, b"y"), ("out", LINK, str(target)),
        ("dev", DIR, 0), ("dev/mem", CHAR, (1, 1)), (".wh...", FILE, b""),
        ("deep/.wh.victim", FILE, b""),
    ]  # fmt: skip
    for number, entries in enumerate((hostile[:5], [*hostile[2:3], ("out/.wh.victim", FILE, b"")])):
        directory = layout(tmp_path / f"oci{number}", [entries])
        with opened(made(f"oci:{directory}", tmp_path / f"out{number}"), tmp_path / "m") as root:
            assert not (root / "dev" / "mem").exists()
            if not number:
                assert (root / "escaped").read_text() == "x"  # inside, where .. of the root is the root
                assert (root / "absolute").read_text() == "y"
        assert {path.name: path.read_text() for path in target.iterdir()} == {"victim": "unharmed"}
    planted: list[Entry] = [("out", LINK, str(target)), ("out/planted", FILE, b"z")]
    assert "out" in failed(f"oci:{layout(tmp_path / 'planted', [planted])}", tmp_path / "none")
    assert [path.name for path in target.iterdir()] == ["victim"]
    says = failed(f"oci:{layout(tmp_path / 'climbs', [hostile[5:6]])}", tmp_path / "none")
    assert "deletes nothing that can be deleted" in says
    away, linked = (
        json.dumps([{"Config": "c.json", "Layers": [name]}]).encode() for name in ("../../../etc/passwd", "l.tar")
    )
    pointing: list[Entry] = [("manifest.json", FILE, linked), ("c.json", FILE, b"{}"), ("l.tar", LINK, "/etc/passwd")]
    climbing: list[Entry] = [("manifest.json", FILE, away), ("c.json", FILE, b"{}")]
    for number, strange in enumerate((climbing, pointing)):
        source = f"docker-archive:{archive(tmp_path / f'{number}.tar', strange)}"
        assert "leads out of the image" in failed(source, tmp_path / "none")


def test_what_is_not_whole_is_said(tmp_path: Path) -> None:
    directory = layout(tmp_path / "oci", LAYERS)
    source = f"oci:{directory}"
    blobs = sorted((directory / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    whole = blobs[-1].read_bytes()
    for damaged in (whole[:-10], b"x" + whole[1:]):
        blobs[-1].write_bytes(damaged)
        assert "is not what its name says" in failed(source, tmp_path / "out")
    blobs[-1].unlink()
    assert "it is not whole" in failed(source, tmp_path / "out")
    cut = archive(tmp_path / "whole.tar", [("large", FILE, os.urandom(100_000))]).read_bytes()[:50_000]
    (tmp_path / "cut.tar").write_bytes(cut)
    assert "cut.tar" in failed(f"tar:{tmp_path / 'cut.tar'}", tmp_path / "out")
    assert "not an existing file" in failed(f"tar:{tmp_path / 'absent.tar'}", tmp_path / "out")
    assert "not an existing directory" in failed(f"dir:{tmp_path / 'absent'}", tmp_path / "out")
    assert "absent is not an existing directory" in failed(f"oci:{tmp_path / 'absent'}:v1", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert "neither an index.json" in failed(f"oci:{tmp_path / 'empty'}", tmp_path / "out")
    (tmp_path / "empty" / "index.json").write_text("{")
    assert "index.json cannot be read" in failed(f"oci:{tmp_path / 'empty'}", tmp_path / "out")


@pytest.mark.parametrize("field", ["platform", "annotations"])
def test_an_index_with_nothing_where_something_is_due_is_an_answer(tmp_path: Path, field: str) -> None:
    directory = layout(tmp_path / "oci", [[("a", FILE, b"1")]])
    index = json.loads((directory / "index.json").read_text())
    index["manifests"][0][field] = None
    (directory / "index.json").write_text(json.dumps(index))
    source = f"oci:{directory}:v1"
    assert Inspector().inspect(source).template == source


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", place], check=True, timeout=30)
    try:
        packed = archive(tmp_path / "large.tar", [("large", FILE, os.urandom(3 * 1024**2))])
        directory = tmp_path / "large"
        directory.mkdir()
        (directory / "file").write_bytes(os.urandom(3 * 1024**2))
        for source in (f"tar:{packed}", f"dir:{directory}"):
            assert "there is no room left" in failed(source, place / "out")
    finally:
        subprocess.run(["umount", place], check=True, timeout=30)


def test_a_missing_tool_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "root").mkdir()
    assert "install erofs-utils" in failed(f"dir:{tmp_path / 'root'}", tmp_path / "out")
    assert "install skopeo" in failed("docker://example.org/it:1", tmp_path / "out")
