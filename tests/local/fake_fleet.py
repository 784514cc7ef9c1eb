"""`tandem up` and `tandem demo` as in the CLI, with `fake_tandem` for every process of the fleet."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tandem_cli.commands import named_errors
from tandem_cli.main import Command, invoke
from tandem_runtime.local.main import run_demo, run_up

LAUNCHER = (sys.executable, str(Path(__file__).with_name("fake_tandem.py")))


def named(run: Callable[..., int], argv: list[str]) -> Any:
    with named_errors():
        return run(argv, launcher=LAUNCHER)


if __name__ == "__main__":
    run = {"up": run_up, "demo": run_demo}[sys.argv[1]]
    sys.exit(invoke(sys.argv[1], Command("", "demo", partial(named, run)), sys.argv[2:]))
