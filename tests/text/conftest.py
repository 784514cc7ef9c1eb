from __future__ import annotations

import os
from pathlib import Path

import pytest
from support import qwen3_tokenizer, tiny_tokenizer
from tandem_runtime.local.cache import cache_root
from tandem_runtime.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tokenizer.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def qwen3_folder() -> Path:
    return qwen3_tokenizer.folder()


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    folder = cache_root(os.environ) / "models" / "SmolLM2-135M-Instruct"
    if not folder.is_dir():
        pytest.skip("needs the demo model in the cache (make demo)")
    return folder


@pytest.fixture(scope="session")
def qwen3(qwen3_folder: Path) -> Tokenizer:
    return Tokenizer(str(qwen3_folder))


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Tokenizer:
    return Tokenizer(str(tiny_folder))
