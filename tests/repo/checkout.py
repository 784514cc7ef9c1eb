"""The tracked files of this checkout."""

import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]


@cache
def tracked() -> tuple[Path, ...]:
    """Relative paths; files deleted but not yet committed left out."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return tuple(path for path in map(Path, listed.split("\0")) if (ROOT / path).is_file())


def text_of(path: Path) -> str:
    return (ROOT / path).read_text(errors="replace")


def pages() -> list[Path]:
    """The Markdown files."""
    return [path for path in tracked() if path.suffix == ".md"]
