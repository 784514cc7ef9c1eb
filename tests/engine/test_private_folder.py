"""Folders of processes that were killed do not stay; those of processes that live do."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tandem_runtime.core.errors import StartupError
from tandem_runtime.engine.private_folder import LONGEST_PATH, PREFIX, PrivateFolder

OWNER = """
import sys
from tandem_runtime.engine.private_folder import PrivateFolder
kept = PrivateFolder()
(kept.path / "socket").touch()
print(kept.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of a short path, as pytest's own folders need not have."""
    with tempfile.TemporaryDirectory() as name:
        monkeypatch.setenv("TMPDIR", name)
        monkeypatch.setattr(tempfile, "tempdir", None)  # the standard library's memory of TMPDIR
        yield Path(name)


@contextmanager
def owner() -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield Path(process.stdout.readline().strip()), process
        finally:
            process.kill()


def test_what_a_killed_process_left_goes_with_the_next_start() -> None:
    with owner() as (left, process), owner() as (lived_in, _):
        process.kill()
        process.wait()
        assert left.exists()
        with PrivateFolder() as own:
            assert not left.exists()
            assert lived_in.exists()
            assert stat.S_IMODE(own.stat().st_mode) == 0o700
            with PrivateFolder():
                assert own.exists(), "another folder of the same process"
        assert not own.exists()


def test_many_at_once_take_nothing_from_each_other(root: Path) -> None:
    with ExitStack() as stack:
        found = [stack.enter_context(owner())[0] for _ in range(3)]
        found += [stack.enter_context(PrivateFolder()) for _ in range(3)]
        assert len(set(found)) == 6
        assert all(path.exists() for path in found)


def test_what_is_not_ours_stays(root: Path) -> None:
    (root / f"{PREFIX}file").touch()
    elsewhere = root / "elsewhere"
    elsewhere.mkdir()
    (root / f"{PREFIX}link").symlink_to(elsewhere)
    (root / "tandem-kernels-0").mkdir()
    with PrivateFolder():
        assert elsewhere.exists()
        assert len(list(root.iterdir())) == 5


@pytest.mark.skipif(os.geteuid() != 0, reason="needs two users")
def test_another_users_folder_stays(root: Path) -> None:
    (root / f"{PREFIX}theirs").mkdir()
    os.chown(root / f"{PREFIX}theirs", 12345, 12345)
    with PrivateFolder():
        assert (root / f"{PREFIX}theirs").exists()


def test_nowhere_to_make_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = root / ("x" * LONGEST_PATH)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with pytest.raises(StartupError, match="too long for sockets; set TMPDIR"):
        PrivateFolder()
    assert not list(long.iterdir())
    monkeypatch.setattr(tempfile, "tempdir", str(root / "gone"))
    with pytest.raises(StartupError, match=r"can be made: .*; set TMPDIR"):
        PrivateFolder()
