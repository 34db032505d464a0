import os
import subprocess
import sys
from pathlib import Path

import pytest

from localv4 import synthetic
from localv4.errors import InvalidInput, ModelNotFound, OutOfBudget
from localv4.hub_cache import contents_of
from localv4.models import BUILTIN, builtin_folder, locate, resolve
from tests.cached_models import COMMIT, FLASH, OLDER, put
from tests.small_checkpoints import make_small, shard_of

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make_small(tmp_path_factory.mktemp("made") / "model", ratios=(0, 4))


def test_a_folder_is_itself(tmp_path):
    assert resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./nothing", "check the path"),
        ("/no/such/folder", "check the path"),
        ("~/no-such-folder-of-localv4", "check the path"),
        ("deepseek-ai/DeepSeek-V4-Flash", "not on this machine; get it with: localv4 pull flash$"),
        ("flash", f"^{FLASH} is not on this machine; get it with: localv4 pull flash$"),
        ("DeepSeek-Chat", "localv4 pull flash$"),
        ("flash@v2", "Flash at v2 is not .* localv4 pull flash --revision v2$"),
        ("some-one/a.model", "localv4 pull some-one/a.model$"),
        ("some--one/model", "there is no folder"),
        ("a/b/c", "check the path"),
        ("flsh", "did you mean flash"),
        ("gpt", "or one of flash, pro"),
        (__file__, "is a file"),
        ("~nobody-of-this-name/x", "check the path"),
        ("x" * 300, "File name too long.*check the path"),
        ("nul\0", "no folder"),
        ("", "name of the model is empty"),
    ],
)
def test_what_is_not_there(name, words):
    with pytest.raises(ModelNotFound, match=words):
        resolve(name)


def test_the_built_in_model_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALV4_CACHE_DIR", str(tmp_path))
    said: list[str] = []
    folder = resolve(None, said.append)
    assert folder == builtin_folder()
    assert len(said) == 1
    before = (folder / "config.json").stat().st_mtime_ns
    assert resolve(None, said.append) == folder
    assert len(said) == 1
    assert (folder / "config.json").stat().st_mtime_ns == before


def test_a_folder_that_may_not_be_read(monkeypatch):
    def refuse(_path, **_rest):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(ModelNotFound, match=r"Permission denied.*who may read it"):
        resolve("/root/model")


def test_an_empty_folder_in_place_of_the_built_in_model_is_filled(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALV4_CACHE_DIR", str(tmp_path))
    builtin_folder().mkdir(parents=True)
    assert (resolve(None) / "config.json").is_file()


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOCALV4_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(InvalidInput, match=r"can't be written.*; let LOCALV4_CACHE_DIR"):
        resolve(None)

    def fill(folder):
        raise OutOfBudget(f"the disk is too full for {folder}; free some")

    monkeypatch.setattr(synthetic, "synthesise", fill)
    with pytest.raises(OutOfBudget, match=r"too full.*LOCALV4_CACHE_DIR"):
        resolve(None)


def test_two_processes_make_the_built_in_model_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALV4_CACHE_DIR", str(tmp_path))
    code = "from localv4.models import resolve; print(resolve(None))"
    command = [sys.executable, "-W", "error", "-c", code]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    folders = {racer.communicate(timeout=60)[0].strip() for racer in racers}
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert folders == {str(builtin_folder())}
    # Nothing half made is left.
    assert [path.name for path in Path(builtin_folder()).parent.iterdir()] == [
        builtin_folder().name
    ]


def test_a_name_is_a_folder_first_then_an_alias_then_a_repo(made, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snapshot = put(cache, made).snapshot(COMMIT)
    other = put(cache, made, "some-one/model").snapshot(COMMIT)
    for name in ("flash", "FLASH", "deepseek-reasoner", FLASH):
        assert resolve(name) == snapshot
    assert resolve("some-one/model") == other
    # without a config.json a folder comes last
    for name in ("flash", "some-one/model", "nobodys/model", "built-in"):
        Path(name).mkdir(parents=True)
    assert resolve("flash") == snapshot
    assert resolve("some-one/model") == other
    assert resolve("nobodys/model") == Path("nobodys/model")
    for name in ("flash", "some-one/model", "built-in"):
        (Path(name) / "config.json").touch()
        assert resolve(name) == Path(name)


def test_a_revision_is_taken_as_it_is(made, cache):
    put(cache, made, commit=OLDER, ref="v1")
    repo = put(cache, made)
    assert resolve("flash@v1") == resolve(f"{FLASH}@{OLDER[:7]}") == repo.snapshot(OLDER)
    assert resolve("flash@main") == resolve("flash") == repo.snapshot(COMMIT)
    with pytest.raises(ModelNotFound, match="Flash at v3 is not on this machine"):
        resolve("flash@v3")


def test_a_part_is_told_with_numbers(made, cache):
    missing = shard_of(made, "layers.1.attn.wq_a.weight").name
    n_shards = contents_of(made).n_shards
    put(cache, made, without={missing}, ref=None)
    words = (
        f"^{FLASH} is here in part, {n_shards - 1} of {n_shards} shards; finish it with: "
        "localv4 pull flash$"
    )
    with pytest.raises(ModelNotFound, match=words):
        resolve("flash")
    located = locate("flash")
    assert (located.commit, located.is_complete) == (COMMIT, False)
    assert located.contents is not None
    assert located.contents.missing == (missing,)


def test_an_older_commit_is_used_with_a_warning(made, cache):
    repo = put(cache, made, commit=OLDER, ref=None)
    os.utime(repo.snapshot(OLDER), (1, 1))
    put(cache, made, without={shard_of(made, "layers.1.attn.wq_a.weight").name})
    said: list[str] = []
    assert resolve("flash", said.append) == repo.snapshot(OLDER)
    (sentence,) = said
    assert "files of main (aaaaaaa) are not all here, so the older bbbbbbb is used" in sentence


def test_no_cache_and_odd_things_in_its_place(cache):
    cache.write_text("a file")
    with pytest.raises(ModelNotFound, match="not on this machine"):
        resolve("flash")
    cache.unlink()
    (cache / "models--deepseek-ai--DeepSeek-V4-Flash").mkdir(parents=True)
    with pytest.raises(ModelNotFound, match="not on this machine"):
        resolve("flash")


def test_the_built_in_model_has_a_name(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALV4_CACHE_DIR", str(tmp_path))
    located = locate(BUILTIN)
    assert (located.is_builtin, located.folder) == (True, None)
    assert resolve(BUILTIN) == builtin_folder() == locate(None).folder


def test_names_are_looked_up_without_what_takes_long():
    code = (
        "import sys; from localv4.models import locate; locate('flash');"
        "print([name for name in ('numpy', 'numba', 'httpx2', 'huggingface_hub.hf_api')"
        " if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.strip() == "[]"
