import numpy as np
import pytest

from localv4.kernels._jit import leaf
from localv4.kernels.elementwise import exp_f32
from tests.kernels.compare import COMPILED, F32


@leaf
def exp_of(x: F32, out: F32) -> None:
    for i in range(x.size):
        out[i] = exp_f32(x[i])


def run(x: F32) -> F32:
    out = np.empty_like(x)
    exp_of(x, out)
    return out


def test_exp():
    """A dense walk through the whole range, and every float32 near 0 and 1."""
    n = 1 << 21 if COMPILED else 2000
    x = np.linspace(-86.6, 88.72, n).astype(np.float32)
    near = np.float32(1).view(np.uint32) + np.arange(-n // 4, n // 4)
    x = np.concatenate(
        [x, near.astype(np.uint32).view(np.float32), np.array([0, -0.0, 1e-30], np.float32)]
    )
    expected = np.exp(x.astype(np.float64))
    steps = np.abs(run(x) - expected) / np.spacing(expected.astype(np.float32))
    assert steps.max() <= 2


@pytest.mark.parametrize(
    ("x", "expected"),
    [(-np.inf, 0), (-1e30, 0), (-87, 0), (89, np.inf), (1e30, np.inf), (np.inf, np.inf), (0, 1)],
)
@np.errstate(over="ignore")
def test_ends(x: float, expected: float):
    assert run(np.array([x], np.float32)).tolist() == [expected]


@np.errstate(invalid="ignore")
def test_no_number_stays_none():
    assert np.isnan(run(np.array([np.nan, -np.nan], np.float32))).all()


def test_one_or_many_give_the_same():
    x = np.random.default_rng(0).uniform(-30, 30, 67).astype(np.float32)
    alone = np.concatenate([run(x[i : i + 1]) for i in range(len(x))])
    np.testing.assert_array_equal(run(x), alone)
