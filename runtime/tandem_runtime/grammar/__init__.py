"""Constrained decoding: what an answer's next token may be, by a grammar and by the limits of a thought.

Adapts llguidance. No torch (the sampler applies the masks), no HTTP (the server says which structure was asked for).
"""
