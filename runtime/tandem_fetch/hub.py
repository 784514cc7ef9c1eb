"""Models from Hugging Face, or a mirror of it named by `HF_ENDPOINT`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tandem_contract.fetch_flags import DEFAULT_EXCLUDE

from tandem_fetch.errors import AccessDenied, BadSource, FetchError, NotFound, Unreachable

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
Snapshot = Callable[..., Any]


def is_repo(text: str) -> bool:
    """Whether `text` reads as ORG/NAME."""
    return _REPO.fullmatch(text) is not None


def fetch_hub(
    repo: str,
    destination: Path,
    *,
    revision: str | None = None,
    endpoint: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = DEFAULT_EXCLUDE,
    parallelism: int = 8,
    snapshot: Snapshot | None = None,
) -> None:
    """Brings `destination` up to `repo` (ORG/NAME) at `revision`; the hub's client resumes and verifies.

    `endpoint` defaults to `HF_ENDPOINT`; a token is taken from `HF_TOKEN`. Raises `FetchError`.
    """
    if not is_repo(repo):
        raise BadSource(f"{repo!r} is no hub repository", "write it as hf://ORG/NAME")
    where = f"hf://{repo}"
    try:
        download = snapshot or _client()
        download(
            repo,
            revision=revision,
            endpoint=endpoint,
            local_dir=destination,
            allow_patterns=list(include) or None,
            ignore_patterns=list(exclude),
            max_workers=parallelism,
        )
    except FetchError:
        raise
    except Exception as error:
        raise _translate(error, where, revision) from error


def _client() -> Snapshot:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise BadSource(
            "hf:// needs the package huggingface_hub", "pip install huggingface_hub, or copy the model to a bucket"
        ) from error
    return snapshot_download


def _translate(error: Exception, where: str, revision: str | None) -> FetchError:
    """By class name along the hierarchy: the client's HTTP library, and its errors, changed between majors."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "GatedRepoError" in kinds:
        return AccessDenied(f"{where} is gated", "accept its licence on the hub and set HF_TOKEN")
    if "RepositoryNotFoundError" in kinds:
        return NotFound(
            f"the hub has no {where}, or it is private", "check the name, and set HF_TOKEN for a private one"
        )
    if "RevisionNotFoundError" in kinds:
        return NotFound(f"{where} has no revision {revision!r}", "check --revision")
    if "HFValidationError" in kinds:
        return BadSource(f"{where} is not a valid name", "write it as hf://ORG/NAME")
    if isinstance(error, OSError) and error.filename:
        raise error
    return Unreachable(
        f"the hub cannot be reached for {where} ({type(error).__name__})",
        "set HF_ENDPOINT to a mirror, or use a tos:// or s3:// copy or a mounted path",
    )
