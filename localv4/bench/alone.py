"""A model's products with weights and nothing else: what the kernels alone reach."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localv4.bench.footprint import mapped_expert, matrices
from localv4.bench.opened import Opened
from localv4.bench.weight_kernels import activations
from localv4.block import Block
from localv4.kernels.launch import Program
from localv4.kernels.matmul import Lanes, Matrix, arrange, multiply

__all__ = ["Alone"]

F32 = NDArray[np.float32]
_SMALL_BYTES = 2**20


class Alone:
    """Programs that do nothing but the products with weights of some tokens.

    A layer's experts get equally many tokens each; one token has the first few experts.

    Parameters
    ----------
    opened
        The model.
    chunks
        Tokens that go through the layers at a time.

    Attributes
    ----------
    products
        Products with weights by format.
    """

    def __init__(self, opened: Opened, chunks: Sequence[int]) -> None:
        self.products: dict[str, float] = {}
        self._threads = opened.threads
        self._lanes: dict[tuple[Any, ...], Lanes] = {}
        self._outs: dict[tuple[Any, ...], F32] = {}
        self._n_tasks = 0
        self._n_chunks = 1
        self._programs: list[Program] = []
        for count in set(chunks):
            self._n_chunks = chunks.count(count)
            programs = [self._block(block, count) for block in opened.model.blocks]
            self._programs += programs * self._n_chunks
        self._n_chunks = 1
        head = Program()
        head.phase("head")
        for name, matrix in matrices(opened.model.head.weights):
            self._add(head, name, matrix, 1)
        self._programs.append(head)

    def run(self, _turn: int = 0) -> None:
        """Run all of them."""
        for program in self._programs:
            program.run(self._threads)

    def _block(self, block: Block, n_tokens: int) -> Program:
        program, config = Program(), block.config
        program.phase("projections")
        for name, matrix in matrices(block.weights):
            self._add(program, name, matrix, n_tokens)
        n_rows, n_experts = n_tokens * config.num_experts_per_tok, config.n_routed_experts
        for names in (("w1", "w3"), ("w2",)):
            program.phase("experts")
            for number in range(n_experts):
                count = n_rows // n_experts + int(number < n_rows % n_experts)
                expert = mapped_expert(block, number)
                for name in names if count else ():
                    self._add(program, name, getattr(expert, name), count)
        return program

    def _add(self, program: Program, name: str, matrix: Matrix, n_tokens: int) -> None:
        products = float(matrix.n_rows * matrix.n_columns * n_tokens * self._n_chunks)
        self.products[matrix.format] = self.products.get(matrix.format, 0.0) + products
        lanes, out = self._lanes_for(name, matrix, n_tokens), self._out(matrix, n_tokens)
        multiply(program, lanes, matrix, out, False)

    def _lanes_for(self, name: str, matrix: Matrix, n_tokens: int) -> Lanes:
        """Return random activations: rounded to FP8 where the model does so."""
        rounded = matrix.format in ("fp4", "fp8") and name != "wo_a"
        key = (matrix.lanes, rounded, n_tokens, matrix.n_columns)
        if key not in self._lanes:
            lanes = Lanes.room(*key, are_bf16=not rounded and matrix.format != "f32")
            prepare = Program()
            prepare.phase("other")
            arrange(prepare, activations(n_tokens, matrix.n_columns), lanes)
            prepare.run(self._threads)
            self._lanes[key] = lanes
        return self._lanes[key]

    def _out(self, matrix: Matrix, n_tokens: int) -> F32:
        """Return room for outputs: small ones in turns, so that threads don't share a line."""
        self._n_tasks += 1
        is_small = 4 * n_tokens * matrix.n_rows <= _SMALL_BYTES
        key = (n_tokens, matrix.n_rows, self._n_tasks % (4 * self._threads) if is_small else 0)
        if key not in self._outs:
            self._outs[key] = np.empty(key[:2], np.float32)
        return self._outs[key]
