"""Serves the page's files and the state of the fleet."""

from __future__ import annotations

from importlib.resources import files

from aiohttp import web

from tandem_gateway.fleet import Fleet

PAGE = "/ui/"
FLEET = "/ui/fleet.json"
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_FILES = ("index.html", "style.css", "main.js", "chat.js", "fleet.js", "markup.js", "stream.js", "icon.svg")
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Page:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        folder = files(__package__) / "static"
        self._files = {name: (folder / name).read_bytes() for name in _FILES}

    @property
    def open_paths(self) -> tuple[str, ...]:
        """What needs no API key: the page itself, which then asks for one."""
        return ("/ui", PAGE, *(PAGE + name for name in _FILES))

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_get("/ui", self._to_page)
        router.add_get(PAGE, self._file)
        router.add_get(FLEET, self._state, allow_head=False)
        router.add_get(PAGE + "{name}", self._file)

    async def _to_page(self, request: web.Request) -> web.Response:
        # Relative, so that a proxy's path in front of the gateway's stays.
        return web.Response(status=308, headers={"Location": "ui/"})

    async def _file(self, request: web.Request) -> web.Response:
        name = request.match_info.get("name", "index.html")
        if name not in self._files:
            raise web.HTTPNotFound
        content_type = _TYPES[name.rpartition(".")[2]]
        return web.Response(body=self._files[name], content_type=content_type, charset="utf-8", headers=_HEADERS)

    async def _state(self, request: web.Request) -> web.Response:
        return web.json_response({"pods": self._fleet.snapshot()}, headers={"Cache-Control": "no-store"})
