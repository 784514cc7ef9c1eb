from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fetch.weed import ACCESS_KEY, SECRET_KEY, Weed

MIB = 2**20
ROOT = Path(__file__).parents[2]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    with Weed(tmp_path_factory.mktemp("weed")) as server:
        yield server


@pytest.fixture(autouse=True)
def logging_to_this_test() -> Iterator[None]:
    """`run` points the package's log at the stderr of its time, which pytest replaces for each test."""
    yield
    logging.getLogger("tandem_fetch").handlers.clear()


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("AWS_", "TOS_", "HF_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)


@pytest.fixture(scope="session")
def blob() -> Callable[[int, int], bytes]:
    return lambda seed, size: random.Random(seed).randbytes(size)


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts `tandem fetch` as a process of its own."""
    processes: list[subprocess.Popen[str]] = []
    path = os.pathsep.join(str(ROOT / part) for part in ("contract", "runtime"))

    def launch(*argv: str, stderr: int = subprocess.STDOUT) -> subprocess.Popen[str]:
        code = "import sys; from tandem_fetch.main import run; sys.exit(run(sys.argv[1:]))"
        process = subprocess.Popen(
            [sys.executable, "-c", code, *argv],
            env=os.environ | {"PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        processes.append(process)
        return process

    yield launch
    for process in processes:
        process.kill()
        process.communicate()
