"""Everything that is measured on a GPU, the most telling first: each part in a process and a time box of its own.

    python benchmarks/gpu/run.py [PART ...] [--minutes 9] [--out DIR] [--again] [--list]

Needs no installation of this repository, nor more than the standard library itself. DIR/results.json and DIR/results.md
(tables for docs/performance.md) are written anew with every figure, DIR/log.txt takes all that is printed; a part that
has succeeded is not measured again (unless `--again`), and one that failed does not stop the others. With `--minutes`
no part begins that could not end in time.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
IMPORTED = ("contract", "runtime", "kernels", "tests", "benchmarks", "benchmarks/gpu")
CUT_OFF = 124
"""Exit status of a part whose time was over."""
GRACE_S = 40
"""For a part to end what it started, once it is told to."""

KEPT = "{kept}"
"""In a part's arguments: a file of its own that outlives it."""


class Part(NamedTuple):
    argv: tuple[str, ...]
    usual: int
    """Seconds on an H200, by estimate: what must be left for it to begin."""
    most: int
    """Seconds after which it is ended; what it printed until then counts."""
    title: str

    @property
    def resumable(self) -> bool:
        """Cut off, it goes on the next time where it stopped; `usual` is what it takes to get somewhere."""
        return any(KEPT in arg for arg in self.argv)


def _steps(model: str, *flags: str) -> tuple[str, ...]:
    return (str(HERE / "steps.py"), model, *flags)


def _server(model: str, *flags: str) -> tuple[str, ...]:
    return (str(HERE / "server.py"), model, *flags, f"--kept={KEPT}")


def _tests(*paths: str) -> tuple[str, ...]:
    # Most of their time is compilation. Warnings of other versions of torch are no failures here.
    parallel = ("-n", "8") if importlib.util.find_spec("xdist") else ()
    options = ("-q", "-m", "gpu", "-p", "no:cacheprovider", "-o", "filterwarnings=default", "--durations=5")
    return ("-m", "pytest", *options, *parallel, *(str(REPOSITORY / path) for path in paths))


FP8 = ("--quantization=fp8", "--kv-cache-dtype=fp8")
PARTS = {
    "card": Part((str(HERE / "card.py"),), 20, 90, "The card, its ceilings, what is installed"),
    "runner": Part(
        _tests("tests/kernels/test_triton_runner.py", "tests/kernels/test_fp8_scaled_mm.py", "tests/transfer"),
        90,
        240,
        "Tests of the runner, graphs, fp8 products and copies",
    ),
    "steps-32b": Part(_steps("Qwen3-32B"), 150, 300, "Qwen3-32B, steps"),
    "steps-32b-fp8": Part(_steps("Qwen3-32B", *FP8), 120, 300, "Qwen3-32B fp8, steps"),
    "server-32b": Part(_server("Qwen3-32B"), 240, 1800, "Qwen3-32B, whole server"),
    "peer": Part((str(HERE / "peer.py"),), 150, 300, "Against transformers' continuous batching"),
    "handoff": Part((str(HERE / "handoff.py"),), 60, 180, "Pages handed over on one card"),
    "together": Part((str(HERE / "together.py"),), 150, 400, "Prefill and decode processes on one card, Qwen3-8B"),
    "steps-30b-a3b": Part(_steps("Qwen3-30B-A3B"), 120, 300, "Qwen3-30B-A3B, steps"),
    "fidelity": Part((str(HERE / "fidelity.py"),), 60, 180, "Logits on the GPU against the CPU's"),
    "kernels": Part((str(REPOSITORY / "kernels/bench/run.py"),), 200, 400, "Kernels"),
    "server-32b-fp8": Part(
        _server("Qwen3-32B", "--max-concurrency=128", *FP8), 270, 1800, "Qwen3-32B fp8, whole server"
    ),
    "steps-235b-tp8": Part(_steps("Qwen3-235B-A22B-TP8"), 150, 400, "One of eight ranks of Qwen3-235B-A22B, steps"),
    "tests": Part(_tests("tests/kernels"), 300, 560, "Tests of all kernels"),
    "server-32b-2500": Part(
        _server("Qwen3-32B", "--workload=2500:1500"), 240, 1800, "Qwen3-32B, whole server, shorter prompts"
    ),
    "server-30b-a3b": Part(_server("Qwen3-30B-A3B", "--max-concurrency=128"), 240, 1800, "Qwen3-30B-A3B, whole server"),
}
Results = dict[str, dict[str, Any]]


def main(argv: Sequence[str] | None = None, parts: dict[str, Part] = PARTS) -> None:
    args = _arguments(argv)
    if args.list:
        for name, part in parts.items():
            print(f"{name:16} about {part.usual} s, at most {part.most} s   {part.title}")
        return
    if unknown := set(args.parts) - set(parts):
        sys.exit(f"no such part: {', '.join(sorted(unknown))}; --list shows them")
    end = time.monotonic() + 60 * args.minutes if args.minutes else float("inf")
    book = Book(args.out)
    failed, left = list[str](), list[str]()
    for name in args.parts or parts:
        part, seconds = parts[name], end - time.monotonic() - GRACE_S
        if book.done(name) and not args.again:
            print(f"{name}: measured before, see {book.folder}")
        elif seconds < part.usual:
            left.append(name)
        elif status := _run(name, part, min(seconds, part.most), book, again=args.again and book.done(name)):
            (left if status == CUT_OFF and part.resumable else failed).append(name)
    print(f"\n{book.folder / 'results.md'}")
    if left:
        print(f"no time was left for: {', '.join(left)}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; see {book.folder / 'log.txt'}")


class Book:
    """What was found, on disk at any moment: three files, whatever ends this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._json = folder / "results.json"
        self._results: Results = json.loads(self._json.read_text()) if self._json.exists() else {}

    def done(self, name: str) -> bool:
        return self._results.get(name, {}).get("status") == 0

    def log(self) -> TextIO:
        return (self.folder / "log.txt").open("a")

    def write(self, name: str, result: dict[str, Any]) -> None:
        self._results[name] = result
        written = self._json.with_suffix(".new")
        written.write_text(json.dumps(self._results, indent=1))
        written.replace(self._json)
        (self.folder / "results.md").write_text(report(self._results))


def _run(name: str, part: Part, seconds: float, book: Book, *, again: bool) -> int:
    """The part's exit status. `again`: with nothing of what it kept."""
    kept = book.folder / f"{name}.kept.json"
    if again:
        kept.unlink(missing_ok=True)
    began = time.monotonic()
    result: dict[str, Any] = {
        "part": name,
        "title": part.title,
        "argv": [Path(part.argv[0]).name, *part.argv[1:]],
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": 0.0,
        "status": None,
        "cases": [],
        "text": [],
    }
    command = ["timeout", "--signal=TERM", f"--kill-after={GRACE_S - 10}", str(int(seconds)), sys.executable]
    paths = [*(str(REPOSITORY / path) for path in IMPORTED), os.environ.get("PYTHONPATH", "")]
    with book.log() as log:
        _say(log, f"== {name}: {part.title}, at most {seconds:.0f} s\n")
        with subprocess.Popen(
            [*command, *(arg.replace(KEPT, str(kept)) for arg in part.argv)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        ) as process:
            # Told to end, this process ends the part first: what it has started holds the card's memory.
            signal.signal(signal.SIGTERM, lambda *_: process.terminate())
            assert process.stdout is not None
            for line in process.stdout:
                _say(log, line)
                if line.startswith("{"):
                    result["cases"].append(json.loads(line))
                else:
                    result["text"] = [*result["text"][-199:], line.rstrip()]
                result["seconds"] = round(time.monotonic() - began, 1)
                book.write(name, result)
        result["status"] = process.returncode
        _say(log, f"== {name}: status {result['status']} after {time.monotonic() - began:.0f} s\n")
    book.write(name, result)
    return int(result["status"])


def _say(log: TextIO, text: str) -> None:
    log.write(text)
    log.flush()
    print(text, end="", flush=True)


def report(results: Results) -> str:
    """Markdown of every part that left a result."""
    blocks = []
    for name, found in results.items():
        state = "" if found["status"] == 0 else f", **ended with status {found['status']}**"
        blocks.append(
            f"### {found['title']}\n`{' '.join(found['argv'])}`, {found['when']}, {found['seconds']} s{state}\n"
        )
        if found["cases"]:
            blocks.append(_table(found["cases"]))
        if not found["cases"] or found["status"] != 0 or name == "kernels":
            blocks.append("```\n" + "\n".join(found["text"]) + "\n```\n")
    return "\n".join(blocks)


def _table(cases: list[dict[str, object]]) -> str:
    columns = list(dict.fromkeys(key for case in cases for key in case))
    rows = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    rows += ["| " + " | ".join(str(case.get(column, "")) for column in columns) + " |" for case in cases]
    return "\n".join(rows) + "\n"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="default: all of them")
    parser.add_argument("--minutes", type=float, help="end within so many; default: no limit")
    parser.add_argument("--out", type=Path, default=Path("out/bench-gpu"), help="default: %(default)s")
    parser.add_argument("--again", action="store_true", help="also measure what was measured before")
    parser.add_argument("--list", action="store_true", help="show the parts and end")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
