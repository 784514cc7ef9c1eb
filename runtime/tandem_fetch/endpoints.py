"""From a URI and its options to an S3 endpoint. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from tandem_contract.fetch_flags import FetchFlags

from tandem_fetch.errors import BadSource

_NATIVE_TOS = re.compile(r"//tos-(?!s3-)([a-z0-9-]+\.i?volces\.com)")


@dataclass(frozen=True, slots=True)
class Location:
    """Where a prefix lives."""

    scheme: Literal["tos", "s3"]
    bucket: str
    prefix: str
    """Empty, or ends in `/`."""
    endpoint: str | None
    """None: AWS's own."""
    region: str
    style: Literal["virtual", "path"]

    @property
    def uri(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.prefix}"


def locate(flags: FetchFlags) -> Location:
    """Raises `BadSource`."""
    parts = urlsplit(flags.uri, allow_fragments=False)
    if parts.scheme not in ("tos", "s3") or not parts.netloc or parts.query:
        raise BadSource(f"{flags.uri!r} names no bucket", "write it as tos://BUCKET/PREFIX/ or s3://BUCKET/PREFIX/")
    if "@" in parts.netloc or ":" in parts.netloc:
        raise BadSource(
            "the URI holds more than bucket and prefix", "pass keys in the environment and the address as --endpoint"
        )
    prefix = parts.path.strip("/")
    endpoint = _endpoint(flags, parts.scheme)
    custom_s3 = parts.scheme == "s3" and endpoint is not None
    return Location(
        scheme="tos" if parts.scheme == "tos" else "s3",
        bucket=parts.netloc,
        prefix=f"{prefix}/" if prefix else "",
        endpoint=endpoint,
        region=flags.region or ("us-east-1" if parts.scheme == "s3" else _region_of(endpoint)),
        style=("path" if custom_s3 else "virtual") if flags.addressing == "auto" else flags.addressing,
    )


def _endpoint(flags: FetchFlags, scheme: str) -> str | None:
    if flags.endpoint is not None:
        url = flags.endpoint if "://" in flags.endpoint else f"https://{flags.endpoint}"
        if "@" in urlsplit(url).netloc:
            raise BadSource("--endpoint holds a user or password", "pass keys in the environment")
        # People copy the native endpoint from the console; the S3 protocol is spoken at its sibling.
        return _NATIVE_TOS.sub(r"//tos-s3-\1", url).rstrip("/")
    if scheme == "s3":
        return None
    if flags.region is None:
        raise BadSource("--region is missing", "name the bucket's region, such as --region=cn-beijing")
    return f"https://tos-s3-{flags.region}.{'ivolces' if flags.internal else 'volces'}.com"


def _region_of(endpoint: str | None) -> str:
    """TOS endpoints name their region; a signature needs one in any case."""
    match = re.search(r"//tos-s3-([a-z0-9-]+)\.i?volces\.com", endpoint or "")
    return match[1] if match else "cn-beijing"
