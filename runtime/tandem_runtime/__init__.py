"""The inference runtime: engine, OpenAI server, KV handoff, bench and the local fleet.

Layers (held by import-linter): local > server, bench > engine, text > scheduling | execution | transfer > core.
"""
