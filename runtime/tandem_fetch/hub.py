"""Models from Hugging Face, or a mirror of it named by `HF_ENDPOINT`, through its own client."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

from tandem_fetch import keys
from tandem_fetch.checks import Mismatch, SizeOnly, WholeFile
from tandem_fetch.errors import DISK_FULL, AccessDenied, BadSource, Corrupt, FetchError, NotFound, Unreachable
from tandem_fetch.manifest import Entry
from tandem_fetch.source import RemoteFile

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class HubClient(Protocol):
    """The two methods of `huggingface_hub.HfApi` that are used."""

    def model_info(self, repo_id: str, *, revision: str | None, files_metadata: bool) -> Any: ...

    def snapshot_download(self, repo_id: str, **options: Any) -> Any: ...


def is_repo(text: str) -> bool:
    """Whether `text` reads as ORG/NAME."""
    return _REPO.fullmatch(text) is not None


class HubOrigin:
    """See `origin.Origin`. The client resumes by itself, in `folder/.cache`."""

    def __init__(self, repo: str, *, revision: str | None, parallelism: int, client: HubClient) -> None:
        if not is_repo(repo):
            raise BadSource(f"{repo!r} is no hub repository", "write it as hf://ORG/NAME")
        self.uri = f"hf://{repo}"
        self._repo = repo
        self._revision = revision
        self._parallelism = parallelism
        self._client = client
        self._commit: str | None = None

    def list_files(self) -> list[RemoteFile]:
        with self._translated():
            info = self._client.model_info(self._repo, revision=self._revision, files_metadata=True)
        self._commit = info.sha
        return [
            RemoteFile(
                path=keys.relative_path(item.rfilename, ""),
                key=item.rfilename,
                size=item.size,
                etag=item.lfs.sha256 if item.lfs else item.blob_id,
            )
            for item in info.siblings
        ]

    def bring(
        self,
        files: Sequence[RemoteFile],
        folder: Path,
        staging: Path,
        *,
        on_file: Callable[[Entry], None],
        report: Callable[[str], None],
    ) -> None:
        with self._translated():
            self._client.snapshot_download(
                self._repo,
                revision=self._commit,
                local_dir=folder,
                allow_patterns=[glob.escape(f.key) for f in files],
                max_workers=self._parallelism,
            )
        # The client returns what it has, without an error, when the hub goes away in between.
        with ThreadPoolExecutor(self._parallelism, thread_name_prefix="verify") as pool:
            for entry in pool.map(lambda file: _verified(file, folder / file.path, self.uri), files):
                on_file(entry)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if isinstance(error, OSError) and (error.filename or error.errno in DISK_FULL):
                raise  # a local file's error, not the hub's; a failed write names no file
            raise _translate(error, self.uri, self._revision) from error


def connect(endpoint: str | None, token: str | None) -> HubClient:
    """`endpoint` None: `HF_ENDPOINT` or the public hub. `token` None: that of the user who logged in here, if any."""
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise BadSource(
            "hf:// needs the package huggingface_hub", "pip install huggingface_hub, or copy the model to a bucket"
        ) from error
    return cast("HubClient", HfApi(endpoint=endpoint, token=token))


def _verified(file: RemoteFile, path: Path, uri: str) -> Entry:
    if not path.is_file() or path.stat().st_size != file.size:
        raise Unreachable(f"the hub did not deliver all of {file.path} of {uri}", "try again; what was fetched is kept")
    check = WholeFile("sha256", file.etag) if _SHA256.fullmatch(file.etag) else SizeOnly("small file in git")
    try:
        return Entry(file.path, file.size, file.etag, check.verify(path, []))
    except Mismatch:
        path.unlink()
        raise Corrupt(f"checksum of {file.path} differs from the hub's", "it is fetched again") from None


def _translate(error: Exception, where: str, revision: str | None) -> FetchError:
    """By class name along the hierarchy: the client's HTTP library, and its errors, changed between majors."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "GatedRepoError" in kinds:
        return AccessDenied(f"{where} is gated", "accept its licence on the hub and set HF_TOKEN")
    if "RepositoryNotFoundError" in kinds:
        return NotFound(
            f"the hub has no {where}, or it is private", "check the name, and set HF_TOKEN if it is private"
        )
    if "RevisionNotFoundError" in kinds:
        return NotFound(f"{where} has no revision {revision!r}", "check --revision")
    return Unreachable(
        f"the hub cannot be reached for {where} ({type(error).__name__})",
        "set HF_ENDPOINT to a mirror, or use a tos:// or s3:// copy or a mounted path",
    )
