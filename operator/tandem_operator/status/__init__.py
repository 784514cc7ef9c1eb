"""What an InferenceService's status says: an ordered chain of small pure questions over a plan and what was observed.

Nothing here decides what to change; that is `plan`'s.
"""
