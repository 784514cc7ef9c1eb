"""One fetch from start to end: lock the cache, ask the source, download what differs, write the marker."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tandem_contract import env as env_names
from tandem_contract.fetch_flags import DEFAULT_EXCLUDE, FetchFlags

from tandem_fetch import credentials, disk, keys, model_folder
from tandem_fetch.bandwidth import Limiter
from tandem_fetch.endpoints import locate
from tandem_fetch.errors import (
    BadSource,
    Corrupt,
    ExpiredCredentials,
    FetchError,
    NotFound,
    SourceChanged,
    Unavailable,
    Unreachable,
)
from tandem_fetch.hub import fetch_hub
from tandem_fetch.lock import CacheLock
from tandem_fetch.manifest import Entry, Manifest, ManifestStore
from tandem_fetch.partial import journal_path
from tandem_fetch.progress import Progress
from tandem_fetch.retry import Retrier, Retry
from tandem_fetch.s3 import S3Source
from tandem_fetch.source import RemoteFile, Source
from tandem_fetch.telemetry import Telemetry
from tandem_fetch.transfer import Downloader, staged_path

log = logging.getLogger(__name__)

ROUNDS = 3
"""Times the source is listed again after an object changed or arrived corrupt."""
RETRY_LINES_EVERY_S = 2.0


class Fetch:
    """`run()` returns the folder that holds the whole model, or raises `FetchError` or `OSError`."""

    def __init__(
        self,
        flags: FetchFlags,
        *,
        env: Mapping[str, str],
        telemetry: Telemetry,
        free_bytes: Callable[[Path], int] = disk.free_bytes,
    ) -> None:
        self._flags = flags
        self._env = env
        self._telemetry = telemetry
        self._free_bytes = free_bytes
        self._exclude = flags.exclude or DEFAULT_EXCLUDE
        self._retry_logged = float("-inf")

    def run(self) -> Path:
        began = time.monotonic()
        if not self._flags.is_remote:
            folder = Path(self._flags.uri.removeprefix("file://"))
            model_folder.require_model(folder)
            log.info("%s is a model folder, used in place", folder)
            return folder
        assert self._flags.destination is not None  # FetchFlags.check
        folder = Path(self._flags.destination)
        with self._lock(folder) as lock:
            self._fill(folder, lock)
        self._telemetry.seconds.set(time.monotonic() - began)
        return folder

    def _lock(self, folder: Path) -> CacheLock:
        return CacheLock(
            folder / keys.CONTROL_FOLDER / "lock",
            holder=f"{self._env.get(env_names.POD_NAME) or socket.gethostname()}, process {os.getpid()}",
            announce=lambda line: log.info("%s: %s", folder, line),
            interval_s=self._flags.progress_interval,
            timeout_s=self._flags.lock_timeout,
        )

    def _fill(self, folder: Path, lock: CacheLock) -> None:
        store = ManifestStore(folder)
        try:
            if self._flags.uri.startswith("hf://"):
                self._fill_from_hub(folder, store)
            else:
                self._fill_from_bucket(folder, store, lock)
        except (Unreachable, Unavailable, ExpiredCredentials) as error:
            cached = store.complete()
            wanted = self._manifest(self._uri(), ())
            if not (
                self._flags.reuse_when_unreachable
                and cached
                and cached.has_same_source(wanted)
                and cached.is_intact(folder)
            ):
                raise
            log.warning("the source cannot be asked (%s); using the complete cache in %s", error.problem, folder)

    def _fill_from_bucket(self, folder: Path, store: ManifestStore, lock: CacheLock) -> None:
        location = locate(self._flags)
        secret = Path(self._flags.credentials_dir) if self._flags.credentials_dir else None
        source = S3Source(
            location,
            load_keys=None if self._flags.anonymous else lambda: credentials.load(location.scheme, self._env, secret),
            parallelism=self._flags.parallelism,
        )
        for last_round in (False,) * (ROUNDS - 1) + (True,):
            try:
                self._update(source, folder, store, lock)
                return
            except (Corrupt, SourceChanged) as error:
                if last_round:
                    raise
                self._note_retry(error, 0.0)

    def _update(self, source: Source, folder: Path, store: ManifestStore, lock: CacheLock) -> None:
        retrier = Retrier(Retry(self._flags.max_attempts), self._note_retry, threading.Event())
        files = self._select(retrier.call(source.list_files), source.uri)
        last = store.last()
        known = {entry.path: entry for entry in last.files if entry.is_intact(folder)} if last else {}
        missing = [f for f in files if not (f.path in known and known[f.path].is_copy_of(f))]
        kept = [known[f.path] for f in files if f not in missing]
        manifest = self._manifest(source.uri, kept)
        if not missing and store.complete() == manifest:
            log.info("%s is complete: %s", folder, _summary(manifest.files))
            return
        staging = folder / keys.CONTROL_FOLDER / "partial"
        _remove_leftovers(staging, missing)
        needed = sum(max(0, f.size - disk.allocated_bytes(staged_path(staging, f))) for f in missing)
        disk.require_space(
            needed=needed, free=self._free_bytes(folder), keep_free=self._flags.keep_free_bytes, folder=folder
        )
        store.save_unfinished(manifest)
        if missing:
            log.info("%s: %d of %d files to fetch from %s", folder, len(missing), len(files), source.uri)
            manifest = self._download(source, missing, manifest, folder, staging, store, retrier, lock)
        for path in {entry.path for entry in last.files} - {f.path for f in files} if last else ():
            log.info("removing %s: the source no longer has it", path)
            (folder / path).unlink(missing_ok=True)
        model_folder.require_shards(folder, source.uri)
        manifest = replace(manifest, files=tuple(sorted(manifest.files, key=lambda entry: entry.path)))
        store.save_complete(manifest)
        shutil.rmtree(staging, ignore_errors=True)
        log.info("%s is complete: %s", folder, _summary(manifest.files))

    def _download(
        self,
        source: Source,
        missing: Sequence[RemoteFile],
        manifest: Manifest,
        folder: Path,
        staging: Path,
        store: ManifestStore,
        retrier: Retrier,
        lock: CacheLock,
    ) -> Manifest:
        def on_file(entry: Entry) -> None:
            nonlocal manifest
            manifest = replace(manifest, files=(*manifest.files, entry))
            store.save_unfinished(manifest)
            log.debug("%s: %s", entry.path, entry.verified)

        def report(line: str) -> None:
            log.info("%s", line)
            lock.publish(line)

        with Progress(
            total=sum(f.size for f in missing),
            files=len(missing),
            report=report,
            interval_s=self._flags.progress_interval,
        ) as progress:
            Downloader(
                source,
                folder=folder,
                staging=staging,
                parallelism=self._flags.parallelism,
                part_bytes=self._flags.part_bytes,
                use_checksums=self._flags.verify == "checksum",
                limiter=Limiter(self._flags.bandwidth_bytes),
                retrier=retrier,
                progress=progress,
                on_bytes=self._telemetry.bytes.inc,
                on_file=on_file,
            ).download(missing)
        log.info("fetched %s", progress.line())
        return manifest

    def _fill_from_hub(self, folder: Path, store: ManifestStore) -> None:
        fetch_hub(
            self._flags.uri.removeprefix("hf://").strip("/"),
            folder,
            revision=self._flags.revision,
            endpoint=self._flags.endpoint or self._env.get("HF_ENDPOINT"),
            include=self._flags.include,
            exclude=self._exclude,
            parallelism=self._flags.parallelism,
        )
        model_folder.require_shards(folder, self._flags.uri)
        paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).parts[0][0] != ".")
        entries = [Entry(str(p.relative_to(folder)), p.stat().st_size, "", "by the hub's client") for p in paths]
        store.save_complete(self._manifest(self._uri(), entries))
        log.info("%s is complete: %s", folder, _summary(entries))

    def _select(self, files: Iterable[RemoteFile], uri: str) -> list[RemoteFile]:
        selected = [f for f in files if keys.is_selected(f.path, self._flags.include, self._exclude)]
        if not selected:
            raise NotFound(f"no object under {uri} is selected", "check --include and --exclude")
        keys.refuse_collisions(f.path for f in selected)
        return selected

    def _manifest(self, uri: str, files: Iterable[Entry]) -> Manifest:
        return Manifest(uri, self._flags.revision, self._flags.include, self._exclude, tuple(files))

    def _uri(self) -> str:
        scheme = self._flags.uri.partition("://")[0]
        if scheme == "hf":
            return self._flags.uri
        return locate(self._flags).uri

    def _note_retry(self, error: FetchError, delay_s: float) -> None:
        """Every retry is counted; lines are few, because workers fail together."""
        self._telemetry.retried(error.reason)
        now = time.monotonic()
        if now - self._retry_logged >= RETRY_LINES_EVERY_S:
            self._retry_logged = now
            log.warning("%s; trying again in %.1f s", error.problem, delay_s)


def scheme_of(uri: str) -> str:
    """tos, s3, hf or file. Raises `BadSource`."""
    scheme, separator, _ = uri.partition("://")
    if not separator:
        return "file"
    if scheme not in ("tos", "s3", "hf", "file"):
        raise BadSource(f"{scheme}:// is not known", "use tos://, s3://, hf:// or a path")
    return scheme


def _remove_leftovers(staging: Path, missing: Sequence[RemoteFile]) -> None:
    """Partial files that nobody will finish: their objects are gone or already here."""
    wanted = {staged_path(staging, f) for f in missing}
    wanted |= {journal_path(path) for path in wanted}
    for path in list(staging.rglob("*")):
        if path.is_file() and path not in wanted:
            path.unlink()


def _summary(files: Sequence[Entry]) -> str:
    by_size = sum(entry.verified.startswith("size") for entry in files)
    weaker = f", {by_size} of them verified by size only" if by_size else ""
    return f"{len(files)} files, {disk.gigabytes(sum(entry.size for entry in files))}{weaker}"
