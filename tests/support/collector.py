"""A collector that takes spans over OTLP/HTTP on a loopback port, on threads of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from support.spans import Seen, Spans, told

PATIENCE_S = 30.0


class Collector:
    """`with`: listens until the block ends."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        """While it is cleared, nothing is answered."""
        self.answers.set()
        self._seen: list[Seen] = []
        self._news = threading.Condition()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.answers.wait(PATIENCE_S)
                collector._take(self.path, body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.answers.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def until(self, trace_id: str, enough: Callable[[Spans], bool]) -> Spans:
        """The trace's spans, once there are enough."""
        with self._news:
            came = self._news.wait_for(lambda: enough(self.spans.of(trace_id)), PATIENCE_S)
            assert came, f"only {self.spans.of(trace_id).names()} came"
            return self.spans.of(trace_id)

    @property
    def spans(self) -> Spans:
        return Spans(list(self._seen))

    def _take(self, path: str, body: bytes) -> None:
        assert path == "/v1/traces"
        with self._news:
            self._seen += told(ExportTraceServiceRequest.FromString(body).resource_spans)
            self._news.notify_all()
