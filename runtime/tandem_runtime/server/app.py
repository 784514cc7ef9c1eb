"""The two aiohttp applications of an engine pod: the API, and the probes and metrics beside it."""

from __future__ import annotations

from aiohttp import web
from tandem_contract.status import STATUS_PATH

from tandem_runtime.server import info
from tandem_runtime.server.chat import chat_completions
from tandem_runtime.server.completions import completions
from tandem_runtime.server.embeddings import embeddings
from tandem_runtime.server.keys import POD
from tandem_runtime.server.middleware import add_request_id, frame
from tandem_runtime.server.pod import Pod
from tandem_runtime.server.responses import create_response
from tandem_runtime.server.tokens import detokenize, tokenize

MAX_BODY_BYTES = 8 * 1024 * 1024


def build_app(pod: Pod) -> web.Application:
    app = _base(pod)
    app.router.add_post("/v1/chat/completions", chat_completions)
    app.router.add_post("/v1/completions", completions)
    app.router.add_post("/v1/responses", create_response)
    app.router.add_post("/v1/embeddings", embeddings)
    app.router.add_get("/v1/models", info.list_models)
    app.router.add_get("/v1/models/{model:.+}", info.get_model)
    app.router.add_post("/tokenize", tokenize)
    app.router.add_post("/detokenize", detokenize)
    app.router.add_get("/openapi.json", info.openapi)
    app.router.add_get(STATUS_PATH, info.status)
    return app


def build_metrics_app(pod: Pod) -> web.Application:
    app = _base(pod)
    app.router.add_get("/metrics", info.metrics)
    return app


def _base(pod: Pod) -> web.Application:
    app = web.Application(middlewares=[frame], client_max_size=MAX_BODY_BYTES)
    app[POD] = pod
    app.on_response_prepare.append(add_request_id)
    app.router.add_get("/livez", info.live)
    app.router.add_get("/readyz", info.ready)
    return app
