"""Times kernels on a GPU beside their floors.

    python kernels/bench/run.py [OP ...] [--sweep]

Without OP: all of them. `--sweep` times other launch parameters of the ops that have a choice, to revise their tables.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

import torch
from measuring import measure

OPS = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in ("run", "measuring"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", metavar="OP", help=", ".join(OPS))
    parser.add_argument("--sweep", action="store_true")
    args = parser.parse_args()
    if unknown := set(args.ops) - set(OPS):
        parser.error(f"no such op: {', '.join(sorted(unknown))}")
    if not torch.cuda.is_available():
        sys.exit("no CUDA device: kernels are timed on a GPU only")
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    for name in args.ops or OPS:
        op = importlib.import_module(name)
        if args.sweep and not hasattr(op, "sweep"):
            continue
        print(f"\n{name}")
        measure(op.sweep() if args.sweep else op.cases())


if __name__ == "__main__":
    main()
