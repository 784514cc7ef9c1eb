"""The local base images: a small Debian with Python, and the same with stand-ins for CUDA's libraries."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import inspect
import subprocess
import tempfile
from pathlib import Path

from image_build import cuda_stubs
from image_build.buildah import Buildah, BuildError

_SUITE = "bookworm"
_PACKAGES = ("ca-certificates", "python3", "python3-venv")
_DOCKERFILE = """\
FROM scratch
ADD rootfs.tar /
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
"""
_DOCKERFILE_WITHOUT_GPU = """\
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
COPY stubs /usr/local/lib/
COPY excluded.txt /etc/uv/excluded.txt
RUN ldconfig
ENV UV_EXCLUDE=/etc/uv/excluded.txt
"""


def plain(buildah: Buildah) -> str:
    image = f"localhost/tandem-e2e/base:{_key(_SUITE, *_PACKAGES, _DOCKERFILE)}"
    if not buildah.has(image):
        with tempfile.TemporaryDirectory(dir=buildah.cache) as name:
            folder = Path(name)
            _bootstrap(folder / "rootfs")
            _run("tar", f"--directory={folder / 'rootfs'}", "-cf", str(folder / "rootfs.tar"), ".")
            (folder / "Dockerfile").write_text(_DOCKERFILE)
            (folder / ".dockerignore").write_text("rootfs\n")
            buildah.build(image, folder / "Dockerfile", folder)
    return image


def without_gpu(buildah: Buildah, plain_image: str) -> str:
    """For `Dockerfile.runtime`, on nodes that have no GPU."""
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        raise BuildError("missing: torch (make setup, then run it with .venv/bin/python)")
    version = importlib.metadata.version("torch")
    recipe = inspect.getsource(cuda_stubs)
    image = f"localhost/tandem-e2e/base-without-gpu:{_key(plain_image, version, recipe, _DOCKERFILE_WITHOUT_GPU)}"
    if not buildah.has(image):
        with tempfile.TemporaryDirectory(dir=buildah.cache) as name:
            folder = Path(name)
            cuda_stubs.build_stubs(Path(torch.origin).parent / "lib", folder / "stubs")
            (folder / "excluded.txt").write_text("".join(f"{wheel}\n" for wheel in cuda_stubs.EXCLUDED))
            (folder / "Dockerfile").write_text(_DOCKERFILE_WITHOUT_GPU)
            buildah.build(image, folder / "Dockerfile", folder, BASE_IMAGE=plain_image)
    return image


def _bootstrap(root: Path) -> None:
    _run("debootstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", _SUITE, str(root))
    for leftover in ("var/cache/apt/archives", "var/lib/apt/lists"):
        for file in (root / leftover).glob("*"):
            if file.is_file():
                file.unlink()


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}:\n{(done.stdout + done.stderr)[-3000:]}")
