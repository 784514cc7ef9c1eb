"""A bucket's prefix as the origin of a folder: listing with retries, then the parallel downloader."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tandem_contract.fetch_flags import FetchFlags

from tandem_fetch.bandwidth import Limiter
from tandem_fetch.errors import FetchError
from tandem_fetch.manifest import Entry
from tandem_fetch.progress import Progress
from tandem_fetch.retry import Retrier, Retry
from tandem_fetch.source import RemoteFile, Source
from tandem_fetch.telemetry import Telemetry
from tandem_fetch.transfer import Downloader

log = logging.getLogger(__name__)

RETRY_LINES_EVERY_S = 2.0


class BucketOrigin:
    """See `origin.Origin`."""

    def __init__(self, source: Source, flags: FetchFlags, telemetry: Telemetry) -> None:
        self.uri = source.uri
        self._source = source
        self._flags = flags
        self._telemetry = telemetry
        self._retry_logged = float("-inf")

    def list_files(self) -> list[RemoteFile]:
        return self._retrier().call(self._source.list_files)

    def bring(
        self,
        files: Sequence[RemoteFile],
        folder: Path,
        staging: Path,
        *,
        on_file: Callable[[Entry], None],
        report: Callable[[str], None],
    ) -> None:
        flags = self._flags
        retrier = self._retrier()
        with Progress(
            total=sum(f.size for f in files), files=len(files), report=report, interval_s=flags.progress_interval
        ) as progress:
            Downloader(
                self._source,
                folder=folder,
                staging=staging,
                parallelism=flags.parallelism,
                part_bytes=flags.part_bytes,
                use_checksums=flags.verify == "checksum",
                limiter=Limiter(flags.bandwidth_bytes, sleep=retrier.stop.wait),
                retrier=retrier,
                progress=progress,
                on_bytes=self._telemetry.bytes.inc,
                on_file=on_file,
            ).download(files)
        report(f"fetched {progress.line()}")

    def _retrier(self) -> Retrier:
        return Retrier(Retry(self._flags.max_attempts), self._note_retry, threading.Event())

    def _note_retry(self, error: FetchError, delay_s: float) -> None:
        """Every retry is counted; lines are few, because workers fail together."""
        self._telemetry.retried(error.reason)
        now = time.monotonic()
        if now - self._retry_logged >= RETRY_LINES_EVERY_S:
            self._retry_logged = now
            log.warning("%s; trying again in %.1f s", error.problem, delay_s)
