"""The HTTP API's shapes and their meaning: requests (pydantic, strict), answers (msgspec), conversion for the engine.

Pure: no aiohttp, no engine calls. A field is honoured, explicitly harmless, or refused with a 400 that names it.
"""
