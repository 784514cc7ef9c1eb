"""Ports of every Tandem pod. A local fleet overrides them; in Kubernetes they are fixed."""

API = 8000
"""OpenAI API: gateway and every engine pod."""
METRICS = 8080
"""`/metrics`, `/livez`, `/readyz`."""
HANDOFF = 8100
"""Handoff control between prefill and decode (HTTP). Internal."""
KV_DATA = 8200
"""KV page data; tensor-parallel rank r listens on `KV_DATA + r`. Internal."""
