"""What operator, gateway, fetch and runtime agree on: names, ports, flags, handoff messages, tickets, metrics.

Standard library only, no I/O, no behaviour beyond encoding and checking these agreements.
"""
