"""The same tests with the compiler switched off, so that Python checks what numba does not.

Compiled loops read past the end of an array and wrap integers in silence; here an index that is
out of range and an overflow end the test. All kernels but the vector code run this way.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.compare import needs_compiler

FOLDER = Path(__file__).parent
NAMES = [
    "attention",
    "attention_entries",
    "attention_walk",
    "choice",
    "compressor",
    "elementwise",
    "entries",
    "heads",
    "hyper_connections",
    "index_rows",
    "index_tile",
    "indexer",
    "kv_rows",
    "lanes",
    "launch",
    "moe",
    "norm",
    "rope",
    "rounding",
    "sums",
]
LEAST = 120  # tests that these files have at least


@needs_compiler
@pytest.mark.slow
def test_the_loops_run_as_python():
    files = [str(FOLDER / f"test_{name}.py") for name in NAMES]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header", *files],
        cwd=FOLDER.parents[1],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= LEAST


def test_every_kernel_runs_here_or_needs_vector_code():
    kernels = Path(FOLDER.parents[1], "localv4", "kernels").glob("[!_]*.py")
    vector_code = {
        "arrays",
        "amx_folded",
        "amx_rows",
        "amx_scaled",
        "amx_tile",
        "amx_unit",
        "attention_products",
        "binding",
        "calls",
        "decode",
        "fp8_values",
        "index_bytes",
        "index_keys",
        "index_matrix",
        "index_queries",
        "index_scoring",
        "matmul",
        "packing",
        "peak",
        "pool",
        "read",
        "row_dot",
        "row_tile",
        "simd",
        "slices",
        "threads",
        "tiers",
        "tiles",
        "walk",
        "walks",
        "walks_fp4",
        "warm",
    }
    assert {path.stem for path in kernels} == {*NAMES, *vector_code}
