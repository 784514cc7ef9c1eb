"""The files of `examples/`, for tests here and on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.name for path in FOLDER.glob("*.yaml"))

Manifest = dict[str, Any]


def manifests(name: str) -> list[Manifest]:
    """Everything in the file, in the order in which kubectl applies it."""
    return [one for one in yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")) if one]


def service(name: str) -> Manifest:
    """The file's only InferenceService."""
    (found,) = (one for one in manifests(name) if one["kind"] == "InferenceService")
    return found
