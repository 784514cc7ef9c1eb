"""Folders made once, whole or not at all, whatever else runs or dies."""

import subprocess
import sys
from pathlib import Path

import pytest
from tandem_runtime.core.errors import StartupError
from tandem_runtime.local.cache import cache_root, ensure_folder

BUILD_SLOWLY = """
import sys
from pathlib import Path
from tandem_runtime.local.cache import ensure_folder

def build(folder):
    (folder / "built-by").write_text(sys.argv[2])
    print("building", flush=True)
    sys.stdin.readline()

ensure_folder(Path(sys.argv[1]), build)
print("done", flush=True)
"""


def builder(target: Path, name: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", BUILD_SLOWLY, str(target), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def never(folder: Path) -> None:
    pytest.fail("built again")


@pytest.mark.processes
def test_a_second_process_waits_and_finds_it_made(tmp_path: Path) -> None:
    target = tmp_path / "models" / "m"
    with builder(target, "first") as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "building\n"
        assert not target.exists(), "must not appear before it is whole"
        with builder(target, "second") as second:
            assert second.stderr is not None
            assert second.stderr.readline().startswith("Waiting for the process that holds ")
            first.communicate("go on\n", timeout=10)
            assert second.communicate(timeout=10)[0] == "done\n"
    assert (target / "built-by").read_text() == "first"


@pytest.mark.processes
def test_what_a_killed_builder_left_is_removed(tmp_path: Path) -> None:
    target = tmp_path / "m"
    with builder(target, "killed") as killed:
        assert killed.stdout is not None
        killed.stdout.readline()
        killed.kill()
    assert list(tmp_path.glob(".m.partial-*"))
    ensure_folder(target, lambda folder: (folder / "x").touch())
    assert (target / "x").exists()
    assert not list(tmp_path.glob(".m.partial-*"))


def test_made_once(tmp_path: Path) -> None:
    made = ensure_folder(tmp_path / "m", lambda folder: (folder / "x").touch())
    assert ensure_folder(tmp_path / "m", never) == made


def test_a_failed_build_leaves_nothing_and_can_be_tried_again(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise StartupError("no network")

    with pytest.raises(StartupError, match="no network"):
        ensure_folder(tmp_path / "m", fail)
    assert [path.name for path in tmp_path.iterdir()] == [".m.lock"]
    ensure_folder(tmp_path / "m", lambda folder: None)


def test_an_unwritable_cache_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartupError, match=r"^cannot make .*: File exists; free the disk or set TANDEM_CACHE"):
        ensure_folder(tmp_path / "file" / "m", never)


def test_cache_root() -> None:
    assert cache_root({"TANDEM_CACHE": "/elsewhere"}) == Path("/elsewhere")
    assert cache_root({}) == Path.home() / ".cache" / "tandem"
