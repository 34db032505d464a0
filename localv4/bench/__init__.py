"""Measurements: kernels, decode and prefill against what this machine's memory and CPU give.

Every share is one of figures measured in turns in the same run, because machines are noisy and
the next run is another machine.  Knows nothing of how results are printed.
"""
