"""botocore's exceptions as ours: what was wrong, where, and what to do."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import urllib3.exceptions
from botocore import exceptions as boto

from tandem_fetch import errors
from tandem_fetch.endpoints import Location
from tandem_fetch.errors import FetchError

_DENIED = {"AccessDenied", "403", "AllAccessDisabled", "AccountProblem", "InvalidObjectState"}
_BAD_KEY = {"InvalidAccessKeyId", "SignatureDoesNotMatch"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken", "InvalidSecurityToken"}
_REGION = {
    "PermanentRedirect",
    "301",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "TemporaryRedirect",
    "307",
}
_OVERLOADED = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestTimeout",
    "ServiceUnavailable",
    "InternalError",
    "TooManyRequests",
}


@contextmanager
def translated(location: Location, what: str) -> Iterator[None]:
    """Turns every exception of the S3 client, and of reading its bodies, into a `FetchError` about `what`."""
    try:
        yield
    except boto.ClientError as error:
        raise _answer(error, location, what) from error
    except (boto.BotoCoreError, urllib3.exceptions.HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.filename:
            raise  # a local file's error, not the network's
        raise _network(error, location, what) from error


def _answer(error: boto.ClientError, location: Location, what: str) -> FetchError:
    code = error.response.get("Error", {}).get("Code", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    if code in _EXPIRED:
        return errors.ExpiredCredentials(
            f"{status} {code} on {what}: the session token is expired or invalid",
            "renew the credentials and their session token",
        )
    if code in _BAD_KEY:
        which = (
            "the access key is unknown"
            if code == "InvalidAccessKeyId"
            else "the secret key does not fit the access key"
        )
        return errors.AccessDenied(
            f"{status} {code} on {what}: {which}", "check the credentials and that they belong to this endpoint"
        )
    if code == "RequestTimeTooSkewed":
        return errors.AccessDenied(f"{status} {code} on {what}: this machine's clock is off", "synchronise the clock")
    if code in _REGION or status in (301, 307):
        told = headers.get("x-amz-bucket-region") or error.response.get("Error", {}).get("Region")
        hint = f"use --region={told}" if told else "use --region and --endpoint of the bucket's region"
        return errors.WrongRegion(
            f"{status} {code} on {what}: bucket {location.bucket} is not in {location.region}", hint
        )
    if code in _DENIED or status in (401, 403):
        return errors.AccessDenied(
            f"{status} {code} on {what}", f"grant GetObject and ListBucket on {location.bucket} to these credentials"
        )
    if code == "NoSuchBucket":
        return errors.NotFound(
            f"404 NoSuchBucket: there is no bucket {location.bucket}", "check its name, --region and --endpoint"
        )
    if code in ("PreconditionFailed", "412", "InvalidRange", "416", "NoSuchKey", "404"):
        return errors.SourceChanged(f"{status} {code}: {what} was replaced or deleted meanwhile", "fetch again")
    if code in _OVERLOADED or status == 429 or status in (500, 502, 503, 504):
        return errors.Unavailable(
            f"{status} {code} on {what}", "the store is overloaded or down; lower --parallelism or try later"
        )
    return errors.BadSource(f"{status} {code} on {what}", "check the URI, --endpoint and --addressing")


def _network(error: Exception, location: Location, what: str) -> FetchError:
    where = location.endpoint or f"the S3 endpoint of {location.region}"
    if isinstance(error, boto.SSLError):
        return errors.BadSource(f"TLS to {where} failed", "check the endpoint, or name its CA in AWS_CA_BUNDLE")
    if isinstance(error, boto.ParamValidationError | boto.InvalidEndpointDiscoveryConfigurationError):
        return errors.BadSource(f"{what} is not a valid request", "check the bucket's name")
    chain = list(_causes(error))
    if any(isinstance(cause, socket.gaierror | urllib3.exceptions.NameResolutionError) for cause in chain):
        return errors.Unreachable(
            f"the name of {where} does not resolve",
            "check --endpoint, --region and DNS; --internal names resolve in the VPC only",
        )
    if any(isinstance(cause, ConnectionRefusedError) for cause in chain):
        return errors.Unreachable(f"{where} refused the connection", "check --endpoint and that the store is up")
    if any(
        isinstance(
            cause, TimeoutError | boto.ReadTimeoutError | boto.ConnectTimeoutError | urllib3.exceptions.TimeoutError
        )
        for cause in chain
    ):
        return errors.Unreachable(
            f"{where} timed out on {what}", "check the network, and --internal where this is no VPC of the region"
        )
    return errors.Unreachable(
        f"connection to {where} broke on {what} ({type(error).__name__})",
        "check the network between here and the store",
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it wraps, and what that came from: clients hide the socket's own error three deep."""
    seen: set[int] = set()
    pending = [error]
    while pending:
        current = pending.pop()
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        kwargs = getattr(current, "kwargs", {})
        pending += [
            current.__cause__,
            current.__context__,
            getattr(current, "reason", None),
            kwargs.get("error"),
            *current.args,
        ]
