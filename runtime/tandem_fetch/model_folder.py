"""Whether a folder can be a model at all, before a GPU waits for it."""

from __future__ import annotations

import json
from pathlib import Path

from tandem_fetch.errors import IncompleteSource, NotFound

_INDEX = "model.safetensors.index.json"


def require_shards(folder: Path, name: str) -> None:
    """Raises `IncompleteSource` when the weight index names files that are not there."""
    index = folder / _INDEX
    if not index.is_file():
        return
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):
        raise IncompleteSource(f"{_INDEX} of {name} is not readable", "upload the model again") from None
    missing = sorted(shard for shard in shards if not (folder / shard).is_file())
    if missing:
        raise IncompleteSource(
            f"{name} lacks {len(missing)} of {len(shards)} weight shards, such as {missing[0]}",
            "upload the rest, and check --include and --exclude",
        )


def require_model(folder: Path) -> None:
    """A folder used in place must be a model: config.json and safetensors weights."""
    if not folder.is_dir():
        raise NotFound(f"there is no folder {folder}", "check the path and that its volume is mounted")
    if not (folder / "config.json").is_file():
        raise IncompleteSource(
            f"{folder} has no config.json", "point at the folder that holds config.json and *.safetensors"
        )
    if not any(folder.glob("*.safetensors")):
        raise IncompleteSource(
            f"{folder} has no *.safetensors", "point at the folder that holds config.json and *.safetensors"
        )
    require_shards(folder, str(folder))
