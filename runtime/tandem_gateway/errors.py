"""Every error the gateway answers with itself, in the shape of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

RETRY_AFTER_S = 1


class ApiError(Exception):
    """Becomes an HTTP answer, or an error event where the stream has begun."""

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    @property
    def headers(self) -> Mapping[str, str]:
        return {}

    def to_json(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def body(self) -> bytes:
        return orjson.dumps(self.to_json())

    def event(self) -> bytes:
        """The last event of a stream that cannot go on (server-sent events, WHATWG HTML 9.2)."""
        return b"data: " + self.body() + b"\n\n"


class _RetryLater(ApiError):
    @property
    def headers(self) -> Mapping[str, str]:
        return {"Retry-After": str(RETRY_AFTER_S)}


class BadRequest(ApiError):
    status, type = 400, "invalid_request_error"


class Unauthorized(ApiError):
    status, type, code = 401, "invalid_request_error", "invalid_api_key"

    @property
    def headers(self) -> Mapping[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class NotFound(ApiError):
    status, type, code = 404, "invalid_request_error", "not_found"


class MethodNotAllowed(ApiError):
    status, type, code = 405, "invalid_request_error", "method_not_allowed"


class ModelNotFound(ApiError):
    status, type, code = 404, "invalid_request_error", "model_not_found"


class BodyTimeout(ApiError):
    status, type, code = 408, "invalid_request_error", "body_timeout"


class ClientTooSlow(ApiError):
    """In the middle of a stream; no other pod could do better."""

    status, type, code = 408, "invalid_request_error", "client_too_slow"


class BodyTooLarge(ApiError):
    status, type, code = 413, "invalid_request_error", "request_too_large"


class UnsupportedMediaType(ApiError):
    status, type, code = 415, "invalid_request_error", "unsupported_media_type"


class UnsupportedEncoding(ApiError):
    status, type, code = 415, "invalid_request_error", "unsupported_encoding"


class TooManyRequests(_RetryLater):
    status, type, code = 429, "rate_limit_error", "too_many_requests"


class BadUpstream(ApiError):
    """A pod broke its answer off and another attempt was not possible."""

    status, type, code = 502, "server_error", "pod_failed"


class PodLeaving(BadUpstream):
    """Not told to clients: their streams go on at another pod."""


class NoPodAvailable(_RetryLater):
    status, type, code = 503, "server_error", "no_pod_available"


class ShuttingDown(_RetryLater):
    status, type, code = 503, "server_error", "shutting_down"

    def __init__(self) -> None:
        super().__init__("The gateway is shutting down.")


class UpstreamTimeout(ApiError):
    status, type, code = 504, "server_error", "timeout"


class Stalled(UpstreamTimeout):
    """A pod fell silent in the middle of an answer; there is time left for another one."""
