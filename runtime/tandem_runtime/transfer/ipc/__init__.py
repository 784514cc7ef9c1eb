"""How pages travel under `--kv-transport ipc`, between processes of one machine: the receiver maps the sender's memory.

Hello, tokens, heartbeats and verdicts stay on the data connection (`tcp`), which is a Unix socket then and carries
descriptors in the place of pages; the memory comes along as a file descriptor (ADR 0014).
"""
