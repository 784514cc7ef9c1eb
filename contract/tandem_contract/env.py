"""Environment variables, each read once at start-up by the program named beside it."""

POD_NAME = "POD_NAME"
"""serve, gateway: name in logs, status and incarnation; defaults to the host name."""
POD_IP = "POD_IP"
"""serve: address peers reach this pod at; defaults to the listen address."""
CACHE_DIR = "TANDEM_CACHE"
"""demo, up: where fetched and converted models are kept; defaults to `~/.cache/tandem`."""
