"""One OCI archive of several images; the layers they share are in it once."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from image_build.buildah import Buildah

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_MANIFESTS = ".manifest.json"


def write(archive: Path, buildah: Buildah, images: Mapping[str, str]) -> Path:
    """`images`: id by name. Left alone if it holds just these."""
    contents = archive.with_suffix(".json")
    wanted = json.dumps(dict(images), sort_keys=True)
    if archive.exists() and contents.exists() and contents.read_text() == wanted:
        return archive
    blobs = buildah.cache / "blobs"
    manifests = {image_id: _pushed(buildah, image_id, blobs) for image_id in set(images.values())}
    partial = archive.with_suffix(".partial")
    with tarfile.open(partial, "w") as tar:
        for path, source in _members(images, manifests, blobs):
            _add(tar, path, source)
    os.replace(partial, archive)
    contents.write_text(wanted)
    _forget(blobs, manifests)
    return archive


def _pushed(buildah: Buildah, image_id: str, blobs: Path) -> bytes:
    """The image's manifest; its parts are in `blobs` by their hash."""
    manifest = blobs / f"{image_id}{_MANIFESTS}"
    if not manifest.exists():
        blobs.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=buildah.cache) as name:
            # buildah empties the folder that it writes to.
            buildah.push(image_id, Path(name))
            written = (Path(name) / "manifest.json").read_bytes()
            for digest in _referenced(written):
                os.replace(Path(name) / _file_name(digest), blobs / _file_name(digest))
        manifest.write_bytes(written)
    return manifest.read_bytes()


def _members(
    images: Mapping[str, str], manifests: Mapping[str, bytes], blobs: Path
) -> Iterator[tuple[str, bytes | Path]]:
    entries = [
        {
            "mediaType": _MANIFEST,
            "digest": _digest(manifests[image_id]),
            "size": len(manifests[image_id]),
            "annotations": {"io.containerd.image.name": name},
        }
        for name, image_id in images.items()
    ]
    yield "oci-layout", _json({"imageLayoutVersion": "1.0.0"})
    yield "index.json", _json({"schemaVersion": 2, "manifests": entries})
    for manifest in manifests.values():
        yield _blob_path(_digest(manifest)), manifest
    for digest in sorted({digest for manifest in manifests.values() for digest in _referenced(manifest)}):
        yield _blob_path(digest), blobs / _file_name(digest)


def _add(tar: tarfile.TarFile, path: str, source: bytes | Path) -> None:
    member = tarfile.TarInfo(path)
    if isinstance(source, bytes):
        member.size = len(source)
        tar.addfile(member, io.BytesIO(source))
    else:
        member.size = source.stat().st_size
        with source.open("rb") as file:
            tar.addfile(member, file)


def _forget(blobs: Path, manifests: Mapping[str, bytes]) -> None:
    """Blobs of earlier builds."""
    kept = {_file_name(digest) for manifest in manifests.values() for digest in _referenced(manifest)}
    kept |= {f"{image_id}{_MANIFESTS}" for image_id in manifests}
    for file in blobs.iterdir():
        if file.name not in kept:
            file.unlink()


def _referenced(manifest: bytes) -> set[str]:
    parsed: dict[str, Any] = json.loads(manifest)
    return {part["digest"] for part in (parsed["config"], *parsed["layers"])}


def _file_name(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _blob_path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _digest(blob: bytes) -> str:
    return "sha256:" + hashlib.sha256(blob).hexdigest()


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
