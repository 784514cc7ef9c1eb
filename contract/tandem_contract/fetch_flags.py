"""The command-line flags and exit codes of `tandem fetch`: the operator writes them, the init container reads them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from tandem_contract.flags import FlagError, flag, option_name

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_RETRYABLE = 75
"""sysexits.h EX_TEMPFAIL: the same command may succeed later (network, throttling, a source that changed)."""
EXIT_PERMANENT = 78
"""sysexits.h EX_CONFIG: someone has to change something first (credentials, URI, region, disk)."""

MANIFEST = ".tandem/manifest.json"
"""Completion marker, relative to the destination: written last, so a folder that has it is whole."""
DEFAULT_EXCLUDE = (
    ".git/*", ".gitattributes", ".cache/*", "original/*", "onnx/*",
    "*.pth", "*.gguf", "*.onnx", "*.msgpack", "*.h5", "*.ot",
)  # fmt: skip
"""Left out unless `--exclude` is given: weights in formats the engine does not read, and repository metadata."""

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?|)B?")


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchFlags:
    """`tandem fetch`: downloads a model folder once, verifies it, and leaves a completion marker."""

    uri: str = flag(help="tos://BUCKET/PREFIX, s3://BUCKET/PREFIX, hf://ORG/NAME, file:///PATH or a plain path")
    destination: str | None = flag(
        None, help="folder to fill; may be shared by many pods; unused for plain paths", metavar="DIR"
    )
    region: str | None = flag(
        None, help="region of the bucket, such as cn-beijing; required for tos:// without --endpoint"
    )
    endpoint: str | None = flag(None, help="S3 or hub endpoint instead of the region's own", metavar="URL")
    internal: bool = flag(False, help="tos://: use the endpoint inside the VPC")
    addressing: Literal["auto", "virtual", "path"] = flag(
        "auto", help="auto: path style for s3:// with --endpoint, else virtual-hosted"
    )
    credentials_dir: str | None = flag(
        None,
        help="mounted Secret, one file per variable (AWS_..., TOS_... or HF_TOKEN); default: the environment",
        metavar="DIR",
    )
    anonymous: bool = flag(False, help="sign nothing: for public buckets")
    revision: str | None = flag(None, help="hf://: branch, tag or commit; default: main")
    include: tuple[str, ...] = flag((), help="only paths that match one of these globs; default: all", metavar="GLOB")
    exclude: tuple[str, ...] = flag(
        (), help="no path that matches one of these globs; default: formats the engine does not read", metavar="GLOB"
    )
    parallelism: int = flag(16, help="ranged requests in flight")
    part_size: str = flag("32MiB", help="bytes per ranged request, rounded to the object's own upload parts")
    max_bandwidth: str | None = flag(None, help="bytes per second over all requests, such as 500MiB; default: no limit")
    keep_free: str = flag("1GiB", help="disk space that must stay free after the download")
    verify: Literal["checksum", "size"] = flag(
        "checksum", help="size: trust the network, for stores whose ETags are no MD5"
    )
    reuse_when_unreachable: bool = flag(
        True, help="use a complete cache of the same URI when the source cannot be asked"
    )
    lock_timeout: float | None = flag(
        None, help="seconds to wait for another downloader of the same folder; default: as long as it takes"
    )
    max_attempts: int = flag(8, help="attempts in a row without a byte of progress before a request is given up")
    progress_interval: float = flag(10.0, help="seconds between progress lines")
    metrics_port: int | None = flag(None, help="serve /metrics here while fetching; default: no server")
    termination_log: str | None = flag(
        None, help="file that receives the error line, such as /dev/termination-log", metavar="FILE"
    )
    log_format: Literal["text", "json"] = flag("text", help="log lines")
    log_level: Literal["debug", "info", "warning", "error"] = flag("info", help="least severe log line")

    def check(self) -> None:
        """Raises `FlagError` for impossible values."""
        for name in ("parallelism", "max_attempts"):
            if getattr(self, name) < 1:
                raise FlagError(f"{option_name(name)} must be at least 1")
        if self.part_bytes < 1024 * 1024:
            raise FlagError("--part-size must be at least 1MiB")
        if self.bandwidth_bytes is not None and self.bandwidth_bytes < 1:
            raise FlagError("--max-bandwidth must be at least 1 byte per second")
        if self.progress_interval <= 0:
            raise FlagError("--progress-interval must be above 0")
        _ = self.keep_free_bytes
        if self.destination is None and self.is_remote:
            raise FlagError(f"--destination is required with --uri {self.uri}")
        if self.internal and not self.uri.startswith("tos://"):
            raise FlagError("--internal is for tos:// only")

    @property
    def is_remote(self) -> bool:
        return "://" in self.uri and not self.uri.startswith("file://")

    @property
    def part_bytes(self) -> int:
        return byte_size(self.part_size, "--part-size")

    @property
    def bandwidth_bytes(self) -> int | None:
        return None if self.max_bandwidth is None else byte_size(self.max_bandwidth, "--max-bandwidth")

    @property
    def keep_free_bytes(self) -> int:
        return byte_size(self.keep_free, "--keep-free")


def byte_size(text: str, option: str) -> int:
    """Bytes in `text`, such as 32MiB, 1.5GB or 4096. Raises `FlagError` that starts with `option`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise FlagError(f"{option} must be a size such as 32MiB or 4GB, not {text!r}")
    return int(float(match[1]) * _UNITS[match[2]])
