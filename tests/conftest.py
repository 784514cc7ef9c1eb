"""Hypothesis' clocks are off for all tests: on a busy machine they fail what is right.

Each example may take 200 ms, and the drawing of the first ten one second, by a clock that runs on while another process
has the core. Tests that must be quick say so themselves.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")
