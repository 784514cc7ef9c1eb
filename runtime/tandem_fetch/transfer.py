"""Downloads files from a `Source`: ranged requests in parallel, resumed, verified, then published one by one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial as bind
from pathlib import Path

from tandem_fetch.bandwidth import Limiter
from tandem_fetch.checks import Check, Empty, Mismatch, SizeOnly
from tandem_fetch.digests import SegmentHasher, Segments
from tandem_fetch.errors import Corrupt, FetchError, Unreachable
from tandem_fetch.manifest import Entry
from tandem_fetch.partial import Part, PartialFile, plan_parts
from tandem_fetch.progress import Progress
from tandem_fetch.retry import Retrier
from tandem_fetch.source import ReadInto, RemoteFile, Source
from tandem_fetch.workers import run_all

BUFFER_BYTES = 1024 * 1024


@dataclass(slots=True)
class _Job:
    """One file on its way; whoever takes its last part publishes it."""

    file: RemoteFile
    check: Check
    parts: list[Part]
    staged: Path
    identity: str
    left: int
    """Parts not taken yet; guarded by `lock`, as is `partial`."""
    partial: PartialFile | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def open(self) -> PartialFile:
        """At the first part, so that a folder of thousands of files does not need as many descriptors."""
        with self.lock:
            if self.partial is None:
                self.partial = PartialFile(self.staged, size=self.file.size, identity=self.identity)
            return self.partial


class Downloader:
    """Fills `folder` from `source`; `staging` must lie on the same file system."""

    def __init__(
        self,
        source: Source,
        *,
        folder: Path,
        staging: Path,
        parallelism: int,
        part_bytes: int,
        use_checksums: bool,
        limiter: Limiter,
        retrier: Retrier,
        progress: Progress,
        on_bytes: Callable[[int], None],
        on_file: Callable[[Entry], None],
    ) -> None:
        self._source = source
        self._folder = folder
        self._staging = staging
        self._parallelism = parallelism
        self._part_bytes = part_bytes
        self._use_checksums = use_checksums
        self._limiter = limiter
        self._retrier = retrier
        self._progress = progress
        self._on_bytes = on_bytes
        self._on_file = on_file
        self._lock = threading.Lock()
        self._buffers = threading.local()

    def download(self, files: Sequence[RemoteFile]) -> None:
        """Returns when all are published. Raises the first `FetchError`; what was finished by then is kept.

        After an interrupt the files stay open, as a worker may be about to write.
        """
        stop = self._retrier.stop
        jobs = run_all([bind(self._plan, file) for file in files], parallelism=self._parallelism, stop=stop)
        takes = [bind(self._take, job, part) for job in jobs for part in job.parts]
        try:
            run_all(takes, parallelism=self._parallelism, stop=stop)
        except Exception:
            for job in jobs:
                if job.partial is not None:
                    job.partial.close()
            raise

    def _plan(self, file: RemoteFile) -> _Job:
        check = self._choose_check(file)
        streamed = check.streamed
        parts = plan_parts(file.size, self._part_bytes, streamed.size if streamed else None) or [Part(0, 0)]
        identity = f"{file.etag} {self._part_bytes} {streamed}"
        return _Job(file, check, parts, staged_path(self._staging, file), identity, left=len(parts))

    def _choose_check(self, file: RemoteFile) -> Check:
        if not file.size:
            return Empty()
        if not self._use_checksums:
            return SizeOnly("as --verify asks", Segments(self._part_bytes, "xxh3"))
        return self._retrier.call(lambda: self._source.find_check(file))

    def _take(self, job: _Job, part: Part) -> None:
        partial = job.open()
        if not self._reuse(job, partial, part):
            self._fetch(job, partial, part)
        with job.lock:
            job.left -= 1
            last = job.left == 0
        if last:
            self._publish(job, partial)

    def _reuse(self, job: _Job, partial: PartialFile, part: Part) -> bool:
        known = partial.finished(part)
        if known is None:
            return False
        streamed = job.check.streamed
        if streamed is not None and streamed.of_file(partial.path, part.start, part.length) != known:
            return False
        self._progress.reused(part.length)
        return True

    def _fetch(self, job: _Job, partial: PartialFile, part: Part) -> None:
        hasher = SegmentHasher(job.check.streamed) if job.check.streamed else None
        have = failures = 0
        while have < part.length:
            try:
                with self._source.open_range(job.file, part.start + have, part.length - have) as read:
                    while have < part.length:
                        data = self._read(read, part.length - have)
                        partial.write(part.start + have, data)
                        if hasher is not None:
                            hasher.update(data)
                        have += len(data)
                        failures = 0
            except FetchError as error:
                failures += 1
                self._retrier.pause(error, failures)
        partial.record(part, hasher.finish() if hasher else [])

    def _read(self, read: ReadInto, limit: int) -> memoryview:
        count = read(self._buffer()[:limit])
        self._heed_stop()
        if count == 0:
            raise Unreachable("the server closed a connection early", "check the network between here and the store")
        self._limiter.spend(count)
        self._heed_stop()
        self._progress.fetched(count)
        self._on_bytes(count)
        return self._buffer()[:count]

    def _heed_stop(self) -> None:
        if self._retrier.stop.is_set():
            raise Unreachable("stopped", "see the error before this one")

    def _buffer(self) -> memoryview:
        if not hasattr(self._buffers, "view"):
            self._buffers.view = memoryview(bytearray(BUFFER_BYTES))
        view: memoryview = self._buffers.view
        return view

    def _publish(self, job: _Job, partial: PartialFile) -> None:
        try:
            verified = job.check.verify(partial.path, partial.digests(job.parts))
        except Mismatch:
            partial.discard()
            raise Corrupt(
                f"checksum of {job.file.path} differs from the source's",
                "it is fetched again; if it stays so, upload the object again or use --verify=size",
            ) from None
        partial.publish(self._folder / job.file.path)
        with self._lock:
            self._on_file(Entry(job.file.path, job.file.size, job.file.etag, verified))
        self._progress.file_done()


def staged_path(staging: Path, file: RemoteFile) -> Path:
    return staging / f"{file.path}.part"
