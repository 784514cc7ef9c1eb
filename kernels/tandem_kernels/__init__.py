"""Triton kernels, one op one name: here, in `reference/`, in `tests/kernels/test_NAME.py` and in `kernels/bench/`.

The CPU's, in C, are in `native/`.

Imports torch and triton only; knows tensors, strides and page tables, not models, schedulers or devices' memory.
Launch parameters come from a pure function beside each kernel: nothing is tuned while requests wait.
"""
