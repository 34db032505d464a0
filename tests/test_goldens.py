"""The engine against the official goldens, through the public interface alone.

Without rounding every value is determined to about 1e-5, so the tolerance of 1e-4 leaves room for
no mistake but a tie between two choices. As trained, FP8 rounding amplifies the order of sums, so
sublayers are judged on recorded inputs and whole runs by statistics; tests/golden/README.md has
the evidence for each tolerance.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

import localv4
from tests.golden_models import (
    GoldenModel,
    Observations,
    Recorder,
    assert_same_choices,
    golden_key,
    golden_models,
    mean_divergence,
    relative_rms,
)

Logits = NDArray[np.float32]
MODELS = list(golden_models())
PREFILL_LENGTHS = (1, 3, 4, 5, 127, 128, 129, 300, 700)


@pytest.fixture(scope="module", params=MODELS, ids=[model.name for model in MODELS])
def model(request: pytest.FixtureRequest) -> GoldenModel:
    found: GoldenModel = request.param
    return found


@pytest.fixture(scope="module")
def engine(model: GoldenModel) -> Iterator[localv4.Engine]:
    """Return the model in float32 numerics."""
    with localv4.load(model.checkpoint, numerics="float32") as opened:
        yield opened


@pytest.fixture(scope="module")
def trained(model: GoldenModel) -> Iterator[localv4.Engine]:
    """Return the model in trained numerics."""
    with localv4.load(model.checkpoint, numerics="trained") as opened:
        yield opened


def token_ids(model: GoldenModel) -> list[int]:
    ids: list[int] = model.goldens("float32")["ids"].tolist()
    return ids


def prefill_in_pieces(
    session: localv4.Session, ids: list[int], piece: int, recorder: Recorder | None = None
) -> Logits:
    """Logits of every token, fed ``piece`` tokens at a time."""
    return np.concatenate(
        [
            session.prefill(ids[start : start + piece], logits="all", observe=recorder)
            for start in range(0, len(ids), piece)
        ]
    )


def decode_each(
    session: localv4.Session, ids: Iterable[int], recorder: Recorder | None = None
) -> Logits:
    return np.stack([session.decode(token, observe=recorder) for token in ids])


def assert_prefill_logits(model: GoldenModel, n_tokens: int, logits: Logits) -> None:
    """Compare everything stored of the float32 prefill of ``n_tokens`` tokens."""
    golden = model.goldens("float32")
    prefix = f"prefill.L{n_tokens}."
    rows = golden["rows700"] if n_tokens == 700 else np.arange(n_tokens)
    (key,) = [key for key in golden if key.startswith(prefix + "logits")]
    expected = golden[key]
    ours = logits[rows[-len(expected) :]]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4, err_msg=key)


# Without rounding


@pytest.mark.parametrize("n_tokens", PREFILL_LENGTHS)
def test_prefill_of_every_stored_length(
    engine: localv4.Engine, model: GoldenModel, n_tokens: int
) -> None:
    logits = engine.session().prefill(token_ids(model)[:n_tokens], logits="all")
    assert logits.dtype == np.float32
    assert logits.shape == (n_tokens, engine.config.vocab_size)
    assert_prefill_logits(model, n_tokens, logits)


def test_every_stored_length_is_tried(model: GoldenModel) -> None:
    keys = model.goldens("float32")
    stored = {int(key.split(".")[1][1:]) for key in keys if key.startswith("prefill.L")}
    assert stored == set(PREFILL_LENGTHS)


@pytest.mark.parametrize("piece", [1, 7, 64, 129])
def test_prefill_in_pieces(engine: localv4.Engine, model: GoldenModel, piece: int) -> None:
    # Row r depends on the tokens up to r alone, so one run holds every shorter prompt too.
    n_tokens = 700 if piece >= 64 else 300
    logits = prefill_in_pieces(engine.session(), token_ids(model)[:n_tokens], piece)
    for length in PREFILL_LENGTHS:
        if length <= n_tokens:
            assert_prefill_logits(model, length, logits[:length])


def test_largest_logit_of_every_row(engine: localv4.Engine, model: GoldenModel) -> None:
    logits = engine.session().prefill(token_ids(model)[:700], logits="all")
    best = model.goldens("float32")["prefill.L700.argmax"]
    assert (logits[np.arange(700), best] >= logits.max(axis=1) - 2e-4).all()


@pytest.mark.parametrize("start", [1, 100, 700])
def test_decode(engine: localv4.Engine, model: GoldenModel, start: int) -> None:
    golden, ids = model.goldens("float32"), token_ids(model)
    expected = golden[f"decode.from{start}.logits"]
    session, recorder = engine.session(), Recorder()
    session.prefill(ids[:start])
    logits = decode_each(session, ids[start : start + len(expected)], recorder)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    assert session.position == start + len(expected)

    observed = recorder.joined()
    if (routed := golden.get(f"decode.from{start}.router_indices")) is not None:
        for layer in range(routed.shape[1]):
            assert_same_choices(observed["router_indices", layer], routed[:, layer])
    for name, layer in observed:
        if name == "indexer_topk" and start != 1:
            chosen = golden[f"decode.from{start}.layer{layer}.indexer_topk"]
            assert_same_choices(observed[name, layer], chosen)


@pytest.mark.parametrize("piece", [64, 700])
def test_router_and_indexer_choices(engine: localv4.Engine, model: GoldenModel, piece: int) -> None:
    golden, recorder = model.goldens("float32"), Recorder()
    prefill_in_pieces(engine.session(), token_ids(model)[:700], piece, recorder)
    observed = recorder.joined()
    for layer, expected in enumerate(golden["router.L700.indices"]):
        experts = observed["router_indices", layer]
        assert_same_choices(experts, expected)
        # By expert, because the order of a token's experts is free.
        shares = np.take_along_axis(
            observed["router_weights", layer], np.argsort(experts, axis=1), axis=1
        )
        expected_shares = np.take_along_axis(
            golden["router.L700.weights"][layer], np.argsort(expected, axis=1), axis=1
        )
        np.testing.assert_allclose(shares, expected_shares, rtol=0, atol=1e-5)
    indexed = [layer for name, layer in observed if name == "indexer_topk"]
    assert indexed == [
        layer for layer, ratio in enumerate(engine.config.compress_ratios) if ratio == 4
    ]
    for layer in indexed:
        expected = golden[f"indexer.L700.layer{layer}.topk"]
        assert_same_choices(observed["indexer_topk", layer], expected)


@pytest.mark.parametrize("start", [5, 129, 300])
def test_greedy_continuation(engine: localv4.Engine, model: GoldenModel, start: int) -> None:
    golden = model.goldens("float32")
    gaps = golden[f"greedy.from{start}.gap"]
    sure = np.flatnonzero(gaps < 2e-4)[0] if (gaps < 2e-4).any() else len(gaps)
    session = engine.session()
    tokens = [int(session.prefill(token_ids(model)[:start]).argmax())]
    while len(tokens) < sure:
        tokens.append(int(session.decode(tokens[-1]).argmax()))
    assert tokens == golden[f"greedy.from{start}.tokens"][: len(tokens)].tolist()


@pytest.mark.parametrize("n_prefilled", [12, 5, 1])
def test_intermediates(engine: localv4.Engine, model: GoldenModel, n_prefilled: int) -> None:
    golden, ids = model.goldens("float32"), token_ids(model)
    session, recorder = engine.session(), Recorder()
    session.prefill(ids[:n_prefilled], observe=recorder)
    if n_prefilled < 12:
        decode_each(session, ids[n_prefilled:12], recorder)
    assert_intermediates(recorder.joined(), model)
    layers = engine.config.num_hidden_layers
    recorded = sum(key.startswith("hidden.L12.") for key in golden)
    # The goldens also have qo_rows, and the queries and unrotated outputs of each layer.
    expected = recorded - 1 - 2 * layers
    assert sum(golden_key(12, *key) in golden for key in recorder.joined()) == expected


def assert_intermediates(observed: Observations, model: GoldenModel) -> None:
    golden = model.goldens("float32")
    for (name, layer), array in observed.items():
        if (expected := golden.get(key := golden_key(12, name, layer))) is not None:
            np.testing.assert_allclose(array, expected, rtol=0, atol=1e-4, err_msg=key)


def test_positions_that_are_observed(engine: localv4.Engine, model: GoldenModel) -> None:
    ids, seen = token_ids(model), []
    session = engine.session()

    def note(name: str, layer: int, position: int, array: NDArray[np.generic]) -> None:
        if name == "attn_in" and layer == 0:
            seen.append((position, len(array)))

    session.prefill(ids[:9], observe=note)
    session.prefill(ids[9:12], observe=note)
    session.decode(ids[12], observe=note)
    assert seen == [(0, 9), (9, 3), (12, 1)]


def test_mtp(model: GoldenModel) -> None:
    golden, ids = model.goldens("float32"), token_ids(model)
    with localv4.load(model.checkpoint, numerics="float32", draft="mtp") as engine:
        # One token at a time, a draft after each: every row of the short prompts.
        session = engine.session()
        drafts = [session.prefill(ids[:1]), session.draft(ids[1])][1:]
        for position in range(1, 129):
            session.decode(ids[position])
            drafts.append(session.draft(ids[position + 1]))
        expected = golden["mtp.L129.logits"]
        np.testing.assert_allclose(np.stack(drafts), expected, rtol=0, atol=1e-4)
        expected = golden["mtp.L12.logits"]
        np.testing.assert_allclose(np.stack(drafts[:12]), expected, rtol=0, atol=1e-4)

        # After a prefill, whole and in two pieces; drafts that were never asked for fill the cache.
        for n_first in (300, 201):
            session = engine.session()
            session.prefill(ids[:n_first])
            if n_first < 300:
                session.prefill(ids[n_first:300])
            expected = golden["mtp.L300.logits_tail32"][-1]
            np.testing.assert_allclose(session.draft(ids[300]), expected, rtol=0, atol=1e-4)

        session = engine.session()
        session.prefill(ids[:129])
        expected = golden["mtp.decode_from129.logits"]
        for position, row in enumerate(expected, start=129):
            session.decode(ids[position])
            np.testing.assert_allclose(session.draft(ids[position + 1]), row, rtol=0, atol=1e-4)


def test_draft_does_not_move_the_session(model: GoldenModel) -> None:
    golden, ids = model.goldens("float32"), token_ids(model)
    with localv4.load(model.checkpoint, numerics="float32", draft="mtp") as engine:
        session = engine.session()
        session.prefill(ids[:129])
        first = session.draft(ids[129])
        session.draft((ids[129] + 1) % engine.config.vocab_size)
        assert session.position == 129
        assert session.draft(ids[129]).tobytes() == first.tobytes()
        np.testing.assert_allclose(first, golden["mtp.L129.logits"][-1], rtol=0, atol=1e-4)
        session.decode(ids[129])
        expected = golden["mtp.decode_from129.logits"][0]
        np.testing.assert_allclose(session.draft(ids[130]), expected, rtol=0, atol=1e-4)


# As trained


def test_attention_as_trained(trained: localv4.Engine, model: GoldenModel) -> None:
    golden = model.goldens("trained")
    for layer in range(trained.config.num_hidden_layers):
        recorded = f"hidden.L32.layer{layer}."
        out = trained.run_attention(layer, golden[recorded + "attn_in"])
        assert relative_rms(out, golden[recorded + "attn_out"]) < 0.02, f"layer {layer}"


def test_ffn_as_trained(trained: localv4.Engine, model: GoldenModel) -> None:
    golden, ids = model.goldens("trained"), token_ids(model)[:32]
    for layer in range(trained.config.num_hidden_layers):
        recorded = f"hidden.L32.layer{layer}."
        out = trained.run_ffn(layer, golden[recorded + "ffn_in"], ids)
        assert relative_rms(out, golden[recorded + "ffn_out"]) < 0.005, f"layer {layer}"


def test_blocks_as_trained(trained: localv4.Engine, model: GoldenModel) -> None:
    golden, ids = model.goldens("trained"), token_ids(model)
    for layer in range(trained.config.num_hidden_layers):
        out = trained.run_block(layer, golden[f"hidden.L32.h{layer}"], ids[:32])
        assert relative_rms(out, golden[f"hidden.L32.h{layer + 1}"]) < 0.02, f"layer {layer}"


def test_long_blocks_as_trained(trained: localv4.Engine, model: GoldenModel) -> None:
    golden, ids = model.goldens("trained"), token_ids(model)
    layers = [layer for layer in range(8) if f"block.L272.layer{layer}.in" in golden]
    assert len(layers) == 2  # the last CSA layer and the last HCA layer
    for layer in layers:
        out = trained.run_block(layer, golden[f"block.L272.layer{layer}.in"], ids[:272])[-48:]
        expected = golden[f"block.L272.layer{layer}.out_tail48"]
        assert relative_rms(out, expected) < 0.02, f"layer {layer}"


def test_first_caches_as_trained(trained: localv4.Engine, model: GoldenModel) -> None:
    # Layer 0 reads exact embeddings, so its caches show FP8 and FP4 rounding undisturbed.
    golden, recorder = model.goldens("trained"), Recorder()
    trained.session().prefill(token_ids(model)[:32], observe=recorder)
    compared = []
    for name in ("window_kv", "compressed_kv", "indexer_kv"):
        if (expected := golden.get(f"hidden.L32.layer0.{name}")) is not None:
            assert np.mean(recorder.joined()[name, 0] != expected) < 0.005, name
            compared.append(name)
    assert len(compared) == (3 if trained.config.compress_ratios[0] == 4 else 1)


def test_prefill_as_trained(trained: localv4.Engine, model: GoldenModel) -> None:
    golden = model.goldens("trained")
    logits = prefill_in_pieces(trained.session(), token_ids(model)[:700], 129)
    assert_close_in_mean(logits[golden["rows700"]], golden["prefill.L700.logits_rows"])
    assert_close_in_mean(logits[:129], golden["prefill.L129.logits"])


@pytest.mark.parametrize("start", [1, 100, 620, 700])
def test_decode_as_trained(trained: localv4.Engine, model: GoldenModel, start: int) -> None:
    golden, ids = model.goldens("trained"), token_ids(model)
    expected = golden[f"decode.from{start}.logits"]
    session = trained.session()
    session.prefill(ids[:start])
    assert_close_in_mean(decode_each(session, ids[start : start + len(expected)]), expected)


def test_mtp_as_trained(model: GoldenModel) -> None:
    golden, ids = model.goldens("trained"), token_ids(model)
    with localv4.load(model.checkpoint, numerics="trained", draft="mtp") as engine:
        session = engine.session()
        session.prefill(ids[:1])
        drafts = [session.draft(ids[1])]
        for position in range(1, 48):
            session.decode(ids[position])
            drafts.append(session.draft(ids[position + 1]))
        assert_close_in_mean(np.stack(drafts), golden["mtp.L129.logits"][:48])


def assert_close_in_mean(logits: Logits, expected: NDArray[np.float32]) -> None:
    """Check the gross statistics that any order of sums keeps."""
    assert logits.shape == expected.shape
    assert np.abs(logits - expected).mean() <= 0.3
    assert mean_divergence(logits, expected) <= 0.06
