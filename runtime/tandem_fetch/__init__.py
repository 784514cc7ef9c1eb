"""Model download: object stores and hubs into a folder that is whole, verified and shared by many pods.

Here: listing, ranged transfer, resume, verification, the cache lock and marker. Not here: what a model means
to the engine (tandem_runtime) and which pod fetches what (tandem_operator).
"""
