"""`tandem bench`: measures running servers and the parts of this one, as a client would.

Belongs here: clients that produce load, the arithmetic of their figures, reports and plots.
Does not: torch, engine internals, anything that runs inside a server.
"""
