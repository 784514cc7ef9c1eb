"""`Source` over the S3 protocol: TOS, AWS, and look-alikes behind `--endpoint`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from botocore import UNSIGNED
from botocore.config import Config

from tandem_fetch import keys
from tandem_fetch.body import Body
from tandem_fetch.checks import Check, choose_check
from tandem_fetch.credentials import Keys
from tandem_fetch.digests import Algorithm
from tandem_fetch.endpoints import Location
from tandem_fetch.errors import BadSource, ExpiredCredentials, FetchError, NotFound
from tandem_fetch.s3_errors import translated
from tandem_fetch.source import ReadInto, RemoteFile

CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
STREAM_LIMIT = 128 * 2**20
"""Upload parts up to this size are hashed while they stream in, each by one request."""
_STORED: dict[Algorithm, str] = {"crc32": "ChecksumCRC32", "sha256": "ChecksumSHA256", "sha1": "ChecksumSHA1"}
"""What clients may have left beside the ETag, the cheapest first: a seventh, two fifths and half of MD5's CPU time."""


class S3Source:
    """Asks `load_keys` for credentials when it starts and when they have expired; None: unsigned requests."""

    def __init__(self, location: Location, *, load_keys: Callable[[], Keys] | None, parallelism: int) -> None:
        self._location = location
        self.uri = location.uri
        self._load_keys = load_keys
        self._parallelism = parallelism
        self._lock = threading.Lock()
        self._keys = load_keys() if load_keys else None
        self._client = self._connect()

    def list_files(self) -> list[RemoteFile]:
        files = []
        prefix = self._location.prefix
        with self._guard(self.uri) as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self._location.bucket, Prefix=prefix)
            for page in pages:
                for item in page.get("Contents", []):
                    if item["Key"].endswith("/") and item["Size"] == 0:
                        continue  # consoles create such markers for folders
                    path = keys.relative_path(item["Key"], prefix)
                    files.append(RemoteFile(path, item["Key"], item["Size"], item["ETag"].strip('"')))
        if not files:
            raise NotFound(f"nothing under {self.uri}", "check the prefix; it is a folder, not a name's beginning")
        return files

    def find_check(self, file: RemoteFile) -> Check:
        request = {"Bucket": self._location.bucket, "Key": file.key}
        what = f"{self.uri}{file.path}"
        with self._guard(what) as client:
            head = client.head_object(**request, ChecksumMode="ENABLED")
        stored = {name: head[field] for name, field in _STORED.items() if field in head}
        return choose_check(
            size=file.size,
            etag=file.etag,
            part_size=self._upload_part_size(request, file.size, what) if "-" in file.etag else None,
            stored=stored,
            etag_is_md5=head.get("ServerSideEncryption") in (None, "AES256") and "SSECustomerAlgorithm" not in head,
            stream_limit=STREAM_LIMIT,
        )

    def _upload_part_size(self, request: dict[str, str], size: int, what: str) -> int | None:
        """Bytes of all upload parts but the last; None where the store does not know `partNumber`, which not all do, or
        the last part shows that they are unequal, as copies of parts make them."""
        try:
            with self._guard(what) as client:
                first = client.head_object(**request, PartNumber=1)
                count = first.get("PartsCount") or 0
                last = client.head_object(**request, PartNumber=count) if count > 1 else first
        except FetchError as error:
            if error.retryable:
                raise
            return None
        part: int = first["ContentLength"]
        return part if count and part * (count - 1) + last["ContentLength"] == size else None

    @contextmanager
    def open_range(self, file: RemoteFile, start: int, length: int) -> Iterator[ReadInto]:
        what = f"{self.uri}{file.path}"
        with self._guard(what) as client:
            answer = client.get_object(
                Bucket=self._location.bucket,
                Key=file.key,
                Range=f"bytes={start}-{start + length - 1}",
                IfMatch=f'"{file.etag}"',
            )
        body = Body(answer["Body"])
        if length < file.size and answer["ResponseMetadata"]["HTTPStatusCode"] != 206:
            body.close()
            raise BadSource(f"the store ignored the byte range on {what}", "use an endpoint that supports ranged reads")

        def read_into(buffer: memoryview) -> int:
            with translated(self._location, what):
                return body.readinto(buffer)

        try:
            yield read_into
        finally:
            body.close()

    @contextmanager
    def _guard(self, what: str) -> Iterator[Any]:
        client = self._client
        try:
            with translated(self._location, what):
                yield client
        except ExpiredCredentials as error:
            if self._renew(client):
                error.retryable = True
            raise

    def _renew(self, used: Any) -> bool:
        """True when there are newer keys than those that `used` signs with."""
        with self._lock:
            if self._client is not used:
                return True
            fresh = self._load_keys() if self._load_keys else None
            if fresh == self._keys:
                return False
            self._keys = fresh
            self._client = self._connect()
            return True

    def _connect(self) -> Any:
        held = self._keys
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self._location.endpoint,
            region_name=self._location.region,
            aws_access_key_id=held.access_key if held else None,
            aws_secret_access_key=held.secret_key if held else None,
            aws_session_token=held.session_token if held else None,
            config=Config(
                signature_version="s3v4" if held else UNSIGNED,
                s3={"addressing_style": self._location.style},
                max_pool_connections=self._parallelism,
                connect_timeout=CONNECT_TIMEOUT_S,
                read_timeout=READ_TIMEOUT_S,
                retries={"total_max_attempts": 1},  # `retry` does this, with our logs and metrics
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
