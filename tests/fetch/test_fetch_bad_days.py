"""What a well-behaved S3 server never does, from one that does."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from pathlib import Path

import pytest
from fetch.fake_s3 import FakeS3
from tandem_contract.fetch_flags import EXIT_OK, EXIT_PERMANENT, EXIT_RETRYABLE, MANIFEST
from tandem_fetch.main import run


def fetch(server: FakeS3, folder: Path, *more: str) -> int:
    return run(
        ["s3://bucket/m", str(folder), f"--endpoint={server.endpoint}", "--keep-free=0", "--max-attempts=3", *more]
    )


def verified(folder: Path) -> dict[str, str]:
    return {entry["path"]: entry["verified"] for entry in json.loads((folder / MANIFEST).read_text())["files"]}


@pytest.mark.parametrize(
    "key",
    [
        "m/../outside",
        "m//etc/passwd",
        "m/a/../../b",
        "m/a\\..\\b",
        "m/./a",
        "m/a//b",
        "m/.tandem/manifest.json",
        "m/a\tb",
        "m/" + "n" * 239,
    ],
)
def test_keys_that_would_leave_the_folder_stop_the_fetch(
    key: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with FakeS3({"m/config.json": b"{}", key: b"evil"}) as server:
        assert fetch(server, tmp_path / "cache") == EXIT_PERMANENT
    assert "object key" in capfd.readouterr().err
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["lock"]


def test_the_longest_name_that_can_be_staged_is_fetched(tmp_path: Path) -> None:
    name = "n" * 238
    with FakeS3({f"m/{name}": b"1"}) as server:
        assert fetch(server, tmp_path) == EXIT_OK
    assert (tmp_path / name).read_bytes() == b"1"


def test_a_key_that_is_both_file_and_folder_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with FakeS3({"m/a": b"file", "m/a/b": b"in folder"}) as server:
        assert fetch(server, tmp_path) == EXIT_PERMANENT
    assert "'a' and 'a/b' need one name" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("status", "code", "headers", "exit_code", "message"),
    [
        (400, "ExpiredToken", {}, EXIT_PERMANENT, "session token is expired or invalid; renew the credentials"),
        (301, "PermanentRedirect", {"x-amz-bucket-region": "cn-shanghai"}, EXIT_PERMANENT, "use --region=cn-shanghai"),
        (403, "AccessDenied", {}, EXIT_PERMANENT, "grant GetObject and ListBucket on bucket"),
        (403, "RequestTimeTooSkewed", {}, EXIT_PERMANENT, "synchronise the clock"),
        (503, "SlowDown", {}, EXIT_RETRYABLE, "overloaded or down; lower --parallelism"),
        (400, "InvalidPathAccess", {}, EXIT_PERMANENT, "check the URI, --endpoint and --addressing"),
    ],
)
def test_refusals_say_what_to_do(
    status: int,
    code: str,
    headers: dict[str, str],
    exit_code: int,
    message: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with FakeS3({"m/a": b"1"}, refuse=lambda *_: (status, code, headers)) as server:
        assert fetch(server, tmp_path, "--max-attempts=1") == exit_code
    assert message in capfd.readouterr().err


def test_overload_is_waited_out(tmp_path: Path) -> None:
    with FakeS3({"m/a": b"1"}, refuse=lambda _, __, nth, ___: (503, "SlowDown", {}) if nth == 1 else None) as server:
        assert fetch(server, tmp_path) == EXIT_OK
        assert server.seen == {("GET", ""): 2, ("HEAD", "m/a"): 2, ("GET", "m/a"): 2}


def test_what_came_before_a_reset_is_kept(tmp_path: Path) -> None:
    """Symptom: up to 1 MiB before each reset was lost, so that resets every 700 KB were 0 % for ever."""
    data = bytes(range(256)) * (3 << 12)
    with FakeS3({"m/a": data}, reset_after=700_000) as server:
        assert fetch(server, tmp_path) == EXIT_OK
        assert server.seen["GET", "m/a"] == 5
    assert (tmp_path / "a").read_bytes() == data


def test_a_corrupt_file_is_thrown_away_and_fetched_again(tmp_path: Path) -> None:
    def flip_once(key: str, nth: int, body: bytes) -> bytes:
        return bytes(len(body)) if key == "m/a" and nth == 1 else body

    with FakeS3({"m/a": b"weights", "m/b": b"fine"}, corrupt=flip_once) as server:
        assert fetch(server, tmp_path) == EXIT_OK
    assert (tmp_path / "a").read_bytes() == b"weights"


def test_an_upload_of_one_part_is_compared_where_the_store_knows_no_part_numbers(tmp_path: Path) -> None:
    """Symptom: its part size was guessed, no guess fitted bytes that were corrupt, and they counted as "size" only."""

    def one_part(data: bytes) -> str:
        return hashlib.md5(hashlib.md5(data).digest()).hexdigest() + "-1"

    with FakeS3({"m/a": b"weights"}, etag=one_part, corrupt=lambda key, nth, body: bytes(len(body))) as server:
        assert fetch(server, tmp_path) == EXIT_RETRYABLE
        assert not (tmp_path / "a").exists()
        server.corrupt = lambda key, nth, body: body
        assert fetch(server, tmp_path) == EXIT_OK
    assert verified(tmp_path) == {"a": "md5-multipart"}


@pytest.mark.parametrize("verify", ["checksum", "size"])
def test_an_object_without_bytes_is_asked_nothing(verify: str, tmp_path: Path) -> None:
    """Symptom: one that was uploaded in parts was a ZeroDivisionError, or a HEAD that one store never answers."""
    with FakeS3({"m/a": b""}, etag=lambda _: "59adb24ef3cdbe0297f05b395827453f-1", part_size=0) as server:
        assert fetch(server, tmp_path, f"--verify={verify}") == EXIT_OK
        assert server.seen == {("GET", ""): 1}
    assert (tmp_path / "a").read_bytes() == b""
    assert verified(tmp_path) == {"a": "empty"}


def test_a_part_that_differs_from_its_stored_crc32_is_fetched_again(tmp_path: Path) -> None:
    data, size = bytes(range(256)) * (9 << 12), 7 * 2**20
    crcs = b"".join(zlib.crc32(part).to_bytes(4, "big") for part in (data[:size], data[size:]))
    head = {"x-amz-checksum-crc32": base64.b64encode(zlib.crc32(crcs).to_bytes(4, "big")).decode() + "-2"}

    def flip_once(key: str, nth: int, body: bytes) -> bytes:
        return bytes([body[0] ^ 1]) + body[1:] if nth == 1 else body

    with FakeS3({"m/a": data}, corrupt=flip_once, head=head, etag=lambda _: "v-2", part_size=size) as server:
        assert fetch(server, tmp_path) == EXIT_OK
        assert server.seen["GET", "m/a"] == 2
    assert (tmp_path / "a").read_bytes() == data
    assert verified(tmp_path) == {"a": "crc32-multipart"}


def test_a_file_that_stays_corrupt_is_never_published(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with FakeS3({"m/a": b"weights"}, corrupt=lambda key, nth, body: bytes(len(body))) as server:
        assert fetch(server, tmp_path) == EXIT_RETRYABLE
    assert "checksum of a differs" in capfd.readouterr().err
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / MANIFEST).exists()


def test_an_object_replaced_while_it_is_read_is_fetched_as_one_version(tmp_path: Path) -> None:
    """Parts of two versions in one file have the right size and load without an error."""
    old, new = b"o" * (3 << 20), b"n" * (3 << 20)
    server = FakeS3({"m/a": old})

    def replace(method: str, key: str, nth: int, headers: dict[str, str]) -> None:
        if (method, key, nth) == ("GET", "m/a", 2):
            server.objects["m/a"] = new

    server.refuse = replace
    with server:
        assert fetch(server, tmp_path, "--parallelism=1", "--part-size=1MiB") == EXIT_OK
        assert server.seen["GET", "m/a"] == 2 + 3, "no request for the old version was repeated"
    assert (tmp_path / "a").read_bytes() == new


def test_a_renewed_mounted_token_is_picked_up(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "SESSION_TOKEN": "old"}.items():
        (secret / f"AWS_{name}").write_text(value)

    def expire(method: str, key: str, nth: int, headers: dict[str, str]) -> tuple[int, str, dict[str, str]] | None:
        if headers.get("X-Amz-Security-Token") == "new":
            return None
        (secret / "AWS_SESSION_TOKEN").write_text("new")
        return 400, "ExpiredToken", {}

    with FakeS3({"m/a": b"1"}, refuse=expire) as server:
        assert fetch(server, tmp_path / "cache", f"--credentials-dir={secret}") == EXIT_OK


def test_checksums_stored_beside_an_encrypted_object_are_used(tmp_path: Path) -> None:
    """Under SSE-KMS an ETag looks like an MD5 but is none."""
    data = b"weights"
    head = {
        "x-amz-server-side-encryption": "aws:kms",
        "x-amz-checksum-sha256": base64.b64encode(hashlib.sha256(data).digest()).decode(),
    }
    with FakeS3({"m/a": data}, head=head, etag=lambda data: "0" * 32) as server:
        assert fetch(server, tmp_path) == EXIT_OK
    assert verified(tmp_path) == {"a": "sha256"}


def test_a_store_that_knows_no_part_numbers_is_asked_no_more(tmp_path: Path) -> None:
    """The part size is then guessed from the usual ones."""
    data, mib = bytes(range(256)) * (9 << 12), 2**20

    def two_parts(data: bytes) -> str:
        md5s = hashlib.md5(data[: 8 * mib]).digest() + hashlib.md5(data[8 * mib :]).digest()
        return f"{hashlib.md5(md5s).hexdigest()}-2"

    def refuse(method: str, key: str, nth: int, headers: dict[str, str]) -> tuple[int, str, dict[str, str]] | None:
        return (501, "NotImplemented", {}) if method == "HEAD" and nth % 2 == 0 else None

    with FakeS3({"m/a": data}, etag=two_parts, refuse=refuse) as server:
        assert fetch(server, tmp_path) == EXIT_OK
        assert server.seen["HEAD", "m/a"] == 2
    assert verified(tmp_path) == {"a": "md5-multipart"}


def test_without_any_checksum_the_log_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with FakeS3({"m/a": b"weights"}, etag=lambda data: "opaque") as server:
        assert fetch(server, tmp_path) == EXIT_OK
    assert "1 of them verified by size only" in capfd.readouterr().err
    assert verified(tmp_path) == {"a": "size (the store keeps no checksum of it)"}


def test_a_cache_that_was_verified_by_size_only_is_fetched_again_for_checksums(tmp_path: Path) -> None:
    with FakeS3({"m/a": b"weights"}, corrupt=lambda key, nth, body: bytes(len(body)) if nth == 1 else body) as server:
        assert fetch(server, tmp_path, "--verify=size") == EXIT_OK
        assert fetch(server, tmp_path, "--verify=size") == EXIT_OK
        assert server.seen["GET", "m/a"] == 1
        assert fetch(server, tmp_path) == EXIT_OK
    assert (tmp_path / "a").read_bytes() == b"weights"
    assert verified(tmp_path) == {"a": "md5"}


def test_secrets_never_reach_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with FakeS3({"m/a": b"1"}, refuse=lambda *_: (403, "AccessDenied", {})) as server:
        assert fetch(server, tmp_path, "--log-level=debug", "--log-format=json") == EXIT_PERMANENT
    error = capfd.readouterr().err
    assert "Signature=" not in error
    assert "tandem-test" not in error
    assert all(json.loads(line)["level"] for line in error.splitlines())
