"""Decisions: an InferenceService and what was observed in, the children it should have out. Values only, no I/O.

What the children's conditions mean for users is `status`'s; how children reach the API server is `apply`'s.
"""
