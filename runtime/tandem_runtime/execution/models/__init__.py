"""Whole networks, composed of `layers` and an attention backend; no scheduling, no sampling, no file access."""
