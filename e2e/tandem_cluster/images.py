"""Container images without a registry: archives written by hand, and imported into every node."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tandem_cluster.errors import ClusterError
from tandem_cluster.node import CONTAINERD_SOCKET
from tandem_cluster.plan import Node, Plan
from tandem_cluster.supervisor import on_host

# Every pod's sandbox, and the smallest container for tests. `localhost/` names no registry.
BOX = "localhost/tandem-e2e/box:1"

_TYPE = "application/vnd.oci.image"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def load(plan: Plan, archive: Path) -> None:
    """Imports an OCI or docker archive into the containerd of every node."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda node: _import(node, archive), plan.nodes))


def write_box_archive(archive: Path, program: Path) -> None:
    """An OCI archive of `BOX`: the static `program` alone, as `/box`."""
    layer = _tar({"box": (program.read_bytes(), 0o755)})
    config = _json(
        {
            "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {"Entrypoint": ["/box"], "Cmd": ["pause"]},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{_TYPE}.manifest.v1+json",
            "config": _descriptor(f"{_TYPE}.config.v1+json", config),
            "layers": [_descriptor(f"{_TYPE}.layer.v1.tar", layer)],
        }
    )
    named = _descriptor(f"{_TYPE}.manifest.v1+json", manifest) | {"annotations": {"io.containerd.image.name": BOX}}
    files = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _json({"schemaVersion": 2, "manifests": [named]}),
        **{f"blobs/sha256/{_digest(blob).removeprefix('sha256:')}": blob for blob in (layer, config, manifest)},
    }
    archive.write_bytes(_tar({path: (content, 0o644) for path, content in files.items()}))


def _import(node: Node, archive: Path) -> None:
    socket = on_host(node, CONTAINERD_SOCKET)
    done = subprocess.run(
        ["ctr", "--address", str(socket), "--namespace", "k8s.io", "images", "import", str(archive)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ClusterError(f"{node.name} cannot import {archive}: {done.stderr.strip()}")


def _tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, (content, mode) in files.items():
            member = tarfile.TarInfo(path)
            member.size, member.mode = len(content), mode
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _digest(blob: bytes) -> str:
    return "sha256:" + hashlib.sha256(blob).hexdigest()


def _descriptor(media_type: str, blob: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": _digest(blob), "size": len(blob)}
