"""Attention backends: all that happens between the QKV projection and the output projection, over paged KV.

`backend` is the seam; `native` serves CPUs, `triton` GPUs, and `eager` is torch alone: the reference, and what is left
where nothing can be built. Which pages a sequence has is the plan's.
"""
