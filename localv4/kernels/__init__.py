"""Compiled kernels behind plain functions: the only place that imports numba.

A module holds the kernels of one concern and the functions that call them.  They take plain
float32 and uint8 arrays (or, inside, addresses) and know nothing of the model's config.

::

    _jit                 how everything is compiled and where the result is cached
    threads              which threads compute
    simd, row_dot        vector code for one row of weights; the sum order
    matmul               a matrix in any stored format times activations
    rounding             BF16, FP8 and FP4 rounding of values and blocks
    sums                 dot products and sums for use in other kernels
    norm, rope, hyper_connections, moe       what their namesakes in localv4 need
    compressor, indexer, kv_rows, attention  compressed entries, packed rows, attention
"""
