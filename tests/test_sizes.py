import pytest

from localv4.sizes import up


@pytest.mark.parametrize(("n_bytes", "result"), [(0, 0), (1, 64), (63, 64), (64, 64), (65, 128)])
def test_up(n_bytes, result):
    assert up(n_bytes, 64) == result
