"""`tandem fetch` against a real S3 server, through a proxy where the network misbehaves."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import signal
import subprocess
import termios
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import pytest
from botocore.response import StreamingBody
from fetch.conftest import MIB, Start
from fetch.proxy import Proxy
from fetch.weed import BUCKET, Weed
from support.ports import free_port
from tandem_contract.fetch_flags import EXIT_OK, EXIT_PERMANENT, EXIT_RETRYABLE, MANIFEST
from tandem_contract.metrics import FETCH_BYTES
from tandem_fetch.body import Body
from tandem_fetch.main import EXIT_INTERRUPTED, run

pytestmark = pytest.mark.processes
Blob = Callable[[int, int], bytes]
SMALL = ["--keep-free=0", "--part-size=1MiB", "--max-attempts=2"]


@pytest.fixture(scope="module")
def model(weed: Weed, blob: Blob) -> dict[str, bytes]:
    """A folder as people upload it: single PUTs, multipart uploads, and things nobody serves."""
    files = {"config.json": b"{}", "empty.txt": b"", "single.safetensors": blob(1, 3 * MIB + 7)}
    multipart = {"nested/multi.safetensors": blob(2, 12 * MIB + 11), "odd.safetensors": blob(3, 11 * MIB)}
    for path, data in files.items():
        weed.upload(f"qwen/{path}", data)
    weed.upload("qwen/nested/multi.safetensors", multipart["nested/multi.safetensors"], part_size=5 * MIB)
    weed.upload("qwen/odd.safetensors", multipart["odd.safetensors"], part_size=5 * MIB + 1)
    files |= {"crc.json": b"{}", "crc.safetensors": blob(6, 13 * MIB + 5)}
    for path in ("crc.json", "crc.safetensors"):  # as today's SDKs upload by default: with CRC32s
        weed.with_checksums.upload_fileobj(io.BytesIO(files[path]), BUCKET, f"qwen/{path}")
    weed.upload("qwen/original/consolidated.pth", b"left out")
    return files | multipart


def fetch(weed: Weed | Proxy, folder: Path, *more: str, prefix: str = "qwen") -> int:
    return run(
        [f"--uri=s3://{BUCKET}/{prefix}", f"--destination={folder}", f"--endpoint={weed.endpoint}", *SMALL, *more]
    )


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and ".tandem" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_folder_arrives_whole_verified_and_marked(weed: Weed, model: dict[str, bytes], tmp_path: Path) -> None:
    assert fetch(weed, tmp_path) == EXIT_OK
    assert contents(tmp_path) == model
    marker = json.loads((tmp_path / MANIFEST).read_text())
    assert marker["uri"] == f"s3://{BUCKET}/qwen/"
    assert {entry["path"]: entry["verified"] for entry in marker["files"]} == {
        "config.json": "md5",
        "crc.json": "crc32",
        "crc.safetensors": "crc32-multipart",
        "empty.txt": "empty",
        "single.safetensors": "md5",
        "nested/multi.safetensors": "md5-multipart",
        "odd.safetensors": "md5-multipart",
    }
    assert sorted(os.listdir(tmp_path / ".tandem")) == ["lock", "manifest.json"]


def test_an_upload_of_unequal_parts_is_no_corrupt_one(weed: Weed, blob: Blob, tmp_path: Path) -> None:
    """The first of three had a size that would make three parts. The model was fetched again and again."""
    bodies = [blob(11, 5 * MIB), blob(12, 7 * MIB), blob(13, MIB)]
    weed.upload_parts("unequal/a.safetensors", bodies)
    assert fetch(weed, tmp_path, prefix="unequal") == EXIT_OK
    assert contents(tmp_path) == {"a.safetensors": b"".join(bodies)}
    [entry] = json.loads((tmp_path / MANIFEST).read_text())["files"]
    assert entry["verified"] == "size (part size of the upload is unknown)"


def test_a_complete_cache_is_recognised(weed: Weed, model: dict[str, bytes], tmp_path: Path) -> None:
    assert fetch(weed, tmp_path) == EXIT_OK
    before = (tmp_path / "config.json").stat().st_ino
    with Proxy(weed.port) as proxy:
        assert fetch(proxy, tmp_path) == EXIT_OK
        assert proxy.received < 20_000  # one listing
    assert (tmp_path / "config.json").stat().st_ino == before


def test_a_truncated_file_in_a_complete_cache_is_fetched_again(
    weed: Weed, model: dict[str, bytes], tmp_path: Path
) -> None:
    assert fetch(weed, tmp_path) == EXIT_OK
    os.truncate(tmp_path / "single.safetensors", 5)
    assert fetch(weed, tmp_path) == EXIT_OK
    assert contents(tmp_path) == model


def test_kill_9_mid_way_resumes_without_fetching_parts_twice(
    weed: Weed, blob: Blob, start: Start, tmp_path: Path
) -> None:
    data = blob(4, 24 * MIB)
    weed.upload("killed/model.safetensors", data, part_size=5 * MIB)
    argv = [f"--uri=s3://{BUCKET}/killed", f"--destination={tmp_path}", "--parallelism=1", *SMALL]
    with Proxy(weed.port, hold_at=13 * MIB) as proxy:
        process = start(*argv, f"--endpoint={proxy.endpoint}")
        assert proxy.held.wait(60), process.communicate(timeout=5)
        process.send_signal(signal.SIGKILL)
        process.wait()
        first = proxy.received
    assert not (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / MANIFEST).exists()
    with Proxy(weed.port) as proxy:
        again = start(*argv, f"--endpoint={proxy.endpoint}")
        assert again.wait(60) == EXIT_OK, again.communicate()
        second = proxy.received
    assert contents(tmp_path) == {"model.safetensors": data}
    assert 13 * MIB <= first < 14 * MIB
    assert second < 24 * MIB - 10 * MIB + 100_000, "the two journalled parts of 5 MiB were fetched again"


@pytest.mark.parametrize("verify", ["checksum", "size"])
def test_journalled_parts_whose_bytes_did_not_reach_the_disk_are_fetched_again(
    verify: str, weed: Weed, blob: Blob, start: Start, tmp_path: Path
) -> None:
    """After a power loss the journal may know more than the disk; trusting it would publish zeros."""
    data = blob(5, 12 * MIB)
    weed.upload("powerloss/model.safetensors", data, part_size=5 * MIB)
    argv = [
        f"--uri=s3://{BUCKET}/powerloss",
        f"--destination={tmp_path}",
        "--parallelism=1",
        f"--verify={verify}",
        *SMALL,
    ]
    with Proxy(weed.port, hold_at=11 * MIB) as proxy:
        process = start(*argv, f"--endpoint={proxy.endpoint}")
        assert proxy.held.wait(60), process.communicate(timeout=5)
        process.kill()
        process.wait()
    with (tmp_path / ".tandem/partial/model.safetensors.part").open("r+b") as partial:
        partial.write(bytes(4096))
    assert start(*argv, f"--endpoint={weed.endpoint}").wait(60) == EXIT_OK
    assert contents(tmp_path) == {"model.safetensors": data}


def test_bodies_are_received_in_place_and_connections_are_kept(
    weed: Weed, model: dict[str, bytes], tmp_path: Path
) -> None:
    """`Body` knows private layers of botocore and urllib3; when they change it would work on, at twice the CPU time."""
    answer = weed.client.get_object(Bucket=BUCKET, Key="qwen/single.safetensors")
    body = Body(answer["Body"])
    assert body.is_direct
    buffer = memoryview(bytearray(4 * MIB))
    count = body.readinto(buffer)
    assert buffer[:count] == model["single.safetensors"]
    assert body.readinto(buffer) == 0
    body.close()
    with Proxy(weed.port) as proxy:
        assert fetch(proxy, tmp_path, "--parallelism=2") == EXIT_OK
        assert proxy.connections <= 2


def test_a_body_of_unknown_layers_is_read_through_them() -> None:
    body = Body(StreamingBody(io.BytesIO(b"abc"), 3))
    buffer = memoryview(bytearray(8))
    assert not body.is_direct
    assert (body.readinto(buffer), bytes(buffer[:3]), body.readinto(buffer)) == (3, b"abc", 0)
    body.close()


def test_connections_that_break_mid_way_are_continued(weed: Weed, model: dict[str, bytes], tmp_path: Path) -> None:
    with Proxy(weed.port, cut_after=700_000) as proxy:
        assert fetch(proxy, tmp_path, "--parallelism=4") == EXIT_OK
        assert proxy.connections > 30
        assert proxy.received < 1.3 * sum(map(len, model.values()))
    assert contents(tmp_path) == model


def test_two_fetchers_of_one_cache_download_once(
    weed: Weed, model: dict[str, bytes], start: Start, tmp_path: Path
) -> None:
    argv = [f"--uri=s3://{BUCKET}/qwen", f"--destination={tmp_path}", "--progress-interval=0.2", *SMALL]
    metrics_port = free_port()
    with Proxy(weed.port, hold_at=4 * MIB) as proxy:
        first = start(*argv, f"--endpoint={proxy.endpoint}", f"--metrics-port={metrics_port}")
        assert proxy.held.wait(60)
        with urlopen(f"http://127.0.0.1:{metrics_port}/metrics") as answer:
            assert f'{FETCH_BYTES.name}{{scheme="s3"}} ' in answer.read().decode()
        second = start(*argv, f"--endpoint={proxy.endpoint}")
        assert second.stdout is not None
        waiting = next(line for line in second.stdout if "waiting for" in line)
        proxy.release()
        outputs = [_finish(first), _finish(second)]
        assert proxy.received < sum(map(len, model.values())) + 100_000
    assert f"process {first.pid}" in waiting
    assert "files to fetch" in outputs[0]
    assert "files to fetch" not in outputs[1]
    assert contents(tmp_path) == model


def _finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_OK, output
    return output


def test_sigterm_ends_it_at_once_and_a_terminal_shows_a_bar(
    weed: Weed, model: dict[str, bytes], tmp_path: Path, start: Start
) -> None:
    terminal, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    with Proxy(weed.port, hold_at=4 * MIB) as proxy:
        argv = [f"s3://{BUCKET}/qwen", str(tmp_path), f"--endpoint={proxy.endpoint}", *SMALL]
        process = start(*argv, stderr=theirs)
        assert proxy.held.wait(60)
        process.terminate()
        proxy.release()
        assert process.wait(30) == EXIT_INTERRUPTED
    os.close(theirs)
    shown = _read_all(terminal)
    assert "%|" in shown
    assert "interrupted; what was fetched is kept" in shown
    assert fetch(weed, tmp_path) == EXIT_OK
    assert contents(tmp_path) == model


@pytest.mark.parametrize("why", ["the server stalls", "--max-bandwidth=64KiB"])
def test_sigterm_waits_for_neither_server_nor_bandwidth(
    why: str, weed: Weed, blob: Blob, tmp_path: Path, start: Start
) -> None:
    """Symptom: it took the read timeout of 60 s, or the time that was booked ahead."""
    weed.upload("stalled/model.safetensors", blob(8, 12 * MIB))
    with Proxy(weed.port, hold_at=5 * MIB if why.startswith("the") else None) as proxy:
        more = [] if why.startswith("the") else [why]
        process = start(
            f"s3://{BUCKET}/stalled",
            str(tmp_path),
            f"--endpoint={proxy.endpoint}",
            "--progress-interval=0.2",
            *SMALL,
            *more,
        )
        assert process.stdout is not None
        next(line for line in process.stdout if " MB (" in line or " GB (" in line)
        process.terminate()
        output, _ = process.communicate(timeout=10)
    assert process.returncode == EXIT_INTERRUPTED, output
    assert "interrupted; what was fetched is kept" in output
    with (tmp_path / ".tandem/lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert fetch(weed, tmp_path, prefix="stalled") == EXIT_OK


def _read_all(terminal: int) -> str:
    shown = b""
    with open(terminal, "rb", buffering=0) as reader:
        while True:
            try:
                shown += reader.read(65536)
            except OSError:  # EIO: the other end is closed and everything was read
                return shown.decode()


def test_a_changed_source_is_noticed(weed: Weed, tmp_path: Path) -> None:
    for name in ("same", "changed", "gone"):
        weed.upload(f"moving/{name}.txt", name.encode())
    assert fetch(weed, tmp_path, prefix="moving") == EXIT_OK
    same = (tmp_path / "same.txt").stat().st_ino
    (tmp_path / "mine.txt").write_text("not ours to remove")
    weed.upload("moving/changed.txt", b"CHANGED")
    weed.upload("moving/added.txt", b"added")
    weed.client.delete_object(Bucket=BUCKET, Key="moving/gone.txt")
    assert fetch(weed, tmp_path, prefix="moving") == EXIT_OK
    assert contents(tmp_path) == {
        "same.txt": b"same",
        "changed.txt": b"CHANGED",
        "added.txt": b"added",
        "mine.txt": b"not ours to remove",
    }
    assert (tmp_path / "same.txt").stat().st_ino == same


def test_an_unreachable_source_leaves_a_complete_cache_usable(
    weed: Weed, model: dict[str, bytes], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A node that restarts its pods during an outage of the store must not lose the model it has."""
    assert fetch(weed, tmp_path) == EXIT_OK
    nowhere = f"--endpoint=http://127.0.0.1:{free_port()}"
    assert fetch(weed, tmp_path, nowhere) == EXIT_OK
    assert "using the complete cache" in capfd.readouterr().err
    assert fetch(weed, tmp_path, nowhere, "--no-reuse-when-unreachable") == EXIT_RETRYABLE
    assert fetch(weed, tmp_path, nowhere, "--include=*.json") == EXIT_RETRYABLE


def test_a_disk_that_is_too_small_is_refused_before_the_first_byte(
    weed: Weed, model: dict[str, bytes], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = [f"--uri=s3://{BUCKET}/qwen", f"--destination={tmp_path}", f"--endpoint={weed.endpoint}", "--keep-free=1GB"]
    with Proxy(weed.port) as proxy:
        code = run([*argv, f"--endpoint={proxy.endpoint}"], free_bytes=lambda _: 20_000_000)
        assert proxy.received < 20_000
    assert code == EXIT_PERMANENT
    error = capfd.readouterr().err
    assert "0.02 GB free" in error
    assert "needs 0.04 GB" in error
    assert "--keep-free asks for 1.00 GB" in error


def test_incomplete_uploads_are_refused(weed: Weed, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    weed.upload("half/model.safetensors.index.json", json.dumps(index).encode())
    weed.upload("half/model-1.safetensors", b"weights")
    assert fetch(weed, tmp_path, prefix="half") == EXIT_PERMANENT
    assert "lacks 1 of 2 weight shards, such as model-2.safetensors" in capfd.readouterr().err
    assert not (tmp_path / MANIFEST).exists()


@pytest.mark.parametrize(
    ("argv", "env", "code", "message"),
    [
        ([], {"AWS_SECRET_ACCESS_KEY": "wrong"}, EXIT_PERMANENT, "403 SignatureDoesNotMatch"),
        ([], {"AWS_ACCESS_KEY_ID": "unknown"}, EXIT_PERMANENT, "403 InvalidAccessKeyId"),
        ([], {"AWS_ACCESS_KEY_ID": ""}, EXIT_PERMANENT, "no access key in the environment; set AWS_ACCESS_KEY_ID"),
        (["--anonymous"], {}, EXIT_PERMANENT, "403 AccessDenied"),
        (["--uri=s3://no-such-bucket/qwen"], {}, EXIT_PERMANENT, "there is no bucket no-such-bucket"),
        (["--uri=s3://models/qwe"], {}, EXIT_PERMANENT, "nothing under s3://models/qwe/"),
        (["--include=*.bin"], {}, EXIT_PERMANENT, "no object under s3://models/qwen/ is selected"),
        (["--endpoint=http://127.0.0.1:1"], {}, EXIT_RETRYABLE, "refused the connection; check --endpoint"),
    ],
)
def test_errors_are_one_line_with_a_remedy(
    argv: list[str],
    env: dict[str, str],
    code: int,
    message: str,
    weed: Weed,
    model: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    report = tmp_path / "termination-log"
    assert fetch(weed, tmp_path / "cache", *argv, f"--termination-log={report}") == code
    assert message in report.read_text()
    assert report.read_text().count("\n") == 1
    error = capfd.readouterr().err
    assert "Traceback" not in error
    assert "tandem-test-secret" not in error


def test_temporary_and_renamed_keys_come_from_a_mounted_secret(
    weed: Weed, model: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "TOS_ACCESS_KEY").write_text(os.environ["AWS_ACCESS_KEY_ID"] + "\n")
    (secret / "TOS_SECRET_KEY").write_text(os.environ["AWS_SECRET_ACCESS_KEY"] + "\n")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    argv = [f"tos://{BUCKET}/qwen", str(tmp_path / "cache"), f"--endpoint={weed.endpoint}", "--addressing=path"]
    assert run([*argv, *SMALL, f"--credentials-dir={secret}"]) == EXIT_OK
    assert contents(tmp_path / "cache") == model
