"""The OpenAI API of one engine pod, its status, metrics and handoff control endpoints (aiohttp).

Speaks to the engine only through `engine.client`. No torch.
"""
