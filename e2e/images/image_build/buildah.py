"""buildah, with its storage in our cache; every layer that did not change is taken from there."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_UNNAMED_IMAGES = 16
"""Ends of chains of steps that are kept to build upon; a build of everything leaves two or three."""
_INDEX_VARIABLES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")


class BuildError(Exception):
    """An image cannot be built; the message says what failed and ends with its last output."""


class Buildah:
    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self._global = (
            f"--root={cache / 'storage'}", "--runroot=/run/tandem-e2e-images", "--storage-driver=overlay",
        )  # fmt: skip
        # RUN --mount=type=cache lies under TMPDIR.
        self._temporary = cache / "tmp"
        self._temporary.mkdir(parents=True, exist_ok=True)

    def has(self, image: str) -> bool:
        return self._call("inspect", "--type=image", image, check=False).returncode == 0

    def build(self, image: str, dockerfile: Path, context: Path, **arguments: str) -> str:
        """The image's id."""
        given = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        with _package_index() as mounts:
            done = self._call(
                "build", "--isolation=chroot", "--layers", "--pull=never", "--quiet", f"--tag={image}",
                f"--file={dockerfile}", *given, *mounts, str(context),
            )  # fmt: skip
        return done.stdout.split()[-1]

    def push(self, image_id: str, folder: Path) -> None:
        """Makes `folder` hold manifest.json and, by their hash, the configuration and uncompressed layers."""
        self._call("push", "--format=oci", "--disable-compression", "--quiet", image_id, f"dir:{folder}")

    def forget_old_steps(self) -> None:
        """Bounds what earlier builds left. Nothing while there are few of them: without its steps a build is slow."""
        unnamed = self._call("images", "--all", "--quiet", "--filter=dangling=true").stdout.split()
        if len(unnamed) > _UNNAMED_IMAGES:
            self._call("rmi", "--prune", "--force")

    def _call(self, command: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"TMPDIR": str(self._temporary)}
        done = subprocess.run(
            ["buildah", *self._global, command, *arguments], capture_output=True, text=True, env=environment
        )
        if check and done.returncode:
            raise BuildError(f"buildah {command} {' '.join(arguments)}:\n{(done.stdout + done.stderr)[-3000:]}")
        return done


@contextmanager
def _package_index() -> Iterator[list[str]]:
    """Mounts that give RUN steps this machine's package index and certificates; the image keeps nothing of them."""
    sources = {"/etc/ssl/certs/ca-certificates.crt": _CERTIFICATES, "/etc/pip.conf": Path("/etc/pip.conf")}
    index = next((os.environ[name] for name in _INDEX_VARIABLES if os.environ.get(name)), None)
    with tempfile.TemporaryDirectory() as name:
        if index:
            folder = Path(name)
            sources["/etc/pip.conf"] = folder / "pip.conf"
            sources["/etc/pip.conf"].write_text(f"[global]\nindex-url = {index}\n")
            sources["/etc/uv/uv.toml"] = folder / "uv.toml"
            sources["/etc/uv/uv.toml"].write_text(f'[[index]]\nurl = "{index}"\ndefault = true\n')
        yield [f"--volume={source}:{target}:ro" for target, source in sources.items() if source.exists()]
