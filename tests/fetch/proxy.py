"""A TCP proxy that counts what the server sends, stops it at a mark, or cuts connections."""

from __future__ import annotations

import contextlib
import socket
import threading


class Proxy:
    """`with Proxy(port) as proxy`: forwards `proxy.port` to `port`.

    `hold_at`: bytes from the server after which nothing more passes until `release()`; `held` is set then.
    `cut_after`: bytes from the server after which each connection is reset.
    """

    def __init__(self, port: int, *, hold_at: int | None = None, cut_after: int | None = None) -> None:
        self._target = port
        self._hold_at = hold_at
        self._cut_after = cut_after
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.received = 0
        self.connections = 0
        self.held = threading.Event()

    def __enter__(self) -> Proxy:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._spawn(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            sockets = list(self._sockets)
        for end in sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in sockets:
            end.close()

    def release(self) -> None:
        self._hold_at = None
        self._released.set()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
            with self._lock:
                self.connections += 1
                self._sockets += [client, server]
            self._spawn(self._pump, client, server, False)
            self._spawn(self._pump, server, client, True)

    def _pump(self, source: socket.socket, sink: socket.socket, from_server: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(64 * 1024):
                if from_server:
                    passed += len(data)
                    self._count(len(data))
                sink.sendall(data)
                if from_server and self._cut_after is not None and passed >= self._cut_after:
                    break
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _count(self, count: int) -> None:
        with self._lock:
            self.received += count
            full = self._hold_at is not None and self.received >= self._hold_at
        if full:
            self.held.set()
            self._released.wait()

    def _spawn(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()
