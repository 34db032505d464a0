"""What a token makes the engine read and multiply: from the matrices that blocks and head hold.

Norms, biases and tables are left out; together they are less than a thousandth.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass

from localv4.bench.arena import stored_bytes
from localv4.block import Block
from localv4.experts import MappedExperts
from localv4.kernels.matmul import Matrix
from localv4.model import Model
from localv4.weights import ExpertWeights

__all__ = [
    "Footprint",
    "block_footprint",
    "head_footprint",
    "mapped_expert",
    "matrices",
    "routed_matrices",
]


@dataclass(frozen=True)
class Footprint:
    """Of one token.

    Attributes
    ----------
    n_bytes
        Stored weights and scales that are read.
    n_products
        Weights that are multiplied; twice as many operations.
    """

    n_bytes: int = 0
    n_products: int = 0

    def __add__(self, other: "Footprint") -> "Footprint":
        """Return the sum of both."""
        return Footprint(self.n_bytes + other.n_bytes, self.n_products + other.n_products)


def matrices(weights: object, name: str = "") -> Iterator[tuple[str, Matrix]]:
    """Yield every matrix inside bound weights with the name of its field."""
    if isinstance(weights, Matrix):
        yield name, weights
    elif isinstance(weights, tuple):
        for part in weights:
            yield from matrices(part, name)
    elif is_dataclass(weights):
        for field in fields(weights):
            yield from matrices(getattr(weights, field.name), field.name)


def mapped_expert(block: Block, number: int) -> ExpertWeights:
    """Return one of a block's routed experts, of a model that is mapped."""
    store = block.experts.store
    assert isinstance(store, MappedExperts)
    return store.get(block.layer, number)


def routed_matrices(block: Block) -> list[Matrix]:
    """Return the matrices of the first num_experts_per_tok routed experts of a block."""
    experts = [mapped_expert(block, n) for n in range(block.config.num_experts_per_tok)]
    return [matrix for expert in experts for _, matrix in matrices(expert)]


def _footprint(matrix: Matrix) -> Footprint:
    rows, columns = matrix.n_rows, matrix.n_columns
    return Footprint(stored_bytes(matrix.format, rows, columns), rows * columns)


def block_footprint(block: Block) -> Footprint:
    """Return what a block takes: all its dense weights and the chosen experts."""
    dense = [matrix for _, matrix in matrices(block.weights)]
    return sum(map(_footprint, [*dense, *routed_matrices(block)]), Footprint())


def head_footprint(model: Model) -> Footprint:
    """Return what the head takes for one row of logits."""
    return sum((_footprint(matrix) for _, matrix in matrices(model.head.weights)), Footprint())
