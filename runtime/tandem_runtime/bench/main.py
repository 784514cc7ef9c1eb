"""Entry of `tandem bench`. A new benchmark is a module with `register`, added to `BENCHMARKS`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Protocol

from tandem_runtime.bench.errors import BenchError
from tandem_runtime.bench.serve import command as serve

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


class Benchmark(Protocol):
    def register(self, subparsers: Subparsers) -> None:
        """Adds a subparser that sets `execute`, a function from its namespace to an exit status."""


BENCHMARKS: tuple[Benchmark, ...] = (serve,)


def run(argv: list[str]) -> int:
    """Exit status: 0 done, 1 failed requests or no server, 2 (by `SystemExit`) bad flags, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="tandem bench", description="Measure servers and their parts.")
    subparsers = parser.add_subparsers(required=True, metavar="BENCHMARK")
    for benchmark in BENCHMARKS:
        benchmark.register(subparsers)
    namespace = parser.parse_args(argv)
    try:
        status: int = namespace.execute(namespace)
    except BenchError as error:
        print(f"tandem bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("tandem bench: interrupted", file=sys.stderr)
        return 130
    return status
