"""Requests of /v1/embeddings, which are all refused; see `server.embeddings`."""

from __future__ import annotations

from typing import Any

from tandem_runtime.server.protocol.base import RequestModel, ignored

_REFUSED = "embeddings are refused"


class EmbeddingsRequest(RequestModel):
    model: str
    input: Any = ignored(_REFUSED)
    dimensions: Any = ignored(_REFUSED)
    encoding_format: Any = ignored(_REFUSED)
    user: Any = ignored(_REFUSED)
