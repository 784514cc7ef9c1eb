"""Generates the CRD and its reference page from `api`; the results are committed and a test compares them.

`python -m tandem_operator.crdgen` writes both, from the repository's root. No schema is written by hand here.
"""
