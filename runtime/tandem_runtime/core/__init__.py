"""The vocabulary every runtime layer shares: sampling parameters, step plans, step results, KV layout, errors.

Plain values without behaviour; no torch, no I/O, no imports from other layers.
"""
