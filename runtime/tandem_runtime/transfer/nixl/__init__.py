"""How pages travel under `--kv-transport nixl`: the receiver reads them out of the sender's memory, one-sidedly.

Hello, tokens, heartbeats and verdicts stay on the data connection (`tcp`), with descriptors in the place of pages.
No read that may still land is ever aimed at a page (ADR 0013).
"""
