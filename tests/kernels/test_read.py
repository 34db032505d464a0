import numpy as np
import pytest

from localv4.kernels.launch import Program
from localv4.kernels.read import READ_BYTES, read_kernel
from localv4.kernels.threads import computing
from tests.kernels.compare import needs_compiler

pytestmark = needs_compiler


@pytest.mark.parametrize("prefetches", [False, True])
@pytest.mark.parametrize("start", [0, 1, 37])
def test_every_byte_is_read_once(prefetches: bool, start: int):
    rng = np.random.default_rng(start)
    memory = rng.integers(0, 256, start + 7 * READ_BYTES, np.uint8)[start:]
    sums = np.zeros(4, np.int64)
    program = Program()
    program.phase("other")
    address = memory.ctypes.data
    ahead = 2048 if prefetches else 0
    program.add(read_kernel(prefetches), 4, address, memory.size, 2 * READ_BYTES, ahead, sums)
    with computing():
        program.run(2)
    words = memory.tobytes()
    parts = [words[i : i + 2 * READ_BYTES] for i in range(0, len(words), 2 * READ_BYTES)]
    assert sums.tolist() == [np.frombuffer(part, np.int64).sum() for part in parts]
