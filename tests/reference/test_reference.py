"""The reference against the official goldens, in both numerics.

Float64 throughout differs from a float32 pipeline by rounding alone: 1.4e-5 at most is measured.
"""

import functools

import numpy as np
import pytest

from tests.golden_models import (
    GoldenModel,
    NumericsName,
    Recorder,
    assert_same_choices,
    every_golden_model,
    golden_key,
    mean_divergence,
    relative_rms,
)
from tests.reference.forward import Reference
from tests.reference.forward_numerics import fp4_rounded, fp8_rounded, round_bf16


@functools.lru_cache(maxsize=2)
def reference(model: GoldenModel, numerics: NumericsName) -> Reference:
    return Reference(model.checkpoint, numerics)


@every_golden_model()
def test_logits_and_choices_without_rounding(model: GoldenModel):
    golden = model.goldens("float32")
    recorder = Recorder()
    logits = reference(model, "float32").prefill(golden["ids"][:300], recorder)
    observed = recorder.joined()

    rows = golden["rows700"]
    stored = {300 - 32: golden["prefill.L300.logits_tail32"]}
    stored |= {97: golden["prefill.L129.logits_tail32"], 120: golden["prefill.L128.logits_tail8"]}
    stored |= {0: golden["prefill.L700.logits_rows"][rows < 100]}
    for first, expected in stored.items():
        np.testing.assert_allclose(logits[first : first + len(expected)], expected, 0, 1e-4)

    for layer, expected in enumerate(golden["router.L700.indices"]):
        np.testing.assert_array_equal(observed["router_indices", layer], expected[:300])
        shares = golden["router.L700.weights"][layer, :300]
        np.testing.assert_allclose(observed["router_weights", layer], shares, rtol=0, atol=1e-5)
        if (key := f"indexer.L700.layer{layer}.topk") in golden:
            assert_same_choices(observed["indexer_topk", layer], golden[key][:300])


@every_golden_model()
@pytest.mark.parametrize("n_tokens", [1, 3, 4, 5])
def test_short_prompts_without_rounding(model: GoldenModel, n_tokens: int):
    golden = model.goldens("float32")
    logits = reference(model, "float32").prefill(golden["ids"][:n_tokens])
    np.testing.assert_allclose(logits, golden[f"prefill.L{n_tokens}.logits"], rtol=0, atol=1e-4)


@every_golden_model()
def test_mtp_without_rounding(model: GoldenModel):
    golden = model.goldens("float32")
    ids = golden["ids"]
    logits = reference(model, "float32").draft(ids[:129], ids[1:130])
    np.testing.assert_allclose(logits, golden["mtp.L129.logits"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(logits[:12], golden["mtp.L12.logits"], rtol=0, atol=1e-4)


@every_golden_model()
def test_intermediates_without_rounding(model: GoldenModel):
    golden = model.goldens("float32")
    recorder = Recorder()
    reference(model, "float32").prefill(golden["ids"][:12], recorder)
    compared = 0
    for (name, layer), array in recorder.joined().items():
        if (key := golden_key(12, name, layer)) in golden:
            np.testing.assert_allclose(array, golden[key], rtol=0, atol=1e-4, err_msg=key)
            compared += 1
    assert compared == sum(key.startswith("hidden.L12") for key in golden) - unobserved(model)


def unobserved(model: GoldenModel) -> int:
    """Count the L12 goldens that are no observed intermediate: qo_rows, and two of each layer."""
    return 1 + 2 * len(model.goldens("float32")["router.L129.scores"])


@every_golden_model()
def test_sublayers_as_trained(model: GoldenModel):
    golden = model.goldens("trained")
    ids = golden["ids"]
    twin = reference(model, "trained")
    for layer in range(twin.config.num_hidden_layers):
        recorded = f"hidden.L32.layer{layer}."
        recorder = Recorder()
        out = twin.run_attention(layer, golden[recorded + "attn_in"].astype(np.float64), recorder)
        assert relative_rms(out, golden[recorded + "attn_out"]) < 0.01
        for (name, _), array in recorder.joined().items():
            if (expected := golden.get(recorded + name)) is not None:
                assert np.mean(array != expected) < 0.001, f"{name} of layer {layer}"
        out = twin.run_ffn(layer, golden[recorded + "ffn_in"].astype(np.float64), ids[:32])
        assert relative_rms(out, golden[recorded + "ffn_out"]) < 0.0005
        out = twin.run_block(layer, golden[f"hidden.L32.h{layer}"].astype(np.float64), ids[:32])
        assert relative_rms(out, golden[f"hidden.L32.h{layer + 1}"]) < 0.02
        if (key := f"block.L272.layer{layer}.in") in golden:
            out = twin.run_block(layer, golden[key].astype(np.float64), ids[:272])[-48:]
            assert relative_rms(out, golden[f"block.L272.layer{layer}.out_tail48"]) < 0.02


@every_golden_model()
def test_end_to_end_as_trained(model: GoldenModel):
    golden = model.goldens("trained")
    logits = reference(model, "trained").prefill(golden["ids"][:129])
    expected = golden["prefill.L129.logits"]
    assert np.abs(logits - expected).mean() <= 0.3
    assert mean_divergence(logits, expected) <= 0.06


def test_roundings_on_values_worked_by_hand():
    ties = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0])
    np.testing.assert_array_equal(
        fp4_rounded(np.tile(ties, 4)), np.tile([0, 1, 1, 2, 2, 4, 4, 6], 4)
    )
    # 1 + 2^-8 lies halfway between two BF16 values, the even one is 1; 3 * 2^-8 goes up.
    np.testing.assert_array_equal(round_bf16(np.array([1 + 2**-8, 1 + 3 * 2**-8])), [1, 1 + 2**-6])
    # The largest value is 448, so the scale is 1 and the codes have steps of 2 from 16 to 32.
    row = np.zeros((1, 64))
    row[0, :4] = 448, 17, 19, -(2.0**-10)
    np.testing.assert_array_equal(fp8_rounded(row, 64)[0, :4], [448, 16, 20, 0])
