"""The cgroup that all pods of a cluster are below, in every hierarchy that is mounted (version 1, 2 or both)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

_INHERITED = ("cpuset.cpus", "cpuset.mems")


def create(names: Sequence[str]) -> None:
    for root in _hierarchies():
        for name in names:
            folder = root
            for part in name.strip("/").split("/"):
                _hand_down_controllers(folder)
                folder = folder / part
                folder.mkdir(exist_ok=True)
                _inherit_cpuset(folder)


def remove(name: str) -> None:
    """Removes `name` and all below it; there must be no process left in it."""
    for root in _hierarchies():
        top = root / name.strip("/")
        for folder in sorted(top.rglob("*/"), reverse=True):
            folder.rmdir()
        if top.is_dir():
            top.rmdir()


def _hand_down_controllers(folder: Path) -> None:
    # Version 2: kubelet refuses a cgroup that lacks a controller which the machine has.
    available = folder / "cgroup.controllers"
    if available.exists():
        for controller in available.read_text().split():
            (folder / "cgroup.subtree_control").write_text(f"+{controller}")


def _inherit_cpuset(folder: Path) -> None:
    # In version 1 a new cpuset is empty, and no process can enter an empty one.
    for name in _INHERITED:
        file = folder / name
        if (folder / "cgroup.clone_children").exists() and file.exists() and not file.read_text().strip():
            file.write_text((folder.parent / name).read_text())


def _hierarchies() -> Iterator[Path]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, source = line.partition(" - ")
        if source.split()[0] in ("cgroup", "cgroup2"):
            yield Path(mount.split()[4])
