"""POST /v1/embeddings: refused in words, since every model served here generates text."""

from __future__ import annotations

from aiohttp import web

from tandem_runtime.server.errors import NoEmbeddingsError
from tandem_runtime.server.intake import read_json
from tandem_runtime.server.keys import POD
from tandem_runtime.server.protocol.base import parse
from tandem_runtime.server.protocol.embeddings import EmbeddingsRequest


async def embeddings(request: web.Request) -> web.StreamResponse:
    body = parse(EmbeddingsRequest, await read_json(request))
    request.app[POD].check_name(body.model)
    raise NoEmbeddingsError(
        f"the model '{body.model}' generates text and has no embeddings: its hidden states were not trained to be "
        "compared; send this request to a server of an embedding model, such as Qwen3-Embedding",
        param="model",
    )
