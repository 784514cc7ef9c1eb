from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.serving import Fleet
from support.tiny_models import build_tiny_model


@pytest.fixture(scope="package")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("tiny"), "llama", max_position_embeddings=8192)


@pytest.fixture(scope="package")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the same shape, with other weights."""
    return build_tiny_model(tmp_path_factory.mktemp("other"), "llama", max_position_embeddings=8192, seed=1)


@pytest.fixture(scope="module")
def fleet(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(tiny_model, tmp_path_factory.mktemp("fleet")) as made:
        yield made
