"""Moves KV pages between processes: the transport protocol, its implementations, checksums, quiescence.

Knows pages, generations and jobs; knows nothing of prompts, scheduling or models.
"""
