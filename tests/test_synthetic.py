import dataclasses
import errno
import itertools
import json
import shutil
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest

import localv4
from localv4 import synthetic
from localv4.checkpoint import Checkpoint
from localv4.errors import InvalidInput, OutOfBudget
from localv4.quant import bf16, dequantise
from localv4.sampling import Sampler, SamplingParams
from localv4.shard_writer import write_shard
from localv4.synthetic import FULL_WIDTH, PRESETS, Preset, synthesise
from localv4.synthetic_config import first_ratios
from localv4.synthetic_draws import direction
from localv4.synthetic_plan import Request, WritePlan, make_write_plan
from localv4.synthetic_pools import PooledWeights
from localv4.synthetic_routing import Topics, gate_bias
from localv4.synthetic_weights import PRINTABLE
from localv4.tensors import TensorSpec
from localv4.tokenizer import Tokenizer
from tests.released import released_config
from tests.small_checkpoints import make_small

PRESET_NAMES: list[Preset] = ["flash", "pro", "flash-base", "pro-base"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One checkpoint of every preset."""
    folder = tmp_path_factory.mktemp("presets")
    for preset in PRESET_NAMES:
        synthesise(folder / preset, preset)
    return folder


RECIPE_CODES = [98, 201, 94, 206, 213, 72]
POOLED_CODES = [196, 163, 145, 74, 66, 73]
RECIPE_CHECKSUMS = {
    "embed.weight": 960726898,
    "head.weight": 3701480752,
    "layers.3.ffn.gate.bias": 2522218584,
    "mtp.0.ffn.gate.bias": 2998813333,
}
RECIPE_EXPERTS = [[0, 2, 7], [0, 5, 2]]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def weights(checkpoint: Checkpoint, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The values of a quantised matrix."""
    fp4 = checkpoint.tensors[f"{name}.weight"].dtype == "I8"
    return dequantise(
        checkpoint.view(f"{name}.weight"),
        checkpoint.view(f"{name}.scale"),
        "fp4" if fp4 else "fp8",
    )


@pytest.mark.parametrize("preset", PRESET_NAMES)
def test_every_preset_opens_and_is_small(made: Path, preset: Preset) -> None:
    with Checkpoint.open(made / preset) as checkpoint:
        base = preset.endswith("base")
        assert checkpoint.expert_format == ("fp8" if base else "fp4")
        assert checkpoint.scale_dtype == ("F32" if base else "F8_E8M0")
        assert checkpoint.has_mtp
        kinds = {checkpoint.config.layer_kind(n) for n in range(6)}
        assert kinds == {"sliding", "csa", "hca"}
        for name in checkpoint.tensors:
            if not name.endswith((".weight", "tid2eid")) or "norm" in name:
                checkpoint.check_finite(name)
    assert sum(len(content) for content in contents(made / preset).values()) < 12_000_000


def test_a_group_of_heads_is_wider_than_hidden_size_on_pro_alone(made: Path) -> None:
    for preset, differs in (("flash", False), ("pro", True)):
        with Checkpoint.open(made / preset) as checkpoint:
            columns = checkpoint.view("layers.0.attn.wo_a.weight").shape[1]
            assert (columns != checkpoint.config.hidden_size) is differs


@pytest.mark.parametrize("layout", ["release", "scattered", "single"])
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, layout: Any) -> None:
    first, again, other = tmp_path / "first", tmp_path / "again", tmp_path / "other"
    for folder, seed in ((first, 7), (again, 7), (other, 8)):
        synthesise(folder, "flash", seed, (4,), layout=layout)
    assert contents(first) == contents(again)
    assert contents(first).keys() == contents(other).keys()
    shard = sorted(first.glob("*.safetensors"))[-1].name
    assert (first / shard).read_bytes() != (other / shard).read_bytes()


def test_the_stream_of_a_seed_is_that_of_the_recipe(made: Path) -> None:
    # A change here changes every synthetic checkpoint: raise the recipe of the built-in model too.
    with Checkpoint.open(made / "flash") as checkpoint:
        assert checkpoint.view("layers.2.attn.wq_a.weight")[0, :6].tolist() == RECIPE_CODES
        assert checkpoint.view("layers.0.ffn.gate.tid2eid")[:2].tolist() == RECIPE_EXPERTS
        for name, checksum in RECIPE_CHECKSUMS.items():
            assert zlib.crc32(checkpoint.view(name).tobytes()) == checksum
    generation = json.loads((made / "flash" / "generation_config.json").read_text())
    assert "localv4_routing" not in generation


def test_answers_end(made: Path) -> None:
    with localv4.load(made / "flash") as engine:
        for seed in (1, 2):
            sampling = localv4.SamplingParams(seed=seed)
            *_, last = engine.generate("Hello", sampling, max_tokens=2000)
            assert last.finish_reason == "stop"


def test_shards_are_laid_out_like_the_releases(made: Path) -> None:
    index = json.loads((made / "flash" / "model.safetensors.index.json").read_text())
    shard = {name: int(file[6:11]) for name, file in index["weight_map"].items()}
    assert shard["embed.weight"] == 1
    assert {n for name, n in shard.items() if name.startswith("layers.3.")} == {5}
    assert {shard[name] for name in ("norm.weight", "head.weight", "hc_head_fn")} == {7}
    assert {n for name, n in shard.items() if name.startswith("mtp.")} == {8}
    with Checkpoint.open(made / "flash") as checkpoint:
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in checkpoint.tensors.values())
        # An expert is two runs: its three weights, its three scales.
        for part in ("weight", "scale"):
            run = [checkpoint.tensors[f"layers.3.ffn.experts.2.w{n}.{part}"] for n in (1, 2, 3)]
            for left, right in itertools.pairwise(run):
                assert left.offset + left.nbytes == right.offset


@pytest.mark.parametrize("preset", PRESET_NAMES)
def test_weights_are_scaled_for_logits_that_spread(made: Path, preset: Preset) -> None:
    with Checkpoint.open(made / preset) as checkpoint:
        width = checkpoint.config.hidden_size
        head = bf16.decode(checkpoint.view("head.weight"))
        assert 2 < np.sqrt(np.mean(head**2) * width) < 3.5
        for name in ("attn.wq_a", "attn.wkv", "attn.wq_b", "ffn.experts.1.w1"):
            matrix = weights(checkpoint, f"layers.2.{name}")
            gain = float(np.sqrt(np.mean(matrix**2) * matrix.shape[1]))
            low, high = (1.5, 4.5) if "experts" in name else (0.5, 2.0)
            assert low < gain < high, name
            half = matrix.shape[0] // 2
            assert not np.array_equal(matrix[:half], matrix[half:])


def test_magnitudes_differ_from_block_to_block(made: Path) -> None:
    with Checkpoint.open(made / "flash") as checkpoint:
        for name in ("layers.2.attn.wq_b", "layers.2.ffn.experts.1.w1"):
            blocks = weights(checkpoint, name)[:128, :128].reshape(4, 32, 4, 32)
            magnitude = np.sqrt((blocks**2).mean(axis=(1, 3)))
            if "experts" not in name:
                assert magnitude.max() > 1.8 * magnitude.min()
            assert len(np.unique(checkpoint.view(f"{name}.scale"))) > 1
    with Checkpoint.open(made / "flash-base") as checkpoint:
        scales = checkpoint.view("layers.2.attn.wq_b.scale")
        assert (np.frexp(scales)[0] != 0.5).all()  # no power of two among them


def test_routing_tables_name_distinct_experts_and_all_of_them(made: Path) -> None:
    with Checkpoint.open(made / "flash") as checkpoint:
        table = np.sort(checkpoint.view("layers.1.ffn.gate.tid2eid"), axis=1)
        assert (np.diff(table, axis=1) > 0).all()
        assert set(np.unique(table)) == set(range(8))


def test_the_tokenizer_and_the_settings_that_come_along(made: Path) -> None:
    tokenizer = Tokenizer.from_folder(made / "pro")
    assert tokenizer is not None
    assert tokenizer.vocab_size == PRESETS["pro"].vocab_size
    assert tokenizer.decode(tokenizer.encode("Grüße, 世界")) == "Grüße, 世界"
    # The ids that the head favours are printable ASCII.
    assert tokenizer.encode(" ~") == [2 + 0x20, 2 + 0x7E]
    generation = json.loads((made / "pro" / "generation_config.json").read_text())
    assert generation["localv4_thinking"] == "off"
    assert (
        json.loads((made / "pro" / "tokenizer_config.json").read_text())["add_bos_token"] is False
    )


def test_sizes_and_ratios_may_be_chosen(tmp_path: Path) -> None:
    sizes = dataclasses.replace(PRESETS["flash"], n_routed_experts=4, vocab_size=500)
    synthesise(tmp_path / "model", "flash", 1, (4, 0), sizes=sizes)
    with Checkpoint.open(tmp_path / "model") as checkpoint:
        assert checkpoint.config.compress_ratios == (4, 0)
        assert checkpoint.view("head.weight").shape == (500, 256)
        assert "layers.1.ffn.experts.4.w1.weight" not in checkpoint.tensors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "huge"}, "no preset 'huge'"),
        ({"n_layers": 0}, "number of layers is 0; give a whole number from 1 to 512"),
        ({"n_layers": 44, "full_width": True}, "is 44; give a whole number from 1 to 43"),
        ({"n_layers": 1, "compress_ratios": (0,)}, "both given"),
        ({"mtp": True, "dspark": True}, "either the MTP block or the drafter"),
        (
            {"full_width": True, "sizes": dataclasses.replace(FULL_WIDTH["flash"], head_dim=100)},
            "head_dim - qk_rope_head_dim 36",
        ),
        ({"seed": -1}, "seed -1 is negative"),
        ({"routing": "even"}, "no routing 'even'; choose one of random, uniform, skewed"),
        ({"layout": "x"}, "no layout 'x'; choose one of release, scattered, single"),
        ({"sizes": dataclasses.replace(PRESETS["flash"], vocab_size=2**22)}, "and more; choose"),
        ({"compress_ratios": ()}, "num_hidden_layers is 0"),
        ({"compress_ratios": (0, 8)}, "ratios 0, 4 and 128"),
        ({"sizes": dataclasses.replace(PRESETS["flash"], hidden_size=200)}, "hidden_size 200"),
        ({"sizes": dataclasses.replace(PRESETS["flash"], vocab_size=100)}, "vocabulary of 100"),
        ({"sizes": dataclasses.replace(PRESETS["flash"], num_experts_per_tok=9)}, "9 is larger"),
    ],
)
def test_what_does_not_fit_the_format_is_refused(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        synthesise(tmp_path / "model", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_an_occupied_place_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path, tmp_path / "file"):
        with pytest.raises(InvalidInput, match="is there already"):
            synthesise(place)
    with pytest.raises(InvalidInput, match="can't be written"):
        synthesise(tmp_path / "file" / "model")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_an_empty_folder_is_filled_and_parents_are_made(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    make_small(tmp_path / "empty", ratios=(0,))
    make_small(tmp_path / "a" / "b", ratios=(0,))
    assert contents(tmp_path / "empty") == contents(tmp_path / "a" / "b")


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, OutOfBudget), (errno.EACCES, InvalidInput)]
)
def test_a_failed_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    calls = itertools.count()

    def fail(*arguments: Any, **options: Any) -> None:
        if next(calls) == 2:
            raise OSError(number, "no")
        write_shard(*arguments, **options)

    monkeypatch.setattr(synthetic, "write_shard", fail)
    with pytest.raises(error, match=str(tmp_path / "model")):
        synthesise(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "random_tensor", interrupt)
    with pytest.raises(KeyboardInterrupt):
        synthesise(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def plan_of(preset: Preset = "flash", **changes: Any) -> WritePlan:
    asked: dict[str, Any] = {"compress_ratios": None, "sizes": None, "layout": "release"}
    asked |= {"dspark": False, "n_layers": None, "full_width": True, "mtp": None, "sparse": False}
    return make_write_plan(Request(preset, **(asked | changes)))


@pytest.mark.parametrize("preset", PRESET_NAMES)
def test_full_width_has_the_config_of_the_release(shared: Path, preset: Preset) -> None:
    plan = plan_of(preset, sparse=True)
    assert plan.config == released_config(preset)
    family, _, base = preset.partition("-")
    released = json.loads((shared / "spec" / "configs" / f"{family}.json").read_text())
    made = json.loads(plan.config_text)
    # Flash came without the key, which later releases have.
    assert made.pop("expert_dtype") == ("fp8" if base else "fp4")
    released.pop("expert_dtype", None)
    released.pop("transformers_version")
    assert made == released


def test_full_width_takes_the_first_layers_of_the_release_without_its_mtp_block() -> None:
    assert plan_of("flash").config.compress_ratios == (0, 0, 4, 128)
    plan = plan_of("pro-base", n_layers=3)
    assert plan.config.compress_ratios == (128, 128, 4)
    assert plan.config.num_nextn_predict_layers == 0
    assert [*plan.shards][-1] == "model-00005-of-00005.safetensors"
    with_mtp = plan_of("pro-base", n_layers=3, mtp=True)
    assert with_mtp.config.num_nextn_predict_layers == 1
    assert with_mtp.tensor_bytes - plan.tensor_bytes > 25e9


def test_more_tiny_layers_go_on_like_the_release(tmp_path: Path) -> None:
    assert first_ratios("flash", 7) == (0, 0, 4, 128, 4, 128, 4)
    sizes = dataclasses.replace(PRESETS["flash"], n_routed_experts=3)
    synthesise(tmp_path / "model", "flash", n_layers=7, sizes=sizes, mtp=False)
    with Checkpoint.open(tmp_path / "model") as checkpoint:
        assert checkpoint.config.compress_ratios == first_ratios("flash", 7)
        assert not checkpoint.has_mtp


def test_a_full_vocabulary_has_the_released_tokenizer_and_favours_its_words() -> None:
    plan = plan_of()
    tokenizer = Tokenizer.from_json(plan.tokenizer_text, plan.config.vocab_size)
    assert tokenizer.vocab_size == plan.config.vocab_size == 129_280
    words = tokenizer.decode(plan.favoured)
    assert words.isascii()
    assert words.replace(" ", "").isalpha()
    assert len(plan.favoured) > 1000


@pytest.mark.parametrize("preset", ["flash", "flash-base"])
def test_pools_fill_a_checkpoint_like_a_tiny_one(tmp_path: Path, preset: Preset) -> None:
    sizes = dataclasses.replace(PRESETS[preset], n_routed_experts=3)
    for name in ("model", "again"):
        synthesise(tmp_path / name, preset, 2, (4, 0), sizes=sizes, full_width=True)
    assert contents(tmp_path / "model") == contents(tmp_path / "again")
    with Checkpoint.open(tmp_path / "model") as checkpoint:
        for name, tensor in checkpoint.tensors.items():
            if tensor.dtype == "F8_E4M3":
                assert ((checkpoint.view(name) & 0x7F) != 0x7F).all()
            elif tensor.dtype != "I64" and tensor.dtype != "I8":
                checkpoint.check_finite(name)
        for name in ("attn.wq_a", "ffn.experts.1.w1"):
            matrix = weights(checkpoint, f"layers.1.{name}")
            gain = float(np.sqrt(np.mean(matrix**2) * matrix.shape[1]))
            low, high = (1.5, 4.5) if "experts" in name else (0.5, 2.0)
            assert low < gain < high, name
        experts = [checkpoint.view(f"layers.1.ffn.experts.{n}.w1.weight") for n in range(3)]
        for one, other in itertools.combinations(experts, 2):
            assert not np.array_equal(one, other)
        table = np.sort(checkpoint.view("layers.1.ffn.gate.tid2eid"), axis=1)
        assert (np.diff(table, axis=1) > 0).all()


def test_the_pools_of_a_seed_stay_as_they_are() -> None:
    pooled = PooledWeights(plan_of().config, 0, np.arange(3))
    spec = TensorSpec("layers.2.ffn.experts.7.w1.weight", (2048, 2048), ("I8",))
    pieces = list(pooled.pieces(spec))
    assert sum(piece.nbytes for piece in pieces) == spec.nbytes
    assert max(piece.nbytes for piece in pieces) <= 2**20
    assert pieces[0][:6].tolist() == POOLED_CODES


def test_the_head_of_a_large_vocabulary_favours_its_words_and_nothing_twice() -> None:
    sizes = dataclasses.replace(FULL_WIDTH["flash"], hidden_size=128, n_routed_experts=6)
    plan = plan_of(sizes=sizes, n_layers=1)
    specs = {spec.name: spec for group in plan.shards.values() for spec in group}
    pooled = PooledWeights(plan.config, 5, plan.favoured)
    head, embedding = (
        bf16.decode(np.concatenate([*pooled.pieces(specs[name])]))
        for name in ("head.weight", "embed.weight")
    )
    assert head.shape == embedding.shape == (129_280, 128)
    shared_direction = direction(5, 128)
    assert 0.45 < (embedding @ shared_direction).mean() / 128 < 0.55
    along = head @ shared_direction
    others = np.delete(along, plan.favoured)
    assert along[plan.favoured].mean() - others.mean() > 40
    own = np.einsum("nd,nd->n", head, embedding)[plan.favoured]
    other = np.einsum("nd,nd->n", head, np.roll(embedding, 1, axis=0))[plan.favoured]
    assert (other - own).mean() > 5
    assert len(np.unique(head[:, :8], axis=0)) == len(head)


def test_a_sparse_checkpoint_opens_and_takes_no_disk(tmp_path: Path) -> None:
    sizes = dataclasses.replace(FULL_WIDTH["pro"], num_hash_layers=0)
    told = []
    synthesise(
        tmp_path / "model",
        "pro",
        compress_ratios=(4,),
        sizes=sizes,
        full_width=True,
        sparse=True,
        progress=lambda *so_far: told.append(so_far),
    )
    with Checkpoint.open(tmp_path / "model") as checkpoint:
        assert checkpoint.has_mtp
        n_bytes = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
        assert told[-1] == (n_bytes, n_bytes)
        assert n_bytes > 30e9
        assert not checkpoint.view("layers.0.ffn.experts.383.w3.scale").any()
        assert not checkpoint.view("head.weight")[-1].any()
        assert checkpoint.view("layers.0.attn.attn_sink").all()
        assert checkpoint.view("layers.0.attn_norm.weight").all()
    files = [file.stat() for file in (tmp_path / "model").iterdir()]
    assert sum(file.st_size for file in files) > n_bytes
    assert sum(file.st_blocks for file in files) * 512 < 32e6


def test_a_disk_without_room_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3 * 2**30))
    monkeypatch.setattr(synthetic, "write_shard", None)
    with pytest.raises(OutOfBudget, match=r"needs 15\.3 GiB and 3\.00 GiB are free"):
        synthesise(tmp_path / "model", full_width=True)
    monkeypatch.setattr(synthetic, "_keeps_holes", lambda _: False)
    with pytest.raises(OutOfBudget, match="149 GiB on a disk that keeps no holes and"):
        synthesise(tmp_path / "model", full_width=True, sparse=True)
    assert list(tmp_path.iterdir()) == []


SKEWED_CHECKSUM = 2960888427
SKEWED = ("embed.weight", "head.weight", "gate.bias")
SHARES = {0.09: 0.50, 0.25: 0.80, 0.46: 0.95}


def share_of_the_most_popular(chosen: np.ndarray[Any, Any], n_experts: int, part: float) -> float:
    counts = np.sort(np.bincount(chosen.ravel(), minlength=n_experts))[::-1]
    within = np.interp(part * n_experts, np.arange(n_experts + 1), [0, *np.cumsum(counts)])
    return float(within / chosen.size)


@pytest.mark.parametrize("preset", PRESET_NAMES)
def test_skewed_routing_changes_few_tensors_and_says_so(
    made: Path, tmp_path: Path, preset: Preset
) -> None:
    synthesise(tmp_path / "skewed", preset, routing="skewed")
    with Checkpoint.open(made / preset) as one, Checkpoint.open(tmp_path / "skewed") as other:
        assert one.tensors.keys() == other.tensors.keys()
        for name in one.tensors:
            same = np.array_equal(one.view(name), other.view(name))
            assert same is not name.endswith(SKEWED), name
    before, after = (
        json.loads((folder / "generation_config.json").read_text())
        for folder in (made / preset, tmp_path / "skewed")
    )
    assert after == before | {"localv4_routing": "skewed"}


@pytest.mark.parametrize(("n_experts", "n_chosen"), [(256, 6), (384, 6), (128, 4), (1024, 8)])
def test_the_biases_of_a_gate_give_the_published_shares(n_experts: int, n_chosen: int) -> None:
    random = np.random.default_rng(0)
    # The affinities that a gate's logits, normal with a deviation of 2.04, would give.
    affinities = np.sqrt(np.log1p(np.exp(2.04 * random.standard_normal((2000, n_experts)))))
    scores = affinities + gate_bias("layers.7.ffn.gate.bias", n_experts, n_chosen, 0)
    chosen = np.argpartition(scores, -n_chosen, axis=1)[:, -n_chosen:]
    for part, share in SHARES.items():
        assert abs(share_of_the_most_popular(chosen, n_experts, part) - share) < 0.03


def test_the_biases_of_a_seed_stay_as_they_are() -> None:
    biases = gate_bias("layers.7.ffn.gate.bias", 256, 6, 3)
    assert biases.dtype == np.float32
    assert zlib.crc32(biases.tobytes()) == SKEWED_CHECKSUM
    for other in (
        gate_bias("layers.8.ffn.gate.bias", 256, 6, 3),
        gate_bias("layers.7.ffn.gate.bias", 256, 6, 4),
    ):
        assert np.array_equal(np.sort(other), np.sort(biases))
        popular = [set(np.argsort(values)[-23:]) for values in (biases, other)]
        assert len(popular[0] & popular[1]) < 8
    # However few experts there are, every bias is a number and no two ranks change places.
    for n_experts, n_chosen in ((1, 1), (3, 3), (8, 3)):
        assert np.isfinite(gate_bias("gate.bias", n_experts, n_chosen, 0)).all()


@pytest.fixture(scope="module")
def skewed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers with gates of 128 experts, and a vocabulary of many tokens."""
    folder = tmp_path_factory.mktemp("skewed") / "model"
    sizes = dataclasses.replace(
        PRESETS["flash"],
        vocab_size=2048,
        hidden_size=128,
        n_routed_experts=128,
        num_experts_per_tok=4,
        num_hash_layers=0,
    )
    synthesise(folder, "flash", 1, (0, 4), sizes=sizes, mtp=False, routing="skewed")
    return folder


def test_a_skewed_checkpoint_chooses_by_the_published_shares(skewed: Path) -> None:
    chosen: dict[int, np.ndarray[Any, Any]] = {}

    def observe(name: str, layer: int, position: int, rows: np.ndarray[Any, Any]) -> None:
        if name == "router_indices":
            chosen[layer] = rows.copy()

    ids = np.random.default_rng(0).permutation(2048)[:900]
    with localv4.load(skewed, threads=2) as engine:
        engine.session(900).prefill(ids, observe=observe)
    for layer in (0, 1):
        for part, share in SHARES.items():
            assert abs(share_of_the_most_popular(chosen[layer], 128, part) - share) < 0.03
    popular = [set(np.argsort(np.bincount(chosen[n].ravel(), minlength=128))[-12:]) for n in (0, 1)]
    assert len(popular[0] & popular[1]) < 6


def test_a_skewed_text_stays_with_its_experts_for_a_while(skewed: Path) -> None:
    chosen: list[set[int]] = []
    ids = [40]

    def observe(name: str, layer: int, position: int, rows: np.ndarray[Any, Any]) -> None:
        if name == "router_indices" and layer == 1:
            chosen.append(set(rows[-1].tolist()))

    sampler = Sampler(SamplingParams(seed=0))
    with localv4.load(skewed, threads=2) as engine:
        session = engine.session(300)
        logits = session.prefill(ids)
        for _ in range(250):
            ids.append(sampler.sample(logits))
            logits = session.decode(ids[-1], observe)
    # Words of a topic are 32 that follow each other, from the first printable one.
    topics = (np.array(ids) - PRINTABLE.start) // 32
    assert np.mean(topics[1:] == topics[:-1]) > 0.6

    alike: dict[bool, list[int]] = {True: [], False: []}
    for i, j in itertools.combinations(range(250), 2):
        if ids[1 + i] != ids[1 + j]:
            alike[bool(topics[1 + i] == topics[1 + j])].append(len(chosen[i] & chosen[j]))
    assert np.mean(alike[True]) > 1.2 * np.mean(alike[False])


def test_skewed_pools_give_words_topics_and_gates_biases() -> None:
    sizes = dataclasses.replace(
        FULL_WIDTH["flash"], hidden_size=128, n_routed_experts=6, num_hash_layers=0
    )
    plan = plan_of(sizes=sizes, n_layers=1, routing="skewed")
    pooled = PooledWeights(plan.config, 5, plan.favoured, plan.routing)
    specs = {spec.name: spec for group in plan.shards.values() for spec in group}
    (biases,) = pooled.pieces(specs["layers.0.ffn.gate.bias"])
    assert np.array_equal(biases, gate_bias("layers.0.ffn.gate.bias", 6, 6, 5))
    head, embedding = (
        bf16.decode(np.concatenate([*pooled.pieces(specs[name])])[plan.favoured])
        for name in ("head.weight", "embed.weight")
    )
    # A topic is 32 words. They are alike, and the head goes from one of them to another.
    likeness = embedding[::32] @ embedding[1::32].T / (embedding[::32] ** 2).sum(1).mean()
    assert 0.3 < np.diag(likeness).mean() < 0.5
    assert abs(np.mean(likeness - np.diag(np.diag(likeness)))) < 0.1
    unit = embedding / np.sqrt((embedding**2).mean(axis=1, keepdims=True))
    after = unit[::32] @ head[1::32].T
    assert np.diag(after).mean() - np.median(after) > 5


def test_topics_cover_every_word() -> None:
    topics = Topics(95, 64, 0)
    words = np.arange(95)
    assert topics.embeddings(words).shape == topics.head_rows(words).shape == (95, 64)
    assert len(np.unique(topics.embeddings(words), axis=0)) == 3
