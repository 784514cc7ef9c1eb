"""The pure parts: endpoints, keys, credentials, retries, bandwidth, progress, flags."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ConnectTimeoutError, EndpointConnectionError, SSLError
from hypothesis import given
from hypothesis import strategies as st
from tandem_contract.fetch_flags import DEFAULT_EXCLUDE, FetchFlags, byte_size
from tandem_contract.flags import FlagError, parse, to_argv
from tandem_fetch import credentials
from tandem_fetch.bandwidth import Limiter
from tandem_fetch.endpoints import locate
from tandem_fetch.errors import BadSource, FetchError, MissingCredentials, UnsafeKey
from tandem_fetch.keys import is_selected, relative_path
from tandem_fetch.progress import progress_line
from tandem_fetch.retry import Retry
from tandem_fetch.s3_errors import translated


def flags(uri: str, **values: Any) -> FetchFlags:
    return FetchFlags(uri=uri, destination="/cache", **values)


@pytest.mark.parametrize(
    ("options", "endpoint", "region"),
    [
        ({"region": "cn-beijing"}, "https://tos-s3-cn-beijing.volces.com", "cn-beijing"),
        ({"region": "cn-beijing2", "internal": True}, "https://tos-s3-cn-beijing2.ivolces.com", "cn-beijing2"),
        ({"endpoint": "tos-cn-shanghai.volces.com"}, "https://tos-s3-cn-shanghai.volces.com", "cn-shanghai"),
        ({"endpoint": "https://tos-s3-eu-x.ivolces.com/"}, "https://tos-s3-eu-x.ivolces.com", "eu-x"),
    ],
)
def test_tos_endpoints_follow_the_region_and_address_buckets_as_hosts(
    options: dict[str, Any], endpoint: str, region: str
) -> None:
    location = locate(flags("tos://b//p//", **options))
    assert (location.uri, location.endpoint, location.region) == ("tos://b/p/", endpoint, region)
    assert location.style == "virtual"


@pytest.mark.parametrize(
    ("options", "region", "style"),
    [
        ({}, "us-east-1", "virtual"),
        ({"region": "eu-west-1"}, "eu-west-1", "virtual"),
        ({"endpoint": "http://minio:9000"}, "us-east-1", "path"),
        ({"endpoint": "http://minio:9000", "addressing": "virtual"}, "us-east-1", "virtual"),
    ],
)
def test_s3_endpoints_are_their_own(options: dict[str, Any], region: str, style: str) -> None:
    location = locate(flags("s3://b/p", **options))
    assert (location.endpoint, location.region, location.style) == (options.get("endpoint"), region, style)


@pytest.mark.parametrize(
    ("uri", "options", "message"),
    [
        ("tos://b/p", {}, "--region"),
        ("tos:///p", {"region": "cn-beijing"}, "names no bucket"),
        ("s3://key:secret@b/p", {}, "pass keys in the environment"),
        ("s3://b/p", {"endpoint": "http://u:p@host"}, "--endpoint holds a user"),
    ],
)
def test_bad_locations(uri: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSource, match=message) as caught:
        locate(flags(uri, **options))
    assert "secret" not in str(caught.value)


@given(st.text(max_size=60))
def test_accepted_keys_stay_inside(key: str) -> None:
    try:
        path = Path("/cache") / relative_path(key, "")
    except UnsafeKey:
        return
    assert path.resolve().is_relative_to("/cache")
    assert path != Path("/cache")


@pytest.mark.parametrize(
    "path", ["original/params.json", "a/consolidated.00.pth", ".git/HEAD", "onnx/model.onnx", "q4.gguf"]
)
def test_what_the_engine_does_not_read_is_left_out(path: str) -> None:
    assert not is_selected(path, (), DEFAULT_EXCLUDE)


@pytest.mark.parametrize("path", ["config.json", "model-1.safetensors", "tokenizer.json", "merges.txt", "README.md"])
def test_what_the_engine_reads_is_selected(path: str) -> None:
    assert is_selected(path, (), DEFAULT_EXCLUDE)


def test_each_scheme_prefers_its_own_keys_and_never_mixes_families() -> None:
    env = {
        "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_SESSION_TOKEN": "c",
        "TOS_ACCESS_KEY": "d", "TOS_SECRET_KEY": "e",
    }  # fmt: skip
    assert credentials.load("s3", env, None) == credentials.Keys("a", "b", "c")
    assert credentials.load("tos", env, None) == credentials.Keys("d", "e", None)
    with pytest.raises(MissingCredentials, match="TOS_SECRET_KEY"):
        credentials.load("tos", env | {"TOS_SECRET_KEY": ""}, None)
    assert "d" not in repr(credentials.load("tos", env, None)).removeprefix("Keys")


def test_pauses_double_up_to_a_cap() -> None:
    retry = Retry(attempts=9, base_s=0.5, cap_s=20)
    assert [retry.delay_s(failures, 1.0) for failures in range(1, 9)] == [0.5, 1, 2, 4, 8, 16, 20, 20]
    assert retry.delay_s(5, 0.25) == 2


def test_bandwidth_is_shared_and_never_saved_up() -> None:
    now = 0.0
    slept: list[float] = []
    limiter = Limiter(100, clock=lambda: now, sleep=slept.append)
    limiter.spend(50)
    limiter.spend(50)
    assert slept == [0.5]
    now = 10.0
    limiter.spend(100)
    limiter.spend(1)
    assert slept == [0.5, 1.0]


def test_progress_is_readable() -> None:
    line = progress_line(
        fetched=2_000_000_000, reused=1_000_000_000, total=12_000_000_000, files_done=1, files=5, seconds=4
    )
    assert line == "3.00 of 12.00 GB (25 %), 1 of 5 files, 500 MB/s, 0:18 left"
    assert "stalled" in progress_line(fetched=0, reused=0, total=1, files_done=0, files=1, seconds=4)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (EndpointConnectionError(endpoint_url="u", error=socket.gaierror(-2, "unknown")), "does not resolve"),
        (EndpointConnectionError(endpoint_url="u", error=ConnectionRefusedError()), "refused the connection"),
        (ConnectTimeoutError(endpoint_url="u", error="e"), "timed out"),
        (TimeoutError("timed out"), "timed out on s3://b/p/; check the network"),
        (ConnectionResetError(), r"broke on s3://b/p/ \(ConnectionResetError\)"),
        (SSLError(endpoint_url="u", error=OSError()), "AWS_CA_BUNDLE"),
    ],
)
def test_network_errors_are_told_apart(error: Exception, message: str) -> None:
    location = locate(flags("s3://b/p", endpoint="http://minio:9000"))
    with pytest.raises(FetchError, match=message), translated(location, location.uri):
        raise error


@pytest.mark.parametrize(
    "given_flags",
    [
        FetchFlags(uri="/models/x"),
        flags("tos://b/p", region="cn-beijing", internal=True, include=("*.json", "*.safetensors"), parallelism=3),
        flags("s3://b/p", endpoint="http://h:1", addressing="path", anonymous=True, reuse_when_unreachable=False),
        flags("hf://a/b", revision="v1", exclude=("",), lock_timeout=5.0, metrics_port=8080, max_bandwidth="1.5GB"),
    ],
)
def test_flags_round_trip(given_flags: FetchFlags) -> None:
    assert parse(FetchFlags, to_argv(given_flags)) == given_flags


@pytest.mark.parametrize(
    "bad",
    [
        {"destination": None}, {"parallelism": 0}, {"part_size": "1KiB"}, {"part_size": "many"}, {"keep_free": "-1"},
        {"max_bandwidth": "0"}, {"internal": True}, {"progress_interval": 0.0}, {"max_attempts": 0},
    ],
)  # fmt: skip
def test_impossible_flags_name_themselves(bad: dict[str, Any]) -> None:
    with pytest.raises(FlagError, match="^--" + next(iter(bad)).replace("_", "-")):
        replace(flags("s3://b/p"), **bad).check()


@pytest.mark.parametrize(
    ("text", "size"), [("4096", 4096), ("32MiB", 32 << 20), ("1.5GB", 1_500_000_000), ("2Ki", 2048)]
)
def test_sizes(text: str, size: int) -> None:
    assert byte_size(text, "--x") == size
