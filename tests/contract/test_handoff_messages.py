"""The layout fingerprint: which KV pages mean the same in two processes."""

from dataclasses import fields, replace

import pytest
from tandem_contract.handoff import LayoutFingerprint

LAYOUT = LayoutFingerprint(
    model="abc",
    kv_dtype="bfloat16",
    num_layers=30,
    num_kv_heads=3,
    head_dim=64,
    page_size=16,
    rope="{}",
    tensor_parallel=1,
)


@pytest.mark.parametrize("name", [f.name for f in fields(LayoutFingerprint) if f.name != "tensor_parallel"])
def test_a_mismatch_names_the_field(name: str) -> None:
    value = getattr(LAYOUT, name)
    other = replace(LAYOUT, **{name: value + 1 if isinstance(value, int) else value + "x"})
    assert LAYOUT.mismatch(other) == name
    assert LAYOUT.digest() != other.digest()


def test_unequal_tensor_parallelism_is_no_mismatch() -> None:
    other = replace(LAYOUT, tensor_parallel=8)
    assert LAYOUT.mismatch(other) is None
    assert LAYOUT.digest() == other.digest()
