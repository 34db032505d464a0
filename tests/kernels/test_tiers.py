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
from tests.kernels.products import random_product

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


def bytes_of_products(name: str) -> str:
    """Hash products of a few rows by both kinds of kernels."""
    digest = hashlib.sha256()
    for n_tokens in (2, 17):
        product = random_product(name, 19, 1056, n_tokens, 1, "fp8")
        digest.update(product.ours().tobytes())
    return digest.hexdigest()


PRODUCTS = """
    from localv4.kernels import tiers
    from tests.kernels.test_tiers import bytes_of_products

    print(tiers.active(), bytes_of_products("fp4"), bytes_of_products("fp8"))
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
    """But for FP4 where there is a matrix unit, whose order of sums is its own (walk.py)."""
    fp8 = {bytes_of_products("fp8")}
    fp4 = {bytes_of_products("fp4")} if tiers.active() != "amx" else set()
    for tier in {"avx512_bf16", "avx2", "generic"}.intersection(tiers.available()):
        done = printed(PRODUCTS, LOCALV4_TIER=tier)
        assert done.stdout.startswith(tier), done.stderr[-2000:]
        _, one, other = done.stdout.split()
        fp4.add(one)
        fp8.add(other)
    assert len(fp8) == 1
    assert len(fp4) <= 1


def test_a_cpu_that_numba_was_told_has_no_special_instructions():
    done = printed(
        "from localv4.kernels import tiers\nprint(tiers.active())", NUMBA_CPU_NAME="haswell"
    )
    assert done.stdout == "generic\n", done.stderr[-2000:]
