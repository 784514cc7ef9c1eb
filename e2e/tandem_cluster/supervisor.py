"""The first process of a pretended machine: a shell script that gives it own folders and keeps its daemons running.

The script is PID 1 of a PID namespace and its mounts live in a mount namespace: when it is killed, the kernel ends
every daemon, container and mount of that machine with it, however they came about.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tandem_cluster.plan import Machine

# As the machine sees them, instead of the host's: kubelet, containerd and CNI have fixed places in all three.
RUN = Path("/run")
LIB = Path("/var/lib")
LOG = Path("/var/log")
BIN = RUN / "bin"

_OWN_FOLDERS = {RUN: "run", LIB: "lib", LOG: "log"}


@dataclass(frozen=True)
class Daemon:
    """`command` starts again a second after it ended; not before `after` (a socket) is there."""

    name: str
    command: tuple[str, ...]
    after: Path | None = None


def on_host(machine: Machine, path: Path) -> Path:
    """Where the host finds the machine's `path`, which is below /run, /var/lib or /var/log."""
    for folder, name in _OWN_FOLDERS.items():
        if path.is_relative_to(folder):
            return machine.folder / name / path.relative_to(folder)
    raise AssertionError(f"{path} is the host's")


def write_files(machine: Machine, files: Mapping[Path, str]) -> None:
    for folder in (*_OWN_FOLDERS, BIN):
        on_host(machine, folder).mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        target = on_host(machine, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(0o600)


def copy_of(file: Path) -> Path:
    """Where the machine keeps its copy of a `covered` file."""
    return RUN / "covered" / "-".join(file.parts[1:])


def script(machine: Machine, binaries: Path, daemons: Iterable[Daemon], covered: Iterable[Path] = ()) -> str:
    """`covered`: files of the host, such as kernel settings, of which the machine sees and changes only a copy."""
    quoted = {folder: shlex.quote(str(machine.folder / name)) for folder, name in _OWN_FOLDERS.items()}
    return "\n".join(
        [
            "#!/bin/sh",
            "set -eu",
            "[ $$ = 1 ] || { echo 'this is the first process of a PID namespace' >&2; exit 1; }",
            "# Before /var/lib is hidden, which may hold them.",
            f"mount --bind {shlex.quote(str(binaries))} {shlex.quote(str(on_host(machine, BIN)))}",
            f"mount --rbind {quoted[RUN]} {RUN}",
            f"mount --bind {quoted[LOG]} {LOG}",
            f"mount --bind {quoted[LIB]} {LIB}",
            *(f"mount --bind {copy_of(file)} {file}" for file in covered),
            "cd /",
            "",
            "keep() {",
            "  name=$1 after=$2",
            "  shift 2",
            '  until [ -z "$after" ] || [ -S "$after" ]; do sleep 0.1; done',
            "  while :; do",
            f'    "$@" >>{LOG}/$name.log 2>&1 </dev/null || echo "$name ended: $?" >>{LOG}/$name.log',
            "    sleep 1",
            "  done",
            "}",
            "",
            *(_keep(daemon) for daemon in daemons),
            "wait",
            "",
        ]
    )


def _keep(daemon: Daemon) -> str:
    after = str(daemon.after) if daemon.after else ""
    return f"keep {shlex.join((daemon.name, after, *daemon.command))} &"
