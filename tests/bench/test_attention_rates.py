import pytest

from localv4.bench.attention_rates import measure_attention
from localv4.kernels.peak import PEAKS, peak_products
from tests.kernels.compare import needs_compiler

pytestmark = needs_compiler


@pytest.mark.parametrize(("n_chosen", "n_tokens"), [(0, 1), (20, 1), (0, 3)])
def test_figures_belong_together(n_chosen: int, n_tokens: int):
    figures = measure_attention(40, 2, 0.0, n_chosen, n_tokens)
    candidates = n_tokens * (128 + (n_chosen or 40))
    assert figures["g_products"] * figures["seconds"] == pytest.approx(candidates * 65536e-9)
    assert figures["gb_s"] * figures["seconds"] == pytest.approx(candidates * 584e-9)
    kinds = [kind for kind in PEAKS if peak_products(kind)]
    for kind in kinds:
        assert figures[f"share of {kind}"] > 0
        assert figures[f"fast share of {kind}"] > 0
    assert len(figures) == 3 + 2 * len(kinds)
