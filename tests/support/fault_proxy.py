"""A TCP proxy that can hold or corrupt what flows to its target: a network that fails on command."""

from __future__ import annotations

import contextlib
import socket
import threading


class FaultProxy:
    """Listens on `listen` and forwards to `target`, both (host, port).

    `hold_after`: bytes towards the target after which they are held until `release`; `flip_at`: offset, within one
    connection, of a byte towards the target to invert.
    """

    def __init__(
        self,
        listen: tuple[str, int],
        target: tuple[str, int],
        *,
        hold_after: int | None = None,
        flip_at: int | None = None,
    ) -> None:
        self._target = target
        self._hold_after = hold_after
        self._flip_at = flip_at
        self.holding = threading.Event()
        self._released = threading.Event()
        self._sockets: list[socket.socket] = []
        self._server = socket.create_server(listen)
        # What is held shall pile up at the sender, not here.
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        threading.Thread(target=self._accept, daemon=True).start()

    def release(self) -> None:
        self._released.set()

    def close(self) -> None:
        self.release()
        for sock in (self._server, *self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                try:
                    server = socket.create_connection(self._target, 5)
                except OSError:
                    client.close()
                    continue
                server.settimeout(None)
                self._sockets += [client, server]
                threading.Thread(target=self._pump, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._pump, args=(server, client, False), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, to_target: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := bytearray(source.recv(65536)):
                if to_target:
                    if self._flip_at is not None and passed <= self._flip_at < passed + len(data):
                        data[self._flip_at - passed] ^= 0xFF
                    if self._hold_after is not None and passed + len(data) > self._hold_after:
                        self.holding.set()
                        self._released.wait()
                passed += len(data)
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
