"""Clients of other projects, in an environment of their own in the cache, because they pin an older `openai`."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tandem_runtime.local.cache import cache_root

FOLDER = Path(__file__).parents[1] / "foreign"
_REQUIREMENTS = FOLDER / "requirements.txt"


def answers(script: str, *arguments: str) -> Any:
    """What a script of tests/foreign prints, as JSON."""
    ran = subprocess.run(
        [str(_python()), str(FOLDER / script), *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr[-5000:]
    return json.loads(ran.stdout)


def _python() -> Path:
    """Skips the test where uv is absent."""
    uv = Path(sys.executable).parent / "uv"
    if not uv.is_file():
        pytest.skip("needs uv beside the interpreter (make setup)")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(_REQUIREMENTS.read_bytes() + version.encode()).hexdigest()[:12]
    folder = cache_root(os.environ) / "foreign-clients" / digest
    if not (folder / "complete").is_file():
        _run(uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder))
        _run(uv, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), "-r", str(_REQUIREMENTS))
        (folder / "complete").touch()
    return folder / "bin" / "python"


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=300)
