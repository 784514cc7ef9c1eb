"""One thread that owns a set of sockets; other threads hand it work. What runs on it needs no locks."""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

log = logging.getLogger(__name__)

Work = Callable[[], None]
Handler = Callable[[int], None]
"""Takes the ready `selectors` event mask."""
Poll = Callable[[], float | None]
"""Looks after what no socket tells of; in how many seconds to do so again, None: after the sockets' next event."""


class SelectorLoop:
    def __init__(self, name: str, tick_s: float, on_tick: Work, poll: Poll | None = None) -> None:
        """`on_tick` runs every `tick_s` seconds, after the sockets' events; missed ticks are not made up for, so that
        counting ticks measures silence as this thread could have heard it, not time this process was itself stopped.
        `poll` runs in every turn."""
        self._selector = selectors.DefaultSelector()
        self._work: deque[Work] = deque()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._tick_s = tick_s
        self._on_tick = on_tick
        self._poll = poll
        self._poll_in: float | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def call(self, work: Work) -> None:
        """Run `work` on the loop's thread, before any event that happens after this call. Thread-safe."""
        self._work.append(work)
        with contextlib.suppress(OSError):  # a wake-up is already pending, or the loop has ended
            self._wake_write.send(b"\0")

    def stop(self, last: Work) -> None:
        """Run `last` on the loop's thread and end it."""
        if self._thread.is_alive():

            def stop() -> None:
                self._stopping = True
                last()

            self.call(stop)
            self._thread.join()

    def watch(self, sock: socket.socket, events: int, handler: Handler) -> None:
        """Start or change watching. Loop's thread only, as is `unwatch`."""
        if sock.fileno() in self._selector.get_map():
            self._selector.modify(sock, events, handler)
        else:
            self._selector.register(sock, events, handler)

    def unwatch(self, sock: socket.socket) -> None:
        if sock.fileno() in self._selector.get_map():
            self._selector.unregister(sock)

    def _run(self) -> None:
        next_tick = time.monotonic() + self._tick_s
        while not self._stopping:
            ready = self._selector.select(0.0 if self._poll_in is not None else max(0.0, next_tick - time.monotonic()))
            if any(key.fileobj is self._wake_read for key, _ in ready):
                self._wake_read.recv(4096)  # before the work is done, or a wake-up for later work could be swallowed
            while self._work:
                self._guard(self._work.popleft())
            for key, mask in ready:
                if not self._stopping and self._is_live(key):
                    self._guard(partial(key.data, mask))
            if self._poll is not None and not self._stopping:
                self._poll_in = self._poll()
                if self._poll_in:
                    time.sleep(self._poll_in)  # the selector cannot wait for less than a millisecond
            if not self._stopping and time.monotonic() >= next_tick:
                self._guard(self._on_tick)
                next_tick = time.monotonic() + self._tick_s
        self._selector.close()
        self._wake_read.close()
        self._wake_write.close()

    def _is_live(self, key: selectors.SelectorKey) -> bool:
        """Work or an earlier event of this turn may have closed the socket, or its number may be another's by now."""
        live = self._selector.get_map().get(key.fd)
        return live is not None and live.fileobj is key.fileobj and live.data is not None

    @staticmethod
    def _guard(work: Work) -> None:
        try:
            work()
        except Exception:
            log.exception("bug in the transfer loop")
