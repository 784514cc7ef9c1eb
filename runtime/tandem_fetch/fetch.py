"""One fetch from start to end: lock the cache, ask the origin, bring what differs, write the marker."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from tandem_contract import env as env_names
from tandem_contract.fetch_flags import DEFAULT_EXCLUDE, FetchFlags

from tandem_fetch import credentials, disk, hub, keys, model_folder
from tandem_fetch.bucket import BucketOrigin
from tandem_fetch.checks import AS_ASKED
from tandem_fetch.endpoints import locate
from tandem_fetch.errors import (
    BadSource,
    Corrupt,
    ExpiredCredentials,
    NotFound,
    SourceChanged,
    Unavailable,
    Unreachable,
)
from tandem_fetch.lock import CacheLock
from tandem_fetch.manifest import Entry, Manifest, ManifestStore
from tandem_fetch.origin import Origin
from tandem_fetch.partial import journal_path
from tandem_fetch.s3 import S3Source
from tandem_fetch.source import RemoteFile
from tandem_fetch.telemetry import Telemetry
from tandem_fetch.transfer import staged_path

log = logging.getLogger(__name__)

ROUNDS = 3
"""Times the origin is asked again after an object changed or arrived corrupt."""


def fetch_hub(repo: str, destination: Path, *, revision: str | None = None) -> Path:
    """Brings ORG/NAME from the hub into `destination` unless it is there; returns it. Raises as `Fetch.run`."""
    flags = FetchFlags(uri=f"hf://{repo}", destination=str(destination), revision=revision)
    return Fetch(flags, env=os.environ, telemetry=Telemetry("hf")).run()


class Fetch:
    """`run()` returns the folder that holds the whole model, or raises `FetchError` or `OSError`."""

    def __init__(
        self,
        flags: FetchFlags,
        *,
        env: Mapping[str, str],
        telemetry: Telemetry,
        free_bytes: Callable[[Path], int] = disk.free_bytes,
        connect_hub: Callable[[str | None, str | None], hub.HubClient] = hub.connect,
    ) -> None:
        self._flags = flags
        self._env = env
        self._telemetry = telemetry
        self._free_bytes = free_bytes
        self._connect_hub = connect_hub
        self._exclude = flags.exclude or DEFAULT_EXCLUDE

    def run(self) -> Path:
        began = time.monotonic()
        if scheme_of(self._flags.uri) == "file":
            folder = Path(self._flags.uri.removeprefix("file://"))
            model_folder.require_model(folder)
            log.info("%s is a model folder, used in place", folder)
            return folder
        assert self._flags.destination is not None  # FetchFlags.check
        folder = Path(self._flags.destination)
        origin = self._origin()
        with self._lock(folder) as lock:
            self._fill(origin, folder, lock)
        self._telemetry.seconds.set(time.monotonic() - began)
        return folder

    def _origin(self) -> Origin:
        flags = self._flags
        secret = Path(flags.credentials_dir) if flags.credentials_dir else None
        if scheme_of(flags.uri) == "hf":
            token = credentials.hub_token(self._env, secret)
            client = self._connect_hub(flags.endpoint or self._env.get("HF_ENDPOINT"), token)
            repo = flags.uri.removeprefix("hf://").strip("/")
            return hub.HubOrigin(repo, revision=flags.revision, parallelism=flags.parallelism, client=client)
        location = locate(flags)
        source = S3Source(
            location,
            load_keys=None if flags.anonymous else lambda: credentials.load(location.scheme, self._env, secret),
            parallelism=flags.parallelism,
        )
        return BucketOrigin(source, flags, self._telemetry)

    def _lock(self, folder: Path) -> CacheLock:
        return CacheLock(
            folder / keys.CONTROL_FOLDER / "lock",
            holder=f"{self._env.get(env_names.POD_NAME) or socket.gethostname()}, process {os.getpid()}",
            announce=lambda line: log.info("%s: %s", folder, line),
            interval_s=self._flags.progress_interval,
            timeout_s=self._flags.lock_timeout,
        )

    def _fill(self, origin: Origin, folder: Path, lock: CacheLock) -> None:
        store = ManifestStore(folder)
        for rounds_left in reversed(range(ROUNDS)):
            try:
                self._update(origin, folder, store, lock)
                return
            except (Corrupt, SourceChanged) as error:
                if not rounds_left:
                    raise
                self._telemetry.retried(error.reason)
                log.warning("%s; asking the source again", error.problem)
            except (Unreachable, Unavailable, ExpiredCredentials) as error:
                if not (self._flags.reuse_when_unreachable and self._is_whole(origin, folder, store)):
                    raise
                log.warning("the source cannot be asked (%s); using the complete cache in %s", error.problem, folder)
                return

    def _is_whole(self, origin: Origin, folder: Path, store: ManifestStore) -> bool:
        cached = store.complete()
        return cached is not None and cached.has_same_source(self._manifest(origin, ())) and cached.is_intact(folder)

    def _update(self, origin: Origin, folder: Path, store: ManifestStore, lock: CacheLock) -> None:
        files = self._select(origin.list_files(), origin.uri)
        last = store.last()
        known = {entry.path: entry for entry in last.files if entry.is_intact(folder)} if last else {}
        kept = [known[f.path] for f in files if f.path in known and known[f.path].is_copy_of(f)]
        if self._flags.verify == "checksum":
            kept = [entry for entry in kept if entry.verified != AS_ASKED]
        have = {entry.path for entry in kept}
        missing = [f for f in files if f.path not in have]
        manifest = self._manifest(origin, kept)
        if not missing and store.complete() == manifest:
            log.info("%s is complete: %s", folder, _summary(manifest.files))
            return
        staging = folder / keys.CONTROL_FOLDER / "partial"
        self._make_room(missing, folder, staging)
        store.save_unfinished(manifest)
        if missing:
            log.info("%s: %d of %d files to fetch from %s", folder, len(missing), len(files), origin.uri)
            manifest = _bring(origin, missing, manifest, folder, staging, store, lock)
        for path in {entry.path for entry in last.files} - {f.path for f in files} if last else ():
            log.info("removing %s: the source no longer has it", path)
            (folder / path).unlink(missing_ok=True)
        model_folder.require_shards(folder, origin.uri)
        store.save_complete(manifest)
        shutil.rmtree(staging, ignore_errors=True)
        log.info("%s is complete: %s", folder, _summary(manifest.files))

    def _select(self, files: Iterable[RemoteFile], uri: str) -> list[RemoteFile]:
        selected = [f for f in files if keys.is_selected(f.path, self._flags.include, self._exclude)]
        if not selected:
            raise NotFound(f"no object under {uri} is selected", "check --include and --exclude")
        keys.refuse_collisions(f.path for f in selected)
        return selected

    def _make_room(self, missing: Sequence[RemoteFile], folder: Path, staging: Path) -> None:
        """Removes partial files that nobody will finish, then checks that the rest fits."""
        partials = {staged_path(staging, f): f.size for f in missing}
        wanted = partials.keys() | {journal_path(path) for path in partials}
        for path in list(staging.rglob("*")):
            if path.is_file() and path not in wanted:
                path.unlink()
        disk.require_space(
            needed=sum(max(0, size - disk.allocated_bytes(path)) for path, size in partials.items()),
            free=self._free_bytes(folder),
            keep_free=self._flags.keep_free_bytes,
            folder=folder,
        )

    def _manifest(self, origin: Origin, files: Iterable[Entry]) -> Manifest:
        return Manifest.of(origin.uri, self._flags.revision, self._flags.include, self._exclude, files)


def scheme_of(uri: str) -> str:
    """tos, s3, hf or file. Raises `BadSource`."""
    scheme, separator, _ = uri.partition("://")
    if not separator:
        return "file"
    if scheme not in ("tos", "s3", "hf", "file"):
        raise BadSource(f"{scheme}:// is not known", "use tos://, s3://, hf:// or a path")
    return scheme


def _bring(
    origin: Origin,
    missing: Sequence[RemoteFile],
    manifest: Manifest,
    folder: Path,
    staging: Path,
    store: ManifestStore,
    lock: CacheLock,
) -> Manifest:
    """The manifest with `missing` added; each file is noted as soon as it is there, for the next run."""

    def on_file(entry: Entry) -> None:
        nonlocal manifest
        manifest = manifest.with_entry(entry)
        store.save_unfinished(manifest)
        log.debug("%s: %s", entry.path, entry.verified)

    def report(line: str) -> None:
        log.info("%s", line)
        lock.publish(line)

    origin.bring(missing, folder, staging, on_file=on_file, report=report)
    return manifest


def _summary(files: Sequence[Entry]) -> str:
    by_size = sum(entry.verified.startswith("size") for entry in files)
    weaker = f", {by_size} of them verified by size only" if by_size else ""
    return f"{len(files)} files, {disk.gigabytes(sum(entry.size for entry in files))}{weaker}"
