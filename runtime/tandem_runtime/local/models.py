"""What `--model` may say: `demo`, a folder, or ORG/NAME of a hub."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tandem_contract.fetch_flags import FetchFlags
from tandem_contract.flags import to_argv

from tandem_runtime.core.errors import StartupError
from tandem_runtime.local.child import tethered
from tandem_runtime.local.demo_model import demo_model

DEMO = "demo"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve_model(model: str, cache: Path, *, launcher: tuple[str, ...]) -> Path:
    """The model's folder, fetched first where need be. Raises `StartupError`."""
    if model == DEMO:
        return demo_model(cache)
    folder = Path(model).expanduser()
    if folder.exists():
        if not (folder / "config.json").is_file():
            raise StartupError(f"{model} holds no config.json; point --model at a Hugging Face model folder")
        return folder.absolute()
    if HUB_ID.fullmatch(model):
        return _from_hub(model, cache, launcher)
    raise StartupError(f"there is no folder {model}; --model takes a folder, ORG/NAME of a hub, or {DEMO!r}")


def weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _from_hub(repo: str, cache: Path, launcher: tuple[str, ...]) -> Path:
    destination = cache / "models" / repo
    flags = FetchFlags(uri=f"hf://{repo}", destination=str(destination), max_attempts=2)
    print(f"{repo} is no folder here; asking the hub for it", file=sys.stderr, flush=True)
    if subprocess.run(tethered([*launcher, "fetch", *to_argv(flags)]), check=False).returncode != 0:
        raise StartupError(
            f"could not fetch {repo}: the line above says why; where no hub is in reach, copy the model here "
            "by other means and pass its folder"
        )
    return destination
