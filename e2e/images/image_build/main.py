"""`e2e/images/build`: one OCI archive with every image that the cluster tests use."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from image_build import archive, base, store
from image_build.buildah import Buildah, BuildError

ROOT = Path(__file__).resolve().parents[3]
# `localhost/` names no registry.
OPERATOR, RUNTIME, STORE = (f"localhost/tandem-e2e/{name}:1" for name in ("operator", "runtime", "store"))
RUNTIME_AGAIN = "localhost/tandem-e2e/runtime:2"
"""The same image by another name: a rollout to another image."""
_PACKAGES = {"buildah": "buildah", "debootstrap": "debootstrap", "gcc": "gcc", "nm": "binutils"}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="e2e/images/build", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="images.tar is written into it", metavar="OUT_DIR")
    parser.add_argument(
        "--missing-packages", action="store_true", help="only list the Debian packages to install first"
    )
    options = parser.parse_args(arguments)
    if options.missing_packages:
        print(*missing_packages())
        return 0
    if options.folder is None:
        parser.error("OUT_DIR is required")
    try:
        print(build(options.folder))
    except BuildError as error:
        print(f"e2e/images/build: {error}", file=sys.stderr)
        return 1
    return 0


def build(folder: Path) -> Path:
    """The archive; rebuilt only as far as something changed. Raises `BuildError`."""
    _check_requirements()
    cache = cache_folder(os.environ)
    buildah = Buildah(cache)
    plain = base.plain(buildah)
    without_gpu = base.without_gpu(buildah, plain)
    built = {
        OPERATOR: buildah.build(OPERATOR, ROOT / "Dockerfile.operator", ROOT, BASE_IMAGE=plain),
        RUNTIME: buildah.build(RUNTIME, ROOT / "Dockerfile.runtime", ROOT, BASE_IMAGE=without_gpu),
    }
    built[STORE] = store.build(buildah, STORE, OPERATOR)
    built[RUNTIME_AGAIN] = built[RUNTIME]
    written = archive.write(cache / "images.tar", buildah, built)
    buildah.forget_old_steps()
    return _linked(written, folder)


def cache_folder(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("TANDEM_CACHE") or "~/.cache/tandem").expanduser().absolute() / "e2e/images"


def _linked(archive_: Path, folder: Path) -> Path:
    """Another name for the cache's file where that is possible: it has gigabytes."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / archive_.name
    target.unlink(missing_ok=True)
    try:
        os.link(archive_, target)
    except OSError:
        shutil.copyfile(archive_, target)
    return target


def missing_packages() -> list[str]:
    return [package for program, package in _PACKAGES.items() if shutil.which(program) is None]


def _check_requirements() -> None:
    if os.geteuid() != 0:
        raise BuildError("missing: root (chroot and mounts need it)")
    if missing := missing_packages():
        raise BuildError(f"missing: packages (apt-get install --no-install-recommends {' '.join(missing)})")
