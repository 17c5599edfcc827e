"""Saving and loading keeps every bit, whatever the layout, and refuses files that do not fit."""

import json
import struct

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import eqxformer as ef
from eqxformer.checkpoints import native
from tests.helpers.models import DECODERS, SEQ2SEQ, block, decoder, filled, model

SMALL = decoder(*[block({})] * 3, dim=6)


@pytest.fixture
def small():
    return filled(SMALL)


@pytest.mark.parametrize("name", [*DECODERS, *SEQ2SEQ])
def test_a_round_trip_keeps_every_bit_and_the_config(name, tmp_path):
    ef.save(model(name), tmp_path)
    again = ef.load(tmp_path)
    assert eqx.tree_equal(again, model(name))
    assert again.config == model(name).config == ef.load_config(tmp_path)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_round_trip_keeps_the_type_of_numbers(dtype, small, tmp_path):
    half = jax.tree.map(lambda x: x.astype(dtype), small)
    ef.save(half, tmp_path)
    again = ef.load(tmp_path)
    assert {leaf.dtype for leaf in jax.tree.leaves(again)} == {jnp.dtype(dtype)}
    assert eqx.tree_equal(again, half)


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
    assert eqx.tree_equal(ef.load(tmp_path / "scanned"), scanned)
    (tmp_path / "scanned" / native.CONFIG).write_bytes(
        (tmp_path / "unrolled" / native.CONFIG).read_bytes()
    )
    assert eqx.tree_equal(ef.load(tmp_path / "scanned"), small)


def test_double_precision_is_not_halved_in_silence(small, tmp_path):
    with jax.enable_x64(True):
        double = jax.tree.map(lambda x: x.astype(jnp.float64), small)
        ef.save(double, tmp_path)
        assert eqx.tree_equal(ef.load(tmp_path), double)
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
    with pytest.raises(ValueError, match=r"does not fit its config\.json") as error:
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
        ("\xff", "utf-8"),
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


@pytest.mark.parametrize("name", [native.CONFIG, native.WEIGHTS])
def test_a_missing_file_is_named(name, small, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No config\.json in"):
        ef.load(tmp_path)
    ef.save(small, tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"No {name} in"):
        ef.load(tmp_path)


@pytest.mark.parametrize("failing", ["save_file", "json.dumps", "os.replace"])
def test_a_save_that_fails_leaves_the_old_model_and_nothing_else(
    failing, small, tmp_path, monkeypatch
):
    ef.save(small, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    module, _, name = failing.rpartition(".")

    def fail(*args, **kwargs):
        if name == "save_file":  # after half of the file
            args[1].write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(getattr(native, module) if module else native, name, fail)
    changed = eqx.tree_at(lambda m: m.norm.weight, small, jnp.zeros(6))
    with pytest.raises(OSError, match="disk full"):
        ef.save(changed, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert eqx.tree_equal(ef.load(tmp_path), small)


def test_saving_makes_the_directory_and_replaces_an_older_model(small, tmp_path):
    folder = tmp_path / "a" / "b"
    ef.save(filled(SMALL, seed=1), folder)
    ef.save(small, folder)
    assert eqx.tree_equal(ef.load(folder), small)
    assert {path.name for path in folder.iterdir()} == {native.CONFIG, native.WEIGHTS}


def test_a_loaded_model_does_not_depend_on_its_file(small, tmp_path):
    ef.save(small, tmp_path)
    again = ef.load(tmp_path)
    (tmp_path / native.WEIGHTS).write_bytes(b"\0" * 1000)
    assert eqx.tree_equal(again, small)


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
    assert eqx.tree_equal(back, small)


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
