"""Everything that can go wrong in the world, on one page. Each error is one line: what is wrong; what to do."""

from __future__ import annotations

import errno

from tandem_contract import fetch_flags


class FetchError(Exception):
    """Base. `retryable` says whether the same request may succeed later without anybody's help."""

    retryable = False
    reason = "error"
    """Label of the retry metric and of the log line."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem
        self.remedy = remedy

    @property
    def exit_code(self) -> int:
        return fetch_flags.EXIT_RETRYABLE if self.retryable else fetch_flags.EXIT_PERMANENT


class BadSource(FetchError):
    """The URI or its options make no sense."""

    reason = "bad_source"


class MissingCredentials(FetchError):
    reason = "missing_credentials"


class AccessDenied(FetchError):
    reason = "access_denied"


class ExpiredCredentials(FetchError):
    reason = "expired_credentials"


class NotFound(FetchError):
    """No such bucket, prefix, repository or path."""

    reason = "not_found"


class WrongRegion(FetchError):
    reason = "wrong_region"


class UnsafeKey(FetchError):
    """An object key that would be written outside the destination, or over another file."""

    reason = "unsafe_key"


class IncompleteSource(FetchError):
    """The folder names weight shards that it does not hold."""

    reason = "incomplete_source"


class DiskProblem(FetchError):
    reason = "disk"


class Corrupt(FetchError):
    """Size or checksum differ from the source's; the file was thrown away, so another try starts it afresh."""

    retryable = True
    reason = "corrupt"


class SourceChanged(FetchError):
    """An object was replaced while it was being read."""

    retryable = True
    reason = "source_changed"


class Unreachable(FetchError):
    """Refused, reset, timed out or not resolvable."""

    retryable = True
    reason = "unreachable"


class Unavailable(FetchError):
    """The server answered that it cannot serve right now (429, 5xx, SlowDown)."""

    retryable = True
    reason = "unavailable"


class Busy(FetchError):
    """Another process kept the cache lock for longer than `--lock-timeout`."""

    retryable = True
    reason = "busy"


DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def disk_problem(error: OSError) -> DiskProblem:
    """Names the path and the remedy of a failed local file operation."""
    where = error.filename or "the destination"
    if error.errno in DISK_FULL:
        return DiskProblem(
            f"no space left writing {where}", "free space or use a larger cache volume; what was fetched is kept"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return DiskProblem(
            f"not allowed to write {where}", "check the volume's owner and mode (in a pod: securityContext.fsGroup)"
        )
    if error.errno == errno.EROFS:
        return DiskProblem(f"{where} is on a read-only volume", "mount the cache volume writable in the init container")
    if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP):
        return DiskProblem(f"{where} cannot be locked", "use a cache volume that supports file locks")
    return DiskProblem(f"file operation failed on {where}: {error.strerror or error}", "check the cache volume")
