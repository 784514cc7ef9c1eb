"""GET endpoints: models, probes, status, metrics, the API's description."""

from __future__ import annotations

import functools

import msgspec
import orjson
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from tandem_runtime.server.errors import UnavailableError
from tandem_runtime.server.keys import POD
from tandem_runtime.server.pod import Pod
from tandem_runtime.server.protocol.answers import ModelCard, ModelList
from tandem_runtime.server.protocol.openapi import document


async def list_models(request: web.Request) -> web.Response:
    pod = request.app[POD]
    return _json(msgspec.json.encode(ModelList(data=[_card(pod, name) for name in pod.models])))


async def get_model(request: web.Request) -> web.Response:
    pod = request.app[POD]
    name = request.match_info["model"]
    pod.check_name(name)
    return _json(msgspec.json.encode(_card(pod, name)))


async def live(request: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def ready(request: web.Request) -> web.Response:
    pod = request.app[POD]
    if not pod.ready:
        raise UnavailableError("draining" if pod.draining else "the model is still loading")
    return web.Response(text="ok\n")


async def status(request: web.Request) -> web.Response:
    return _json(orjson.dumps(request.app[POD].status().to_json()))


async def metrics(request: web.Request) -> web.Response:
    body = generate_latest(request.app[POD].metrics.registry)
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})


async def openapi(request: web.Request) -> web.Response:
    return _json(_openapi_document())


@functools.cache
def _openapi_document() -> bytes:
    return orjson.dumps(document())


def _card(pod: Pod, name: str) -> ModelCard:
    max_model_len = pod.loaded.info.max_model_len if pod.loaded is not None else None
    return ModelCard(id=name, created=pod.started_at, root=pod.models[0], max_model_len=max_model_len)


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")
