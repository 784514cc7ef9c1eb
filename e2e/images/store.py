"""Runs SeaweedFS's S3 gateway on port 8333 and fills the bucket `models` from /models; then /tmp/filled exists."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

PORT, BUCKET = 8333, "models"
DATA, SETTINGS, FILLED = Path("/tmp/data"), Path("/tmp/s3.json"), Path("/tmp/filled")


def main() -> int:
    access, secret = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    identity = {"name": "test", "credentials": [{"accessKey": access, "secretKey": secret}], "actions": ["Admin"]}
    SETTINGS.write_text(json.dumps({"identities": [identity]}))
    DATA.mkdir(exist_ok=True)
    weed = subprocess.Popen(
        [
            "weed", "-logtostderr=true", "server", f"-dir={DATA}", "-ip=127.0.0.1", "-ip.bind=0.0.0.0",
            "-master.telemetry=false", "-volume.max=100", "-master.volumeSizeLimitMB=1024",
            "-s3", f"-s3.config={SETTINGS}", f"-s3.port={PORT}", "-s3.port.iceberg=0", "-s3.port.lance=0",
        ]
    )  # fmt: skip
    try:
        fill(weed)
        return weed.wait()
    finally:
        weed.kill()


def fill(weed: "subprocess.Popen[bytes]") -> None:
    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{PORT}",
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )
    while True:
        try:
            client.create_bucket(Bucket=BUCKET)
            break
        except (BotoCoreError, ClientError):
            if weed.poll() is not None:
                sys.exit("weed ended")
            time.sleep(0.2)
    for file in sorted(Path("/models").rglob("*")):
        if file.is_file():
            client.upload_file(str(file), BUCKET, str(file.relative_to("/models")))
    FILLED.touch()


if __name__ == "__main__":
    sys.exit(main())
