"""Attention backends: all that happens between the QKV projection and the output projection, over paged KV.

`backend` is the seam, `eager` the torch-only implementation for the CPU. Which pages a sequence has is the plan's.
"""
