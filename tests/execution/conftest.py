from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_models import Family, build_tiny_model


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny(family, **overrides): the folder of a tiny checkpoint, built once per session."""
    built: dict[str, Path] = {}

    def get(family: Family, **overrides: Any) -> Path:
        key = f"{family} {sorted(overrides.items())}"
        if key not in built:
            built[key] = build_tiny_model(tmp_path_factory.mktemp(family), family, **overrides)
        return built[key]

    return get
