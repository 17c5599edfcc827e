"""Saving and loading keeps every bit, whatever the layout, and refuses files that do not fit."""

import contextlib
import json
import os
import struct
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import eqxformer as ef
from eqxformer.checkpoints import _writing, native
from eqxformer.checkpoints.tensor_files import write_tensors
from tests.helpers.compare import same_bits
from tests.helpers.models import DECODERS, SEQ2SEQ, block, decoder, filled, model

SMALL = decoder(*[block({})] * 3, dim=6)


class ByLanguage(eqx.Module):
    """Parts in a dict."""

    tables: dict[str, ef.Linear]


def test_parts_in_a_dict_have_one_name_for_everybody():
    part = ByLanguage({name: ef.Linear(2, 3, key=jax.random.key(0)) for name in ("de", "fr")})
    names = ["tables.de.weight", "tables.de.bias", "tables.fr.weight", "tables.fr.bias"]
    assert sorted(ef.named_arrays(part)) == sorted(names)
    assert all(name in str(ef.table(part)) for name in names)
    assert ef.count(ef.Only(paths=("tables.de",)).of(part)) == 9


@pytest.fixture
def small():
    return filled(SMALL)


@pytest.mark.parametrize("name", [*DECODERS, *SEQ2SEQ])
def test_a_round_trip_keeps_every_bit_and_the_config(name, tmp_path):
    ef.save(model(name), tmp_path)
    again = ef.load(tmp_path)
    assert same_bits(again, model(name))
    assert again.config == model(name).config == ef.load_config(tmp_path)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_round_trip_keeps_the_type_of_numbers(dtype, small, tmp_path):
    half = jax.tree.map(lambda x: x.astype(dtype), small)
    ef.save(half, tmp_path)
    again = ef.load(tmp_path)
    assert {leaf.dtype for leaf in jax.tree.leaves(again)} == {jnp.dtype(dtype)}
    assert same_bits(again, half)


def test_numbers_that_are_not_finite_or_signed_zeros_keep_their_bits(small, tmp_path):
    odd = small.norm.weight.at[:4].set(jnp.array([jnp.nan, -jnp.inf, -0.0, 1e-45]))
    ef.save(eqx.tree_at(lambda m: m.norm.weight, small, odd), tmp_path)
    again = np.asarray(ef.load(tmp_path).norm.weight)
    np.testing.assert_array_equal(again.view(np.uint32), np.asarray(odd).view(np.uint32))


def test_a_scanned_and_an_unrolled_model_write_the_same_file_and_load_as_either(small, tmp_path):
    scanned = ef.rebuild(small, SMALL.edit(layout=ef.Scanned()))
    ef.save(small, tmp_path / "unrolled")
    ef.save(scanned, tmp_path / "scanned")
    files = [(tmp_path / d / native.WEIGHTS).read_bytes() for d in ("unrolled", "scanned")]
    assert files[0] == files[1]
    assert same_bits(ef.load(tmp_path / "scanned"), scanned)
    (tmp_path / "scanned" / native.CONFIG).write_bytes(
        (tmp_path / "unrolled" / native.CONFIG).read_bytes()
    )
    assert same_bits(ef.load(tmp_path / "scanned"), small)


def test_double_precision_is_not_halved_in_silence(small, tmp_path):
    with jax.enable_x64(True):
        double = jax.tree.map(lambda x: x.astype(jnp.float64), small)
        ef.save(double, tmp_path)
        assert same_bits(ef.load(tmp_path), double)
    with pytest.raises(ValueError, match="is float64, which JAX only keeps with `jax_enable_x64`"):
        ef.load(tmp_path)


def test_names_are_the_paths_of_the_model(small, tmp_path):
    ef.save(small, tmp_path)
    found = load_file(tmp_path / native.WEIGHTS)
    assert found.keys() == ef.named_arrays(small).keys()
    assert "blocks.2.attention.query.weight" in found
    np.testing.assert_array_equal(
        found["blocks.2.attention.query.weight"], small.blocks[2].attention.query.weight
    )


def test_every_tensor_that_is_missing_unexpected_or_misshapen_is_listed(small, tmp_path):
    ef.save(small, tmp_path)
    arrays = load_file(tmp_path / native.WEIGHTS)
    del arrays["norm.weight"], arrays["blocks.1.attention.out.bias"]
    arrays["../../intruder"] = np.zeros(3, np.float32)
    arrays["norm.bias"] = np.zeros(7, np.float32)
    save_file(arrays, tmp_path / native.WEIGHTS)
    with pytest.raises(ef.CheckpointError, match=r"does not fit its config\.json") as error:
        ef.load(tmp_path)
    lines = [line.strip() for line in str(error.value).splitlines()[1:]]
    assert set(lines) == {
        "missing: norm.weight (6,)",
        "missing: blocks.1.attention.out.bias (6,)",
        "unexpected: ../../intruder (3,)",
        "shape: norm.bias is (7,), expected (6,)",
    }


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file_is_an_error_that_names_it(kept, small, tmp_path):
    ef.save(small, tmp_path)
    path = tmp_path / native.WEIGHTS
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole safetensors file"):
        ef.load(tmp_path)


def test_a_header_that_claims_more_than_the_file_holds_is_an_error(small, tmp_path):
    ef.save(small, tmp_path)
    path = tmp_path / native.WEIGHTS
    data = path.read_bytes()
    path.write_bytes(struct.pack("<Q", 2**60) + data[8:])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        ef.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "must be a JSON object; got list"),
        ('{"model_type": "gpt2"}', "was not written by eqxformer's `save`"),
        ('{"format": "eqxformer"}', "was not written by eqxformer's `save`"),
        ('{"format": "eqxformer", "model": 3}', "was not written by eqxformer's `save`"),
        ('{"format": "eqxformer", "model": {}}', "is not a known type of config"),
        ('{"format": "eqxformer", "format": "eqxformer"}', "`format` is there twice"),
        ("[" * 100_000, "not JSON"),
        ("\xff", "not UTF-8"),
    ],
)
def test_a_config_that_is_none_is_refused(text, message, small, tmp_path):
    ef.save(small, tmp_path)
    (tmp_path / native.CONFIG).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        ef.load(tmp_path)


def test_a_config_of_gigantic_sizes_is_compared_before_any_memory_is_used(small, tmp_path):
    ef.save(small, tmp_path)
    path = tmp_path / native.CONFIG
    values = json.loads(path.read_text())
    values["model"]["vocab"] = 10**12
    path.write_text(json.dumps(values))
    with pytest.raises(
        ValueError, match=r"tokens\.weight is \(13, 6\), expected \(1000000000000, 6\)"
    ):
        ef.load(tmp_path)


def test_a_model_of_more_blocks_than_can_be_loaded_is_not_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "_MAX_BLOCKS", 2)
    with pytest.raises(ValueError, match="The format has room for 2 blocks; the model has more"):
        ef.save(filled(SMALL), tmp_path)
    assert not list(tmp_path.iterdir())


def test_shards_are_read_as_well(small, tmp_path):
    """As `write_tensors` of any tool makes them; `save` itself writes one file."""
    ef.save(small, tmp_path)
    arrays = load_file(tmp_path / native.WEIGHTS)
    (tmp_path / native.WEIGHTS).unlink()
    tensors = [(name, lambda a=a: a, a.shape, a.dtype) for name, a in arrays.items()]
    write_tensors(tmp_path, tensors, shard_bytes=200)
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert same_bits(ef.load(tmp_path), small)


@pytest.mark.parametrize("name", [native.CONFIG, native.WEIGHTS])
def test_a_missing_file_is_named(name, small, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No config\.json in"):
        ef.load(tmp_path)
    ef.save(small, tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"No {name} in"):
        ef.load(tmp_path)


STEPS = {
    "a tensor": (_writing, "_raw", 3),  # after half of the file
    "the text": (json, "dumps", 1),
    "the flush of the weights": (os, "fsync", 1),
    "the flush of the config": (os, "fsync", 2),
    "the first rename": (os, "replace", 1),
}


@contextlib.contextmanager
def failing(module, name, number, error, *, done=False):
    """Lets one call of a function raise, before or after it has done what it does."""
    real, count = getattr(module, name), 0

    def call(*args, **kwargs):
        nonlocal count
        count += 1
        if count != number or done:
            result = real(*args, **kwargs)
        if count == number:
            raise error
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, call)
        yield


@pytest.fixture(params=["the same config", "another config", "nothing"])
def replaced(request, small, tmp_path):
    """A directory, what is in it, the model that is in it, and one that is to take its place."""
    changed = eqx.tree_at(lambda m: m.norm.weight, small, jnp.zeros(6))
    if request.param == "another config":
        changed = ef.rebuild(changed, SMALL.edit("blocks.*.attention", window=2))
    (tmp_path / "metrics.jsonl").write_text("{}")
    if request.param != "nothing":
        ef.save(small, tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    return tmp_path, files, None if request.param == "nothing" else small, changed


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", STEPS)
def test_a_save_that_fails_leaves_the_old_model_and_nothing_else(step, error, replaced):
    folder, files, old, new = replaced
    with failing(*STEPS[step], error), pytest.raises(type(error)):
        ef.save(new, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    if old is not None:
        assert same_bits(ef.load(folder), old)


def test_an_interrupt_before_or_after_any_rename_leaves_the_old_model_or_the_new(replaced):
    folder, files, old, new = replaced
    for number in range(1, 6):
        for done in (False, True):
            try:
                with failing(os, "replace", number, KeyboardInterrupt, done=done):
                    ef.save(new, folder)
            except KeyboardInterrupt:
                found = {path.name: path.read_bytes() for path in folder.iterdir()}
                assert found == files or (done and same_bits(ef.load(folder), new))
                if old is not None and found != files:
                    ef.save(old, folder)
                    files = {path.name: path.read_bytes() for path in folder.iterdir()}
            else:
                assert same_bits(ef.load(folder), new)
                return
    pytest.fail("There should not be that many renames.")


KILLED = """
import os, pathlib, sys
from eqxformer.checkpoints import native

root, same = pathlib.Path(sys.argv[1]), sys.argv[2] == "same"

def put(folder, steps):
    count = 0
    def dying(step):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count > steps:
                os._exit(9)
            return step(*args, **kwargs)
        return call
    os.replace, os.unlink = dying(os.replace), dying(os.unlink)
    text = b"old" if same else b"new"
    new = {name: folder / f".{name}.new" for name in (native.CONFIG, native.WEIGHTS)}
    new[native.CONFIG].write_bytes(text)
    new[native.WEIGHTS].write_bytes(b"new")
    native._put(folder, new, text)
    os._exit(0)

for steps in range(20):
    folder = root / str(steps)
    folder.mkdir()
    for name in (native.CONFIG, native.WEIGHTS):
        (folder / name).write_bytes(b"old")
    child = os.fork()
    if not child:
        put(folder, steps)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
print(steps)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("config", ["same", "another"])
def test_a_kill_between_two_renames_never_leaves_weights_beside_the_config_of_others(
    config, tmp_path
):
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path), config]
    options = {"env": {**os.environ, "EQXFORMER_CHECKS": "0"}, "check": True}
    steps = int(subprocess.run(command, capture_output=True, text=True, **options).stdout)
    seen = []
    for folder in (tmp_path / str(number) for number in range(steps + 1)):
        paths = [folder / native.CONFIG, folder / native.WEIGHTS]
        seen.append(tuple(path.read_text() if path.exists() else None for path in paths))
    if config == "same":
        assert seen == [("old", "old"), ("old", "new")]
        return
    assert seen[0] == ("old", "old")
    assert seen[-1] == ("new", "new")
    assert all(settings is None or settings == weights for settings, weights in seen)


def test_saving_makes_the_directory_and_replaces_an_older_model(small, tmp_path):
    folder = tmp_path / "a" / "b"
    ef.save(filled(SMALL, seed=1), folder)
    ef.save(small, folder)
    assert same_bits(ef.load(folder), small)
    assert {path.name for path in folder.iterdir()} == {native.CONFIG, native.WEIGHTS}


KILLED_WHILE_WRITING = """
import os, sys
import eqxformer as ef
from eqxformer.checkpoints import native
from tests.checkpoints.test_native import SMALL, filled

native._put = lambda *_: os._exit(9)
ef.save(filled(SMALL, seed=1), sys.argv[1])
"""


def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(small, tmp_path):
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path)]
    options = {"env": {**os.environ, "EQXFORMER_CHECKS": "0"}, "check": False}
    assert subprocess.run(command, **options).returncode == 9
    (left,) = tmp_path.iterdir()
    with native.hidden_directory(tmp_path / native.WEIGHTS) as hidden:
        ef.save(small, tmp_path)
        assert hidden.exists()
        assert not left.exists()
    assert {path.name for path in tmp_path.iterdir()} == {native.CONFIG, native.WEIGHTS}


def test_a_loaded_model_does_not_depend_on_its_file(small, tmp_path):
    ef.save(small, tmp_path)
    again = ef.load(tmp_path)
    (tmp_path / native.WEIGHTS).write_bytes(b"\0" * 1000)
    assert same_bits(again, small)


def test_a_model_that_its_config_would_not_build_is_not_saved(small, tmp_path):
    longer = eqx.tree_at(lambda m: m.norm.weight, small, jnp.zeros(9))
    with pytest.raises(ValueError, match=r"shape: norm\.weight is \(9,\), expected \(6,\)"):
        ef.save(longer, tmp_path / "new")
    with pytest.raises(ValueError, match="needs a model with a `config`; Linear has none"):
        ef.save(ef.Linear(2, 3, key=jax.random.key(0)), tmp_path / "new")
    assert not (tmp_path / "new").exists()


# Another config for the same arrays


def test_rebuild_gives_the_same_arrays_under_another_config(small):
    config = SMALL.edit("blocks.*.attention", window=2).edit(layout=ef.Scanned())
    again = ef.rebuild(small, config)
    assert again.config == config
    assert again.blocks.sizes == (3,)
    back = ef.rebuild(again, SMALL)
    assert same_bits(back, small)


def test_rebuild_lists_what_does_not_fit(small):
    with pytest.raises(ValueError, match=r"shape: norm\.weight is \(6,\), expected \(9,\)"):
        ef.rebuild(small, SMALL.edit(dim=9))
    with pytest.raises(ValueError, match=r"missing: head\.linear\.weight \(6, 13\)"):
        ef.rebuild(small, SMALL.edit(head=ef.LinearHead.Config()))


def test_named_arrays_of_shapes_and_of_scanned_shapes_are_those_of_the_model(small):
    expected = {k: v.shape for k, v in ef.named_arrays(small).items()}
    for config in (SMALL, SMALL.edit(layout=ef.Scanned())):
        found = ef.named_arrays(ef.shapes(config))
        assert {k: v.shape for k, v in found.items()} == expected
