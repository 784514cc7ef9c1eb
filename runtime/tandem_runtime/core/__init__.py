"""The vocabulary every runtime layer shares: sampling parameters, step plans, step results, KV layout, errors.

Plain values without behaviour, and what any process tells or asks of its machine (log lines, memory left). No torch, no
imports from other layers.
"""
