"""The engine against the float64 reference on synthetic checkpoints: shapes the goldens lack."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import localv4
from localv4.synthetic import PRESETS, Layout, Preset, synthesise
from tests.golden_models import Recorder, assert_same_choices, relative_rms
from tests.reference.forward import Reference

N_TOKENS = 137  # one compressed entry of 128, and a rest

# Per preset: what the goldens lack in sizes, order of layers and layout of files.
SHAPES: dict[Preset, tuple[dict[str, int], tuple[int, ...], Layout]] = {
    # Every expert is chosen; more index choices than entries; one head a group.
    "flash": (
        {"n_routed_experts": 4, "num_experts_per_tok": 4, "o_groups": 8, "index_topk": 64}
        | {"vocab_size": 331, "num_hash_layers": 0},
        (4, 0, 128),
        "scattered",
    ),
    # One group for all heads; a single expert; partial scale blocks in wkv.
    "pro": (
        {"num_attention_heads": 6, "head_dim": 192, "o_groups": 1, "o_lora_rank": 256}
        | {"num_experts_per_tok": 1, "index_topk": 1, "vocab_size": 301},
        (128, 4, 4, 0),
        "single",
    ),
    # FP8 experts with unlike sizes; only hash layers.
    "flash-base": (
        {"hidden_size": 384, "moe_intermediate_size": 256, "q_lora_rank": 256}
        | {"n_routed_experts": 3, "num_experts_per_tok": 2, "num_hash_layers": 3},
        (4, 4, 128),
        "scattered",
    ),
    # A wide index; wo_a narrower than the model, its groups split blocks of 128 rows.
    "pro-base": (
        {"hidden_size": 512, "num_attention_heads": 2, "head_dim": 128, "index_n_heads": 32}
        | {"o_groups": 2, "o_lora_rank": 192}
        | {"n_routed_experts": 9, "index_topk": 7, "num_hash_layers": 1},
        (0, 4),
        "release",
    ),
}


@dataclass(frozen=True)
class Case:
    """A checkpoint and the tokens to run on it."""

    folder: Path
    ids: list[int]


@pytest.fixture(scope="module", params=SHAPES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    preset: Preset = request.param
    changed, ratios, layout = SHAPES[preset]
    sizes = replace(PRESETS[preset], **changed)
    folder = tmp_path_factory.mktemp("synthetic") / preset
    synthesise(folder, preset, seed=11, compress_ratios=ratios, sizes=sizes, layout=layout)
    ids = np.random.default_rng(5).integers(0, sizes.vocab_size, N_TOKENS + 1)
    return Case(folder, ids.tolist())


def test_logits_and_choices_without_rounding(case: Case) -> None:
    recorder, expected = Recorder(), Recorder()
    logits = Reference(case.folder).prefill(case.ids[:N_TOKENS], expected)
    with localv4.load(case.folder, numerics="float32") as engine:
        session = engine.session()
        start = N_TOKENS - 10
        ours = [session.prefill(case.ids[:51], logits="all", observe=recorder)]
        ours.append(session.prefill(case.ids[51:start], logits="all", observe=recorder))
        for token in case.ids[start:N_TOKENS]:
            ours.append(session.decode(token, observe=recorder)[None])
    np.testing.assert_allclose(np.concatenate(ours), logits, rtol=0, atol=1e-4)
    observed = recorder.joined()
    for (name, layer), array in expected.joined().items():
        if name in ("router_indices", "indexer_topk"):
            assert_same_choices(observed[name, layer], array)
        elif name != "router_weights" and len(array):  # weights follow the indices' free order
            np.testing.assert_allclose(observed[name, layer], array, rtol=0, atol=1e-4)


def test_draft_without_rounding(case: Case) -> None:
    ids = case.ids
    expected = Reference(case.folder).draft(ids[:N_TOKENS], ids[1:])
    with localv4.load(case.folder, numerics="float32", draft="mtp") as engine:
        session = engine.session()
        session.prefill(ids[: N_TOKENS - 1])
        drafts = [session.draft(ids[N_TOKENS - 1])]
        session.decode(ids[N_TOKENS - 1])
        drafts.append(session.draft(ids[N_TOKENS]))
    np.testing.assert_allclose(np.stack(drafts), expected[-2:], rtol=0, atol=1e-4)


def test_sublayers_as_trained(case: Case) -> None:
    ids, recorder = case.ids[:N_TOKENS], Recorder()
    Reference(case.folder, "trained").prefill(ids, recorder)
    recorded = {key: array.astype(np.float32) for key, array in recorder.joined().items()}
    with localv4.load(case.folder, numerics="trained") as engine:
        for layer in range(engine.config.num_hidden_layers):
            out = engine.run_attention(layer, recorded["attn_in", layer])
            assert relative_rms(out, recorded["attn_out", layer]) < 0.02
            out = engine.run_ffn(layer, recorded["ffn_in", layer], ids)
            assert relative_rms(out, recorded["ffn_out", layer]) < 0.005
            out = engine.run_block(layer, recorded["h", layer], ids)
            assert relative_rms(out, recorded["h", layer + 1]) < 0.02
