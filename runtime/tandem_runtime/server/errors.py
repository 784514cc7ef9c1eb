"""Refusals that only HTTP knows, and the OpenAI shape that every refusal takes."""

from __future__ import annotations

import msgspec

from tandem_runtime.core.errors import RequestError

MAX_QUOTED = 2000


class UnauthorizedError(RequestError):
    status = 401
    type = "authentication_error"


class NoEmbeddingsError(RequestError):
    code = "embeddings_not_supported"


class NotFoundError(RequestError):
    status = 404
    code = "not_found"


class MethodNotAllowedError(RequestError):
    status = 405
    code = "method_not_allowed"


class BodyTimeoutError(RequestError):
    status = 408
    code = "body_timeout"


class OtherAnswerError(RequestError):
    """This pod would go on with a stream in another way than the pods that had it before."""

    status = 409
    code = "other_answer"


class BodyTooLargeError(RequestError):
    status = 413
    code = "body_too_large"


class ContentTypeError(RequestError):
    status = 415
    code = "unsupported_media_type"


class UnavailableError(RequestError):
    """The pod takes no requests now: its model is loading, or it is shutting down."""

    status = 503
    type = "overloaded_error"
    code = "unavailable"


class GenerationError(RequestError):
    """The engine gave up on a request that was in order."""

    status = 500
    type = "server_error"
    code = "generation_failed"


class InternalError(RequestError):
    status = 500
    type = "server_error"
    code = "internal_error"

    def __init__(self) -> None:
        super().__init__("an internal error occurred; it was logged under this request's id")


class ErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    error: ErrorDetail


def encode_error(error: RequestError) -> bytes:
    param = None if error.param is None else _quotable(error.param)
    detail = ErrorDetail(message=_quotable(str(error)), type=error.type, param=param, code=error.code)
    return msgspec.json.encode(ErrorBody(error=detail))


def _quotable(text: str) -> str:
    """Errors quote the client's own text, which may be megabytes long or hold what UTF-8 cannot."""
    return text[:MAX_QUOTED].encode("utf-8", "replace").decode()
