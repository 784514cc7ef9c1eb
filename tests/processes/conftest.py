from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from processes.faults import TINY_STEPS
from support.serving import EnginePod, Fleet
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


@pytest.fixture(scope="module")
def reference(fleet: Fleet) -> EnginePod:
    """One process doing both: says what the right text is."""
    pod = fleet.pod("both")
    pod.wait_ready()
    return pod


@pytest.fixture(scope="module")
def pair(fleet: Fleet) -> tuple[EnginePod, EnginePod]:
    prefill = fleet.pod("prefill", handoff_lease_seconds=3.0, **TINY_STEPS)
    decode = fleet.pod("decode", **TINY_STEPS)
    prefill.wait_ready()
    decode.wait_ready()
    return prefill, decode
