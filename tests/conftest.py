"""What all tests run with.

Hypothesis' clocks are off: on a busy machine they fail what is right. Each example may take 200 ms, and the drawing of
the first ten one second, by a clock that runs on while another process has the core. Tests that must be quick say so
themselves.

Ctrl-C is not ignored, as it is in what a script starts in the background: the processes that tests start inherit that.
"""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
