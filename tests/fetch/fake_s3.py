"""An S3 server that misbehaves as told: what a real one refuses to store, or answers only on a bad day."""

from __future__ import annotations

import fcntl
import hashlib
import re
import socket
import struct
import termios
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

Answer = tuple[int, str, dict[str, str]]
"""HTTP status, S3 error code, headers."""


class FakeS3:
    """`with FakeS3({key: bytes}) as server`: one bucket, any name.

    `refuse(method, key, nth, headers)` may return an error for the nth (from 1) such request; the key of a listing
    is "". `corrupt(key, nth, body)` may change the bytes of the nth GET of a key. `part_size`: of all uploads, told to
    a HEAD with a part number; None: such a HEAD is like any other. `reset_after`: bytes of a body after which its
    connection is reset.
    """

    def __init__(
        self,
        objects: dict[str, bytes],
        *,
        refuse: Callable[[str, str, int, dict[str, str]], Answer | None] = lambda *_: None,
        corrupt: Callable[[str, int, bytes], bytes] = lambda key, nth, body: body,
        etag: Callable[[bytes], str] = lambda data: hashlib.md5(data).hexdigest(),
        head: dict[str, str] | None = None,
        part_size: int | None = None,
        reset_after: int | None = None,
    ) -> None:
        self.objects = objects
        self.refuse = refuse
        self.corrupt = corrupt
        self.etag = etag
        self.head = head or {}
        self.part_size = part_size
        self.reset_after = reset_after
        self.seen: Counter[tuple[str, str]] = Counter()
        self.lock = threading.Lock()

    def __enter__(self) -> FakeS3:
        handler = type("Handler", (_Handler,), {"fake": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"  # a connection per request: handler threads end by themselves
    fake: FakeS3

    def do_GET(self) -> None:
        key, nth = self._count()
        if self._refused(key, nth):
            return
        if not key:
            self._list()
        elif self._present(key):
            data = self.fake.objects[key]
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
            assert match
            body = data[int(match[1]) : int(match[2]) + 1]
            if self.headers["If-Match"].strip('"') != self.fake.etag(data):
                self._error(412, "PreconditionFailed")
                return
            self._send(206, self.fake.corrupt(key, nth, body), {"ETag": f'"{self.fake.etag(data)}"'})

    def do_HEAD(self) -> None:
        key, nth = self._count()
        if not self._refused(key, nth) and self._present(key):
            data, part = self.fake.objects[key], self.fake.part_size
            headers = {"Content-Length": str(len(data)), "ETag": f'"{self.fake.etag(data)}"', **self.fake.head}
            if part is not None and (number := parse_qs(urlsplit(self.path).query).get("partNumber")):
                begin = (int(number[0]) - 1) * part
                headers |= {
                    "Content-Length": str(len(data[begin : begin + part])),
                    "x-amz-mp-parts-count": str(max(1, -(-len(data) // max(1, part)))),
                }
            self.send_response(200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

    def _count(self) -> tuple[str, int]:
        key = unquote(urlsplit(self.path).path).removeprefix("/bucket").removeprefix("/")
        with self.fake.lock:
            self.fake.seen[self.command, key] += 1
            return key, self.fake.seen[self.command, key]

    def _refused(self, key: str, nth: int) -> bool:
        answer = self.fake.refuse(self.command, key, nth, dict(self.headers))
        if answer is not None:
            self._error(*answer)
        return answer is not None

    def _present(self, key: str) -> bool:
        if key not in self.fake.objects:
            self._error(404, "NoSuchKey")
        return key in self.fake.objects

    def _list(self) -> None:
        prefix = parse_qs(urlsplit(self.path).query).get("prefix", [""])[0]
        items = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size><ETag>&quot;{self.fake.etag(data)}&quot;</ETag></Contents>"
            for key, data in self.fake.objects.items()
            if key.startswith(prefix)
        )
        self._send(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>".encode(), {})

    def _error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode(), headers or {})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: self.fake.reset_after])
            if self.fake.reset_after is not None and len(body) > self.fake.reset_after:
                self._reset()

    def _reset(self) -> None:
        while struct.unpack("i", fcntl.ioctl(self.connection, termios.TIOCOUTQ, bytes(4)))[0]:
            time.sleep(0.001)  # a reset drops what the peer has not acknowledged
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        pass
