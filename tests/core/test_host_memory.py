from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from tandem_runtime.core.host_memory import free_host_bytes


@dataclass(frozen=True)
class Version:
    """Of cgroups."""

    member: str
    root: str
    limit: str
    usage: str
    prefix: str

    def write(self, folder: Path, *, limit: str, cached: tuple[int, int] = (0, 0)) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / self.usage).write_text("900000\n")
        active, inactive = (f"{self.prefix}{kind}_file" for kind in ("active", "inactive"))
        (folder / "memory.stat").write_text(f"anon 500000\n{active} {cached[0]}\n{inactive} {cached[1]}\n")
        (folder / self.limit).write_text(limit + "\n")


V2 = Version("0::", "", "memory.max", "memory.current", "")
V1 = Version("4:cpu,memory:", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
both_versions = pytest.mark.parametrize("version", [V2, V1], ids=["v2", "v1"])


def test_free_memory_is_a_sane_number() -> None:
    assert 1 << 20 < free_host_bytes() < 1 << 50


@both_versions
def test_files_that_were_read_are_memory_to_be_had(tmp_path: Path, version: Version) -> None:
    """Symptom: in a container with room for its weights once and a half, no memory was left for KV pages: the weights
    just read were counted twice, as the process's and as the kernel's copy of the files."""
    version.write(tmp_path / version.root, limit="1000000", cached=(100_000, 250_000))
    assert free_host_bytes(tmp_path, tmp_path / "absent") == 450_000
    version.write(tmp_path / version.root, limit="max")
    assert free_host_bytes(tmp_path, tmp_path / "absent") > 1 << 20


@both_versions
@pytest.mark.parametrize("limited", ["", "user", "user/session"])
def test_every_cgroup_around_the_process_counts(tmp_path: Path, version: Version, limited: str) -> None:
    """Symptom: under a limit of the user's session, `tandem up` started a fleet that the kernel then killed."""
    membership = tmp_path / "membership"
    membership.write_text(f"7:pids:/elsewhere\n{version.member}/user/session\n")
    for path in ("", "user", "user/session"):
        version.write(tmp_path / version.root / path, limit="1000000" if path == limited else "max")
    assert free_host_bytes(tmp_path, membership) == 100_000


def test_a_cgroup_outside_of_what_is_mounted_does_no_harm(tmp_path: Path) -> None:
    """As of a process that joined a container from outside."""
    (tmp_path / "membership").write_text("0::/../../elsewhere\n")
    assert free_host_bytes(tmp_path, tmp_path / "membership") > 1 << 20
