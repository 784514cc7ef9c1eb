"""How much memory this process can still have: the machine's, and that of every cgroup that it is in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import psutil

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


class _Accounts(NamedTuple):
    """Files of a cgroup, and the lines of its statistics that count cached files."""

    controller: str
    """As in /proc/self/cgroup."""
    root: str
    limit: str
    usage: str
    cached: tuple[str, str]


_V2 = _Accounts("", "", "memory.max", "memory.current", ("active_file", "inactive_file"))
_V1 = _Accounts(
    "memory", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")
)


def free_host_bytes(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """What the machine and all cgroups around this process have left."""
    free = int(psutil.virtual_memory().available)
    for accounts in (_V2, _V1):
        for folder in _folders(cgroups / accounts.root, membership, accounts.controller):
            try:
                limit = (folder / accounts.limit).read_text().strip()
                usage = int((folder / accounts.usage).read_text())
                statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                cached = sum(int(statistics[name]) for name in accounts.cached)
            except (OSError, ValueError, KeyError):
                continue
            if limit.isdigit():
                # A cgroup pays for the files that it reads, such as weights, until the kernel wants their memory back.
                free = min(free, max(0, int(limit) - usage + cached))
    return free


def _folders(root: Path, membership: Path, controller: str) -> Iterator[Path]:
    """The process's own cgroup and those above it; the root alone where, as in most containers, that is its own."""
    own = PurePosixPath("/")
    try:
        lines = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        lines = []
    for _, controllers, name in lines:
        if controller in controllers.split(","):
            own = PurePosixPath(name)
    for path in (own, *own.parents):
        yield root / path.relative_to("/")
