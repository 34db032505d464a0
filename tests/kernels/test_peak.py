from typing import Any

import numpy as np
import pytest

from localv4.kernels import peak, tiers
from localv4.kernels.launch import Program
from localv4.kernels.threads import computing
from tests.kernels.compare import needs_compiler

pytestmark = needs_compiler

ROUNDS = 101
ONES: dict[str, Any] = {"f32": np.float32(1), "bf16": np.uint16(0x3F80), "bytes": np.uint8(1)}


@pytest.mark.parametrize("kind", peak.PEAKS)
def test_no_product_is_left_out(kind: str):
    n_products = peak.peak_products(kind)
    if n_products == 0:
        pytest.skip("the tier in force has no such products")
    one = ONES[kind.removeprefix("matrix_")]
    operands = np.full(peak.OPERAND_BYTES // one.nbytes, one)
    results = np.zeros(2, np.int64)
    program = Program()
    program.phase("other")
    address = operands.ctypes.data
    program.add(peak.peak_kernel(kind), 2, address, ROUNDS, results)
    with computing():
        program.run(2)
    assert results[0] == results[1]
    if kind in ("f32", "bf16") or (kind == "bytes" and tiers.active() not in ("avx512", "avx2")):
        n_sums = peak._in_flight(kind)
        added = results[0] - n_sums * (n_sums - 1) // 2
        assert added * peak._lanes() == ROUNDS * n_products


def test_the_best_tier_has_what_the_plainer_have(monkeypatch):
    runnable = tiers.available()
    counts = []
    for tier in runnable:
        monkeypatch.setattr(tiers, "_active", tier)
        counts.append([peak.peak_products(kind) > 0 for kind in peak.PEAKS])
    assert all(count[0] for count in counts)
    assert [sum(count) for count in counts] == sorted(map(sum, counts), reverse=True)
