"""Wheels of what a machine with torch and transformers, and without network, may lack for run.py.

    python benchmarks/gpu/wheels.py DIR [--python 3.12]

There: `python3 -m pip install --no-index --no-deps --target SITE DIR/*.whl`, and SITE in PYTHONPATH. About 7 MB, of the
versions in constraints.txt.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
NAMES = (
    *("orjson", "msgspec", "pydantic", "pydantic-core", "annotated-types", "typing-inspection", "pyzmq"),
    *("llguidance", "setproctitle", "pytest-asyncio", "gguf"),
)
OLDEST_TO_NEWEST_GLIBC = range(17, 40)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--python", default="3.12")
    args = parser.parse_args()
    lines = [line.split(" ;")[0].strip() for line in CONSTRAINTS.read_text().splitlines()]
    pinned = dict(line.split("==") for line in lines if "==" in line)
    platforms = [f"--platform=manylinux_2_{n}_x86_64" for n in OLDEST_TO_NEWEST_GLIBC]
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--implementation=cp"]
    wanted = [f"{name}=={pinned[name]}" for name in NAMES]
    subprocess.run(
        [*pip, f"--python-version={args.python}", *platforms, "--platform=manylinux1_x86_64",
         "--platform=manylinux2014_x86_64", f"--dest={args.folder}", *wanted],
        check=True,
    )  # fmt: skip


if __name__ == "__main__":
    main()
