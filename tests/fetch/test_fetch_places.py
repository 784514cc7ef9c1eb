"""Sources that are no bucket: plain paths and hubs; and the lock that all share."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.ports import free_port
from tandem_contract.fetch_flags import EXIT_OK, EXIT_PERMANENT, EXIT_RETRYABLE, MANIFEST, FetchFlags
from tandem_fetch.errors import AccessDenied, BadSource, Busy, FetchError, NotFound, Unreachable
from tandem_fetch.fetch import Fetch
from tandem_fetch.lock import CacheLock
from tandem_fetch.main import run
from tandem_fetch.telemetry import Telemetry


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"w")
    return folder


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_plain_path_is_used_in_place(scheme: str, model: Path) -> None:
    before = sorted(model.iterdir())
    assert run([f"{scheme}{model}"]) == EXIT_OK
    assert sorted(model.iterdir()) == before


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no *.safetensors"),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text(
                '{"weight_map": {"w": "lost.safetensors"}}'
            ),
            "such as lost.safetensors",
        ),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{"), "is not readable"),
        (lambda folder: folder.rename(folder.with_name("elsewhere")), "there is no folder"),
    ],
)
def test_a_path_that_is_no_model_is_refused(
    spoil: Callable[[Path], Any], message: str, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil(model)
    assert run([str(model)]) == EXIT_PERMANENT
    assert message in capfd.readouterr().err


def test_an_unknown_scheme_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["ftp://host/x", str(tmp_path)]) == EXIT_PERMANENT
    assert "ftp:// is not known; use tos://, s3://, hf:// or a path" in capfd.readouterr().err


def test_a_destination_that_cannot_be_written_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert run(["hf://a/b", str(tmp_path / "file")]) == EXIT_PERMANENT
    assert str(tmp_path / "file") in capfd.readouterr().err


def test_a_metrics_port_that_is_taken_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Symptom: "file operation failed on the destination; check the cache volume"."""
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["hf://a/b", str(tmp_path), f"--metrics-port={port}"]) == EXIT_PERMANENT
    assert f"--metrics-port {port}: Address already in use; choose another" in capfd.readouterr().err


def test_a_hub_out_of_reach_is_one_plain_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    assert run(["hf://Qwen/Qwen3-0.6B", str(tmp_path)]) == EXIT_RETRYABLE
    error = capfd.readouterr().err
    assert "the hub cannot be reached for hf://Qwen/Qwen3-0.6B" in error
    assert "set HF_ENDPOINT to a mirror" in error
    assert "Traceback" not in error


class RepositoryNotFoundError(Exception):
    pass


class GatedRepoError(RepositoryNotFoundError):
    pass


class FakeHub:
    """Stands in for `HfApi`: the hub itself is out of a test's reach."""

    def __init__(self, files: dict[str, bytes], *, error: Exception | None = None) -> None:
        self.files = files
        self.lost: set[str] = set()
        self.error = error
        self.downloads = 0

    def model_info(self, repo_id: str, *, revision: str | None, files_metadata: bool) -> Any:
        if self.error:
            raise self.error
        siblings = [
            SimpleNamespace(
                rfilename=path,
                size=len(data),
                blob_id=f"blob-{len(data)}",
                lfs=SimpleNamespace(sha256=hashlib.sha256(data).hexdigest()) if path.endswith(".safetensors") else None,
            )
            for path, data in self.files.items()
        ]
        return SimpleNamespace(sha="commit", siblings=siblings)

    def snapshot_download(self, repo_id: str, **options: Any) -> None:
        assert options["revision"] == "commit"
        self.downloads += 1
        for path, data in self.files.items():
            if path not in self.lost and any(fnmatchcase(path, glob) for glob in options["allow_patterns"]):
                (options["local_dir"] / path).write_bytes(data)


def fetch_from(fake: FakeHub, folder: Path, uri: str = "hf://org/name") -> None:
    flags = FetchFlags(uri=uri, destination=str(folder), keep_free="0")
    Fetch(flags, env={}, telemetry=Telemetry("hf"), connect_hub=lambda endpoint, token: fake).run()


def test_a_hub_model_is_verified_marked_and_not_fetched_twice(tmp_path: Path) -> None:
    fake = FakeHub({"config.json": b"{}", "model.safetensors": b"weights", "model.gguf": b"left out"})
    fetch_from(fake, tmp_path)
    fetch_from(fake, tmp_path)
    assert fake.downloads == 1
    entries = json.loads((tmp_path / MANIFEST).read_text())["files"]
    assert {entry["path"]: entry["verified"] for entry in entries} == {
        "config.json": "size (small file in git)",
        "model.safetensors": "sha256",
    }
    fake.files["config.json"] = b"{ }"
    fetch_from(fake, tmp_path)
    assert (tmp_path / "config.json").read_bytes() == b"{ }"


def test_a_hub_that_goes_away_mid_way_is_not_taken_for_a_whole_model(tmp_path: Path) -> None:
    """huggingface_hub returns the existing folder, without an error, when it cannot reach the hub."""
    fake = FakeHub({"config.json": b"{}", "model.safetensors": b"weights"})
    fake.lost = {"model.safetensors"}
    with pytest.raises(Unreachable, match=r"did not deliver all of model.safetensors"):
        fetch_from(fake, tmp_path)
    assert not (tmp_path / MANIFEST).exists()
    (tmp_path / "model.safetensors").write_bytes(b"WEIGHTS")
    with pytest.raises(FetchError):
        fetch_from(fake, tmp_path)
    assert not (tmp_path / "model.safetensors").exists(), "it has the right size but not the hub's checksum"


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(RepositoryNotFoundError(), NotFound), (GatedRepoError(), AccessDenied), (TimeoutError(), Unreachable)],
)
def test_hub_errors_are_ours(raised: Exception, expected: type[FetchError], tmp_path: Path) -> None:
    with pytest.raises(expected):
        fetch_from(FakeHub({}, error=raised), tmp_path)


def test_the_token_of_a_mounted_secret_reaches_the_hub(tmp_path: Path) -> None:
    """Symptom: storage.secretRef of a gated hf:// model was mounted, and then nobody read it."""
    tokens: list[str | None] = []
    (tmp_path / "HF_TOKEN").write_text("hf_mounted\n")

    def connect(endpoint: str | None, token: str | None) -> FakeHub:
        tokens.append(token)
        return FakeHub({"config.json": b"{}"})

    for secret, env in ((str(tmp_path), {}), (None, {"HF_TOKEN": "hf_env"}), (None, {})):
        flags = FetchFlags(uri="hf://org/name", destination=str(tmp_path), keep_free="0", credentials_dir=secret)
        Fetch(flags, env=env, telemetry=Telemetry("hf"), connect_hub=connect).run()
    assert tokens == ["hf_mounted", "hf_env", None]


def test_a_disk_that_fills_up_is_not_taken_for_a_hub_out_of_reach(tmp_path: Path) -> None:
    """Symptom: a write that fails names no file, so it counted as the network's."""
    with pytest.raises(OSError, match="No space left"):
        fetch_from(FakeHub({}, error=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))), tmp_path)


@pytest.mark.parametrize("name", ["a", "../b", "a/b/c", "a/"])
def test_hub_names_are_checked(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadSource):
        fetch_from(FakeHub({}), tmp_path, f"hf://{name}")


def test_the_lock_names_its_holder_and_gives_up_when_told(tmp_path: Path) -> None:
    said: list[str] = []

    def lock(holder: str) -> CacheLock:
        return CacheLock(
            tmp_path / ".tandem/lock", holder=holder, announce=said.append, interval_s=9, timeout_s=0.05, poll_s=0.01
        )

    with lock("pod-a") as held:
        held.publish("12 %")
        with pytest.raises(Busy, match=r"pod-a \(12 %\)"), lock("pod-b"):
            pass
    assert said == ["waiting for pod-a (12 %)"]
    with lock("pod-b"):
        assert json.loads((tmp_path / ".tandem/lock").read_text())["holder"] == "pod-b"
    assert os.listdir(tmp_path / ".tandem") == ["lock"]
