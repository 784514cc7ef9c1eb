"""Cross-origin calls from browsers (WHATWG Fetch), for the origins that were named; none by default."""

from __future__ import annotations

from aiohttp import web
from tandem_contract import headers

_EXPOSED = f"{headers.REQUEST_ID}, {headers.PODS}, Retry-After"


class Cors:
    def __init__(self, origins: tuple[str, ...]) -> None:
        """`*` allows every origin."""
        self.origins = origins

    async def preflight(self, request: web.Request) -> web.Response:
        allowed = {
            "Access-Control-Allow-Methods": "GET, POST",
            "Access-Control-Allow-Headers": f"Authorization, Content-Type, {headers.REQUEST_ID}, {headers.TIMING}",
            "Access-Control-Max-Age": "600",
        }
        return web.Response(status=204, headers=allowed)

    def stamp(self, request: web.Request, response: web.StreamResponse) -> None:
        origin = request.headers.get("Origin")
        if origin is None or not (origin in self.origins or "*" in self.origins):
            return
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = _EXPOSED
        response.headers.add("Vary", "Origin")
