"""Downloads files from a `Source`: ranged requests in parallel, resumed, verified, then published one by one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from tandem_fetch.bandwidth import Limiter
from tandem_fetch.checks import Check, Mismatch, SegmentHasher, SizeOnly, segment_md5s
from tandem_fetch.errors import Corrupt, FetchError, Unreachable
from tandem_fetch.manifest import Entry
from tandem_fetch.partial import Part, PartialFile, plan_parts
from tandem_fetch.progress import Progress
from tandem_fetch.retry import Retrier
from tandem_fetch.source import ReadInto, RemoteFile, Source

BUFFER_BYTES = 1024 * 1024


@dataclass(slots=True)
class _Job:
    """One file on its way. `left` is guarded by the downloader's lock; whoever takes the last part publishes."""

    file: RemoteFile
    check: Check
    partial: PartialFile
    parts: list[Part]
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = len(self.parts)


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
        """Returns when all are published. Raises the first `FetchError`; what was finished by then is kept."""
        jobs: list[_Job] = []
        with ThreadPoolExecutor(self._parallelism, thread_name_prefix="fetch") as pool:
            try:
                for opened in [pool.submit(self._open, file) for file in files]:
                    jobs.append(opened.result())
                _all(pool.submit(self._take, job, part) for job in jobs for part in job.parts or [Part(0, 0)])
            except BaseException:
                self._retrier.stop.set()
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                for job in jobs:
                    job.partial.close()

    def _open(self, file: RemoteFile) -> _Job:
        if self._use_checksums:
            check = self._retrier.call(lambda: self._source.find_check(file))
        else:
            check = SizeOnly("as --verify asks", segment=self._part_bytes)
        parts = plan_parts(file.size, self._part_bytes, check.segment)
        partial = PartialFile(
            staged_path(self._staging, file), size=file.size, identity=f"{file.etag} {self._part_bytes} {check.segment}"
        )
        return _Job(file, check, partial, parts)

    def _take(self, job: _Job, part: Part) -> None:
        if part.length and not self._reuse(job, part):
            self._fetch(job, part)
        with self._lock:
            job.left -= 1
            last = job.left <= 0
        if last:
            self._publish(job)

    def _reuse(self, job: _Job, part: Part) -> bool:
        known = job.partial.finished(part)
        if known is None:
            return False
        segment = job.check.segment
        if segment is not None and segment_md5s(job.partial.path, part.start, part.length, segment) != known:
            return False
        self._progress.reused(part.length)
        return True

    def _fetch(self, job: _Job, part: Part) -> None:
        hasher = SegmentHasher(job.check.segment)
        have = failures = 0
        while have < part.length:
            try:
                with self._source.open_range(job.file, part.start + have, part.length - have) as read:
                    while have < part.length:
                        data = self._read(read, part.length - have)
                        job.partial.write(part.start + have, data)
                        hasher.update(data)
                        have += len(data)
                        failures = 0
            except FetchError as error:
                failures += 1
                self._retrier.pause(error, failures)
        job.partial.record(part, hasher.finish())

    def _read(self, read: ReadInto, limit: int) -> memoryview:
        if self._retrier.stop.is_set():
            raise Unreachable("stopped", "see the error before this one")
        count = read(self._buffer()[:limit])
        if count == 0:
            raise Unreachable("the server closed a connection early", "check the network between here and the store")
        self._limiter.spend(count)
        self._progress.fetched(count)
        self._on_bytes(count)
        return self._buffer()[:count]

    def _buffer(self) -> memoryview:
        if not hasattr(self._buffers, "view"):
            self._buffers.view = memoryview(bytearray(BUFFER_BYTES))
        view: memoryview = self._buffers.view
        return view

    def _publish(self, job: _Job) -> None:
        try:
            verified = job.check.verify(job.partial.path, job.partial.segments(job.parts))
        except Mismatch:
            job.partial.discard()
            raise Corrupt(
                f"checksum of {job.file.path} differs from the source's",
                "it is fetched again; if it stays so, upload the object again or use --verify=size",
            ) from None
        job.partial.publish(self._folder / job.file.path)
        with self._lock:
            self._on_file(Entry(job.file.path, job.file.size, job.file.etag, verified))
        self._progress.file_done()


def staged_path(staging: Path, file: RemoteFile) -> Path:
    return staging / f"{file.path}.part"


def _all(futures: Iterable[Future[None]]) -> None:
    done, _ = wait(list(futures), return_when=FIRST_EXCEPTION)
    for future in done:
        future.result()
