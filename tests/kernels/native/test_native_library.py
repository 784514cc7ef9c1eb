"""Building the kernels on a user's machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BUILD = """
import sys, torch
from tandem_kernels.native import NativeError, NativeOps
try:
    NativeOps(torch.bfloat16)
except NativeError as error:
    sys.exit(f"NativeError: {error}")
maps = {line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line}
assert len(maps) == 1, maps
"""


def build(**environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILD],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=240)
    return process.returncode, errors


def test_two_processes_build_at_once_and_share_torchs_threads(tmp_path: Path) -> None:
    """A second OpenMP library would bring threads that fight torch's for the same cores."""
    both = [build(XDG_CACHE_HOME=str(tmp_path)) for _ in range(2)]
    assert [outcome(process) for process in both] == [(0, "")] * 2
    left = [path.name for path in (tmp_path / "tandem" / "kernels").rglob("*") if path.is_file()]
    assert left == ["kernels.so"]


def test_without_a_compiler_the_reason_is_given(tmp_path: Path) -> None:
    code, errors = outcome(build(XDG_CACHE_HOME=str(tmp_path), PATH=str(tmp_path)))
    assert code == 1
    assert errors.strip() == "NativeError: no C compiler (gcc 12 or newer) on PATH"


def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    compiler = tmp_path / "gcc"
    compiler.write_text("#!/bin/sh\necho 'unit.c:1: error: no space left on device' >&2; exit 1\n")
    compiler.chmod(0o755)
    code, errors = outcome(build(XDG_CACHE_HOME=str(tmp_path), PATH=f"{tmp_path}:{os.environ['PATH']}"))
    assert code == 1
    assert "no space left on device" in errors


def test_a_cut_off_library_is_built_again(tmp_path: Path) -> None:
    """After a full disk or a crash every later start would fall back to torch."""
    assert outcome(build(XDG_CACHE_HOME=str(tmp_path)))[0] == 0
    (built,) = (tmp_path / "tandem" / "kernels").rglob("kernels.so")
    built.write_bytes(b"")
    assert outcome(build(XDG_CACHE_HOME=str(tmp_path))) == (0, "")
    assert built.stat().st_size > 10_000


def test_a_compiler_that_cannot_run_is_an_error_like_none(tmp_path: Path) -> None:
    compiler = tmp_path / "gcc"
    compiler.write_bytes(b"\x7fELF of another machine")
    compiler.chmod(0o755)
    code, errors = outcome(build(XDG_CACHE_HOME=str(tmp_path), PATH=f"{tmp_path}:{os.environ['PATH']}"))
    assert code == 1
    assert errors.startswith("NativeError: the kernels cannot be built: ")


def test_a_folder_that_others_can_write_is_not_loaded_from(tmp_path: Path) -> None:
    shared = tmp_path / "tandem" / "kernels"
    shared.mkdir(parents=True)
    shared.chmod(0o777)
    assert outcome(build(XDG_CACHE_HOME=str(tmp_path), TMPDIR=str(tmp_path))) == (0, "")
    assert not list(shared.iterdir())
    assert list(tmp_path.glob("tandem-kernels-*/*/kernels.so"))


@pytest.mark.skipif(os.getuid() != 0, reason="only root owns files that it cannot write")
def test_an_unwritable_home_falls_back_to_the_temporary_folder(tmp_path: Path) -> None:
    home = tmp_path / "file"
    home.write_text("")
    code, errors = outcome(build(XDG_CACHE_HOME=str(home), TMPDIR=str(tmp_path)))
    assert (code, errors) == (0, "")
    assert list(tmp_path.glob("tandem-kernels-*/*/kernels.so"))
