"""Builds the images of the cluster tests from the repository's own Dockerfiles, without a registry.

What the tests do with them is not decided here.
"""
