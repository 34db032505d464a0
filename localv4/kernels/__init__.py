"""Compiled kernels behind plain functions: the only place that imports numba.

A module holds the kernels of one concern and the functions that record them in a program
(launch.py).  Kernels take plain arrays (or, inside, addresses) and know nothing of the model's
config.

::

    launch               kernels, tasks, phases, programs
    _jit, warm, tiers, threads      compiling, compiling ahead, instructions, who computes
    matmul, lanes, packing          weights in any stored format times activations
    walks, decode, simd             the sum orders; formats to vector registers
    row_dot, row_tile, amx_tile     few tokens, many, many in the matrix unit
    amx_unit, amx_rows, amx_folded, amx_scaled   its operands, tiles of weights, and sums
    rounding, fp8_values, elementwise, sums      for use in other kernels
    norm, heads, rope, hyper_connections, moe    what their namesakes in localv4 need
    compressor, entries, kv_rows, indexer, choice, attention, tiles
                         compressed entries, packed rows, index scores, attention
    read, peak           for measurements
"""
