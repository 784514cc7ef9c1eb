"""Everything that is measured on a GPU, part by part: each in a process and a time box of its own.

    python benchmarks/gpu/run.py [PART ...] [--out DIR] [--again] [--list]

A part leaves DIR/PART.log and DIR/PART.json; one that has already succeeded is left out (unless `--again`), so that a
run that was cut off goes on where it stopped. After each part DIR/results.md is written anew: tables for
docs/performance.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]


class Part(NamedTuple):
    argv: tuple[str, ...]
    seconds: int
    """After which it is ended; what it printed until then counts."""
    title: str


def _steps(model: str, *flags: str) -> tuple[str, ...]:
    return (str(HERE / "steps.py"), model, *flags)


FP8 = ("--quantization=fp8", "--kv-cache-dtype=fp8")
PARTS = {
    "fidelity": Part((str(HERE / "fidelity.py"),), 180, "Logits on the GPU against the CPU's"),
    "steps-32b": Part(_steps("Qwen3-32B"), 400, "Qwen3-32B, steps"),
    "steps-32b-fp8": Part(_steps("Qwen3-32B", *FP8), 400, "Qwen3-32B fp8, steps"),
    "steps-30b-a3b": Part(_steps("Qwen3-30B-A3B"), 400, "Qwen3-30B-A3B, steps"),
    "steps-235b-tp8": Part(_steps("Qwen3-235B-A22B-TP8"), 500, "One of eight ranks of Qwen3-235B-A22B, steps"),
    "server-32b": Part((str(HERE / "server.py"), "Qwen3-32B"), 590, "Qwen3-32B, whole server"),
    "server-32b-fp8": Part((str(HERE / "server.py"), "Qwen3-32B", *FP8), 590, "Qwen3-32B fp8, whole server"),
    "server-30b-a3b": Part((str(HERE / "server.py"), "Qwen3-30B-A3B"), 590, "Qwen3-30B-A3B, whole server"),
    "peer": Part((str(HERE / "peer.py"),), 500, "Against transformers' continuous batching"),
    "kernels": Part((str(REPOSITORY / "kernels/bench/run.py"),), 500, "Kernels"),
}


def main() -> None:
    args = _arguments()
    if args.list:
        for name, part in PARTS.items():
            print(f"{name:16} at most {part.seconds} s   {part.title}")
        return
    if unknown := set(args.parts) - set(PARTS):
        sys.exit(f"no such part: {', '.join(sorted(unknown))}; --list shows them")
    args.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in args.parts or PARTS:
        if _done(args.out, name) and not args.again:
            print(f"{name}: measured before, see {args.out / name}.log")
        elif not _run(name, args.out):
            failed.append(name)
        (args.out / "results.md").write_text(report(args.out))
    print(f"\n{args.out / 'results.md'}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; each one's log is in {args.out}")


def _run(name: str, out: Path) -> bool:
    part = PARTS[name]
    print(f"{name}: {part.title}", flush=True)
    began = time.monotonic()
    lines: list[str] = []
    command = ["timeout", "--signal=TERM", "--kill-after=10", str(part.seconds), sys.executable, *part.argv]
    with (out / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            log.flush()
            lines.append(line)
            print("  " + line, end="", flush=True)
    status = process.wait()
    result = {
        "part": name,
        "title": part.title,
        "argv": [Path(part.argv[0]).name, *part.argv[1:]],
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began, 1),
        "status": status,
        "cases": [json.loads(line) for line in lines if line.startswith("{")],
        "text": [line.rstrip() for line in lines if not line.startswith("{")][-80:],
    }
    (out / f"{name}.json").write_text(json.dumps(result, indent=1))
    return status == 0


def _done(out: Path, name: str) -> bool:
    path = out / f"{name}.json"
    return path.exists() and json.loads(path.read_text())["status"] == 0


def report(out: Path) -> str:
    """Markdown of every part that left a result."""
    blocks = []
    for name in PARTS:
        path = out / f"{name}.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text())
        state = "" if found["status"] == 0 else f", **ended with status {found['status']}**"
        blocks.append(
            f"### {found['title']}\n`{' '.join(found['argv'])}`, {found['when']}, {found['seconds']} s{state}\n"
        )
        blocks.append(_table(found["cases"]) if found["cases"] else "```\n" + "\n".join(found["text"]) + "\n```\n")
    return "\n".join(blocks)


def _table(cases: list[dict[str, object]]) -> str:
    columns = list(dict.fromkeys(key for case in cases for key in case))
    rows = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    rows += ["| " + " | ".join(str(case.get(column, "")) for column in columns) + " |" for case in cases]
    return "\n".join(rows) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="default: all of them")
    parser.add_argument("--out", type=Path, default=Path("out/bench-gpu"), help="default: %(default)s")
    parser.add_argument("--again", action="store_true", help="also measure what was measured before")
    parser.add_argument("--list", action="store_true", help="show the parts and end")
    return parser.parse_args()


if __name__ == "__main__":
    main()
