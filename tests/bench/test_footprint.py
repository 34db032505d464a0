import pytest

from localv4.bench.footprint import block_footprint, head_footprint, matrices, routed_matrices
from localv4.bench.prefill import _chunks
from localv4.bench.released import released_kinds
from localv4.checkpoint import Checkpoint
from localv4.config import ModelConfig
from localv4.inventory import take_inventory
from localv4.model import Model
from localv4.synthetic import synthesise
from localv4.synthetic_config import FULL_WIDTH, config_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    synthesise(folder, compress_ratios=(0, 4))
    return folder


def test_a_token_needs_what_the_inventory_has(folder):
    with Checkpoint.open(folder) as checkpoint:
        model, inventory = Model.mapped(checkpoint, 1), take_inventory(checkpoint)
        parts = {part.name: part.nbytes for part in inventory.parts}
        config = model.config
        dense = parts["attention"] + parts["ffn"]
        chosen = config.num_experts_per_tok * inventory.expert_bytes
        whole = sum(block_footprint(block).n_bytes for block in model.blocks)
        # norms, biases and routing tables are left out, scales of FP8 are widened to float32
        assert whole == pytest.approx(dense + chosen * len(model.blocks), rel=0.05)
        assert head_footprint(model).n_bytes == pytest.approx(parts["head"], rel=0.05)
        block = model.blocks[1]
        assert len(routed_matrices(block)) == 3 * config.num_experts_per_tok
        names = [name for name, _ in matrices(block.weights)]
        assert names.count("wo_a") == config.o_groups
        assert names.count("fn") == 2
        assert names.count("wq_b") == 2
        products = sum(m.n_rows * m.n_columns for _, m in matrices(model.head.weights))
        assert head_footprint(model).n_products == products


@pytest.mark.parametrize(
    ("preset", "counts"),
    [("flash", (2, 21, 20)), ("pro", (0, 30, 31)), ("flash-base", (2, 21, 20))],
)
def test_the_layers_of_a_release(preset, counts):
    text = config_json(preset, FULL_WIDTH[preset], (0, 4), dspark=False)
    found, kinds = released_kinds(ModelConfig.from_json(text, preset))
    assert found == preset
    assert tuple(kinds.count(kind) for kind in ("sliding", "csa", "hca")) == counts


def test_a_tiny_model_is_no_release(folder):
    assert released_kinds(ModelConfig.from_folder(folder)) == (None, [])


def test_chunks_of_a_prompt():
    assert _chunks(5) == [5]
    assert _chunks(1024) == [1024]
    assert _chunks(2050) == [1024, 1024, 2]
