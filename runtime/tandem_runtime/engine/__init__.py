"""The engine process: composes scheduling, execution and transfer into a loop, and the client that talks to it.

Everything here runs beside the device; HTTP, text and templates belong to `server` and `text`.
"""
