"""Triton kernels, one op one name, each with an eager reference.

Imports torch and triton only; knows tensors, not models or schedulers.
"""
