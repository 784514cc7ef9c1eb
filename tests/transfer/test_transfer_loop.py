from __future__ import annotations

import socket
import threading
import time

from tandem_runtime.transfer.tcp.loop import SelectorLoop


def test_nothing_of_the_last_turn_happens_after_the_end() -> None:
    """Symptom: `bug in the transfer loop` in the log of pods that ended together. Cause: memory of other processes was
    given back at the end, and then, in the same turn, again, as they had hung up."""
    loop = SelectorLoop("test", 10.0, lambda: None)
    here, there = socket.socketpair()
    heard: list[int] = []
    loop.watch(here, 1, heard.append)
    there.send(b"x")
    ender = threading.Thread(target=loop.stop, args=(here.close,))

    def end_in_this_turn() -> None:
        ender.start()
        while not loop._work:
            time.sleep(0.001)

    loop.call(end_in_this_turn)
    loop.start()
    loop._thread.join(20)
    ender.join(20)
    there.close()
    assert heard == []
