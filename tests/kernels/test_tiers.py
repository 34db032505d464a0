"""Which tier of vector instructions is chosen, and that tiers give the same products."""

import hashlib
import os
import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path

import pytest

from localv4.errors import InvalidInput
from localv4.kernels import tiers
from tests.kernels.compare import needs_compiler
from tests.kernels.products import Product, random_product

ALL = frozenset().union(*tiers.TIERS.values())


def test_tiers_go_from_the_best_to_the_plainest():
    for better, plainer in pairwise(tiers.TIERS.values()):
        assert set(plainer) < set(better)
    assert tiers.TIERS["generic"] == ()


def test_a_cpu_with_everything_runs_every_tier():
    assert tiers.runnable(ALL) == list(tiers.TIERS)
    assert tiers.runnable(()) == ["generic"]


@pytest.mark.parametrize("missing", sorted(ALL))
def test_a_tier_is_never_offered_without_one_of_its_features(missing: str):
    offered = tiers.runnable(ALL - {missing})
    assert offered == [name for name, needed in tiers.TIERS.items() if missing not in needed]


@pytest.mark.parametrize(
    ("cpu", "tier"),
    [
        ("sse2 sse4.2 popcnt", "generic"),
        ("avx sse4.2", "generic"),
        ("avx2 fma", "generic"),
        ("avx2 fma f16c bmi2", "avx2"),
        ("avx2 fma f16c avx512f avx512cd", "avx2"),
        ("avx2 fma f16c avx512f avx512bw avx512vl avx512dq", "avx512"),
        ("avx2 fma f16c avx512f avx512bw avx512vl avx512dq avx512bf16", "avx512"),
        ("avx2 fma f16c avx512f avx512bw avx512vl avx512dq avx512vnni", "avx512_vnni"),
        (
            "avx2 fma f16c avx512f avx512bw avx512vl avx512dq avx512vnni avx512vbmi avx512bf16 "
            "gfni",
            "avx512_bf16",
        ),
        ("neon fp-armv8", "generic"),
    ],
)
def test_the_best_that_a_cpu_can_run(cpu: str, tier: str):
    assert tiers.choose(None, tiers.runnable(cpu.split())) == tier


def test_a_lower_tier_can_be_asked_for():
    assert tiers.choose("avx2", ["avx512", "avx2", "generic"]) == "avx2"


@pytest.mark.parametrize("asked", ["sse9", "amx"])
def test_a_tier_that_cannot_be_is_refused_in_one_sentence(asked: str):
    with pytest.raises(InvalidInput, match=f"^LOCALV4_TIER is '?{asked}'?[^.]*$"):
        tiers.choose(asked, ["avx2", "generic"])


def bytes_of_products() -> list[str]:
    """Hash products of a few rows by both kinds of kernels: of one superblock, then of several."""
    sizes = ((("fp4", "fp8"), 416), (("fp8",), 1056), (("fp4",), 1056))
    return [
        hashed(
            [random_product(name, 19, n_columns, n, 1, "fp8") for name in names for n in (2, 17)]
        )
        for names, n_columns in sizes
    ]


def hashed(products: list[Product]) -> str:
    digest = hashlib.sha256()
    for product in products:
        digest.update(product.ours().tobytes())
    return digest.hexdigest()


PRODUCTS = """
    from localv4.kernels import tiers
    from tests.kernels.test_tiers import bytes_of_products

    print(tiers.active(), *bytes_of_products())
"""


def printed(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@needs_compiler
@pytest.mark.slow
def test_every_tier_gives_the_same_bytes():
    """Where there is a matrix unit, FP4 of several superblocks has its own order (walk.py)."""
    lower = {"avx512_bf16", "avx2", "generic"}.intersection(tiers.available())
    printed_by = {tier: printed(PRODUCTS, LOCALV4_TIER=tier) for tier in lower}
    for tier, done in printed_by.items():
        assert done.stdout.startswith(tier), done.stderr[-2000:]
    others = [done.stdout.split()[1:] for done in printed_by.values()]
    ours = bytes_of_products()
    assert all(other[:2] == ours[:2] for other in others)
    last = {other[2] for other in others}
    assert len(last if tiers.active() == "amx" else {*last, ours[2]}) <= 1


def test_a_cpu_that_numba_was_told_has_no_special_instructions():
    done = printed(
        "from localv4.kernels import tiers\nprint(tiers.active())", NUMBA_CPU_NAME="haswell"
    )
    assert done.stdout == "generic\n", done.stderr[-2000:]
