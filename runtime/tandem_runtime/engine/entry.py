"""Where the engine process begins. Importing this imports no torch, which the API process must not pay for."""

from __future__ import annotations

from pathlib import Path

from tandem_contract.flags import ServeFlags


def main(flags: ServeFlags, name: str, folder: Path, parent_pid: int) -> None:
    from tandem_runtime.engine.process import engine_main

    engine_main(flags, name, folder, parent_pid)
