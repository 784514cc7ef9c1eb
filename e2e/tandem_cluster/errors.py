from __future__ import annotations


class ClusterError(Exception):
    """Something outside this program stands in the way; the message is one line that says what to do about it."""
