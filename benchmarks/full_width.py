"""Time a few layers of Flash's real widths, in memory: ``python -m benchmarks.full_width``.

Makes a checkpoint with three layers (sliding, CSA, HCA) and 8 routed experts in a temporary
folder (1 GB), and prints prefill and decode speed for several thread counts.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

import localv4
from localv4.synthetic import PRESETS, synthesise

SIZES = replace(
    PRESETS["flash"],
    hidden_size=4096,
    num_attention_heads=64,
    head_dim=512,
    q_lora_rank=1024,
    o_groups=8,
    o_lora_rank=1024,
    n_routed_experts=8,
    num_experts_per_tok=6,
    moe_intermediate_size=2048,
    num_hash_layers=1,
    index_n_heads=64,
    index_head_dim=128,
    index_topk=512,
)


def measure(folder: Path, threads: int, n_prefill: int, n_decode: int) -> None:
    """Print the speeds with one number of threads."""
    ids = np.random.default_rng(0).integers(5, 300, 4 + n_prefill + n_decode)
    with localv4.load(folder, threads=threads) as engine:
        session = engine.session()
        session.prefill(ids[:4])  # compiles, and reads the experts once
        session.decode(int(ids[0]))
        started = time.perf_counter()
        session.prefill(ids[4 : 4 + n_prefill])
        prefill_s = time.perf_counter() - started
        seconds = []
        for token in ids[4 + n_prefill :]:
            started = time.perf_counter()
            session.decode(int(token))
            seconds.append(time.perf_counter() - started)
    print(
        f"{threads:3} threads: prefill {n_prefill / prefill_s:6.1f} tok/s, "
        f"decode {1e3 * np.median(seconds):6.1f} ms a token (median of {n_decode})"
    )


def main() -> None:
    """Parse arguments, make the checkpoint, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--prefill", type=int, default=128)
    parser.add_argument("--decode", type=int, default=16)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "full-width"
        synthesise(folder, "flash", seed=5, compress_ratios=[0, 4, 128], sizes=SIZES)
        for threads in arguments.threads:
            measure(folder, threads, arguments.prefill, arguments.decode)


if __name__ == "__main__":
    main()
