"""OCI layouts and docker archives: which layers an image has, and the environment it asks for.

What these files say is a stranger's: a path in them is used only where it leads to a regular file inside.
"""

import hashlib
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shoal_snapshot.images.errors import ImageError

_INDEXES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_LARGEST: Final = 16 * 1024**2  # bytes of a manifest or a configuration
_DEEP: Final = 4
_CHUNK: Final = 4 * 1024**2


@dataclass(frozen=True, slots=True)
class Layout:
    """Archives, the lowest layer first, and the environment of the image's configuration. `digest`: of its manifest."""

    layers: tuple[Path, ...]
    env: tuple[tuple[str, str], ...]
    digest: str


def read(source: str, directory: Path, tag: str = "") -> Layout:
    """Return what an image directory has: an OCI layout, or what `docker save` archives. Raises ImageError."""
    if not directory.is_dir():
        raise ImageError(f"{source}: {directory} is not an existing directory")
    if (directory / "index.json").is_file():
        return _oci(source, directory, tag)
    if (directory / "manifest.json").is_file():
        return _docker(source, directory)
    raise ImageError(f"{source}: it has neither an index.json (OCI layout) nor a manifest.json (docker save)")


def _oci(source: str, directory: Path, tag: str) -> Layout:
    found = _json(source, _inside(source, directory, "index.json"))
    digest = ""
    for _ in range(_DEEP):
        manifests = [each for each in _list(source, found, "manifests") if isinstance(each, dict)]
        if tag:
            names = [each.get("annotations", {}).get("org.opencontainers.image.ref.name") for each in manifests]
            if tag not in names:
                there = ", ".join(sorted(str(name) for name in names if name)) or "none that is tagged"
                raise ImageError(f"{source}: it has no image tagged {tag!r}; there is: {there}")
            manifests = [each for each, name in zip(manifests, names, strict=True) if name == tag]
            tag = ""
        machine = _MACHINES.get(platform.machine(), platform.machine())
        fitting = [
            each for each in manifests if each.get("platform", {}).get("architecture", machine) in (machine, "unknown")
        ]
        if not fitting:
            raise ImageError(f"{source}: it has no image for {machine}")
        if len({each.get("digest") for each in fitting}) > 1 and not fitting[0].get("platform"):
            raise ImageError(f"{source}: it holds several images; name one: {source}:TAG")
        digest = str(fitting[0].get("digest", ""))
        found = _json(source, _blob(source, directory, digest))
        if "manifests" not in found and found.get("mediaType") not in _INDEXES:
            break
    layers = tuple(_blob(source, directory, str(layer.get("digest", ""))) for layer in _list(source, found, "layers"))
    config = _json(source, _blob(source, directory, str(found.get("config", {}).get("digest", ""))))
    return Layout(layers, _env(config), digest.removeprefix("sha256:"))


def _docker(source: str, directory: Path) -> Layout:
    path = _inside(source, directory, "manifest.json")
    images = _json(source, path)
    if not isinstance(images, list) or len(images) != 1 or not isinstance(images[0], dict):
        count = len(images) if isinstance(images, list) else 0
        raise ImageError(f"{source}: it holds {count} images; save one alone")
    layers = tuple(_inside(source, directory, str(name)) for name in _list(source, images[0], "Layers"))
    config = _json(source, _inside(source, directory, str(images[0].get("Config", ""))))
    return Layout(layers, _env(config), hashlib.sha256(path.read_bytes()).hexdigest())


def _blob(source: str, directory: Path, digest: str) -> Path:
    algorithm, _, name = digest.partition(":")
    if algorithm != "sha256" or len(name) != 64 or not set(name) <= set("0123456789abcdef"):
        raise ImageError(f"{source}: {digest!r} is no digest that is known")
    path = _inside(source, directory, f"blobs/sha256/{name}")
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    if found.hexdigest() != name:
        raise ImageError(f"{source}: blob {name[:12]} is not what its name says; it was changed or cut off")
    return path


def _inside(source: str, directory: Path, name: str) -> Path:
    root = directory.resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root) or path == root:
        raise ImageError(f"{source}: {name!r} leads out of the image")
    if not path.is_file():
        raise ImageError(f"{source}: it lacks {name!r}; it is not whole")
    return path


def _json(source: str, path: Path) -> Any:
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"{path.stat().st_size} bytes")
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ImageError(f"{source}: {path.name} cannot be read: {error}") from error


def _list(source: str, found: Any, name: str) -> list[Any]:
    value = found.get(name) if isinstance(found, dict) else None
    if not isinstance(value, list):
        raise ImageError(f"{source}: there is no list of {name} where one must be")
    return value


def _env(config: Any) -> tuple[tuple[str, str], ...]:
    given = config.get("config", {}).get("Env") if isinstance(config, dict) else None
    pairs = [str(each).partition("=") for each in given or ()]
    return tuple((name, value) for name, sign, value in pairs if sign and name.isidentifier())
