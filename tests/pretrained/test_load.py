"""Loading: everything is accounted for, before anything is read."""

import json
import time
import tracemalloc

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file

import eqxformer as ef
from eqxformer.pretrained import Checkpoint
from tests.helpers.models import filled, logits
from tests.pretrained.tiny import MODEL, edit_settings, edit_tensors, rename_tensors


def equal(a, b):
    """Whether two models have the same arrays."""
    one, other = ef.named_arrays(a), ef.named_arrays(b)
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and np.array_equal(one[k], other[k]) for k in one
    )


def test_a_model_comes_back_as_it_was_saved(tiny):
    model = ef.from_pretrained(tiny)
    assert equal(model, MODEL)
    tokens = jnp.array([[1, 2, 3]])
    assert np.array_equal(logits(model, tokens), logits(MODEL, tokens))


def test_every_tensor_that_is_missing_left_over_or_misshapen_is_listed_at_once(tiny):
    edit_tensors(
        tiny,
        "model.norm.weight",
        "model.layers.1.mlp.up_proj.weight",
        model__layers__1__mlp__upp_proj__weight=np.zeros((14, 12), np.float32),
        model__layers__0__self_attn__q_proj__weight=np.zeros((12, 13), np.float32),
        extra=np.zeros(3, np.float32),
    )
    with pytest.raises(ef.CheckpointError) as caught:
        ef.from_pretrained(tiny)
    text = str(caught.value)
    assert "missing: model.norm.weight (12,)" in text
    near = "missing: model.layers.1.mlp.up_proj.weight (14, 12) Did you mean"
    assert f"{near} `model.layers.1.mlp.upp_proj.weight`?" in text
    assert "unexpected: extra (3,)" in text
    assert "q_proj.weight is (12, 13), expected (12, 12)" in text


def test_every_key_that_is_not_known_is_listed_at_once_with_the_nearest(tiny):
    edit_settings(tiny, rope_tetha=1e6, new_kind_of_scaling={"a": 1})
    with pytest.raises(ef.CheckpointError) as caught:
        ef.from_pretrained(tiny)
    assert "new_kind_of_scaling" in str(caught.value)
    assert "rope_tetha = 1000000.0 Did you mean `rope_theta`?" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "12"}, "`hidden_size` must be a whole number"),
        ({"hidden_size": True}, "`hidden_size` must be a whole number"),
        ({"hidden_size": -12}, "`hidden_size` must be a whole number"),
        ({"vocab_size": 10**12}, "`vocab_size` must be a whole number"),
        ({"vocab_size": 2**31 - 1}, "expected (2147483647, 12)"),
        ({"num_hidden_layers": 10**9}, "`num_hidden_layers` must be at most"),
        ({"num_hidden_layers": 0}, "unexpected: model.layers.0"),
        ({"rms_norm_eps": "small"}, "`rms_norm_eps` must be a finite number"),
        ({"attention_bias": "no"}, "`attention_bias` must be true or false"),
        ({"hidden_act": "mish"}, "`hidden_act` must be one of gelu"),
        ({"num_key_value_heads": 2}, "`kv_heads` must divide `heads`"),
        ({"head_dim": 3}, "must be even"),
        ({"is_decoder": True}, "`is_decoder` must be False"),
        ({"quantization_config": {"bits": 4}}, "`quantization_config` must be None"),
        ({"architectures": ["LlamaForPoetry"]}, "must name one of LlamaForCausalLM"),
        ({"architectures": "Llama"}, "`architectures` must be a list"),
        ({"model_type": "lama"}, "Did you mean `llama`?"),
        ({"model_type": "../../etc"}, "is not supported"),
        ({"model_type": "_decoders"}, "is not supported"),
        ({"model_type": 3}, "lacks `model_type`"),
        ({"rope_parameters": [1]}, "`rope_parameters` must be an object"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "`rope_type` must be one of"),
        ({"rope_parameters": {"rope_theta": 500.0, "oops": 1}}, "oops = 1"),
        ({"rope_parameters": {"rope_type": "linear"}}, "lacks `factor`"),
        ({"rope_parameters": {"rope_theta": 0.5}}, "`base` must be above 1"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_it(tiny, change, message):
    edit_settings(tiny, **change)
    began = time.monotonic()
    with pytest.raises(ef.CheckpointError) as caught:
        ef.from_pretrained(tiny)
    assert message in str(caught.value)
    assert time.monotonic() - began < 10  # seconds; a loop over 10^9 layers would take hours


def test_a_required_key_that_is_absent_is_named_with_what_is_near(tiny):
    edit_settings(tiny, "intermediate_size", intermediat_size=14)
    with pytest.raises(ef.CheckpointError, match="lacks `intermediate_size`.*`intermediat_size`"):
        ef.from_pretrained(tiny)


@pytest.mark.parametrize(
    "text", ['{"hidden_size": NaN}', "[" * 100_000, "[]", "", '{"a": 1, "a": 2}']
)
def test_a_config_that_is_no_plain_json_object_is_an_error(tiny, text):
    (tiny / "config.json").write_text(text)
    with pytest.raises(ef.CheckpointError, match=r"config\.json"):
        ef.from_pretrained(tiny)


def test_a_large_promise_is_refused_before_memory_is_taken(tiny):
    edit_settings(tiny, vocab_size=2**31 - 1, intermediate_size=2**31 - 1)
    tracemalloc.start()
    with pytest.raises(ef.CheckpointError):
        ef.from_pretrained(tiny)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


def test_a_head_is_tied_when_the_settings_say_so_and_the_file_has_none(tiny):
    edit_tensors(tiny, "lm_head.weight")
    edit_settings(tiny, tie_word_embeddings=True)
    assert isinstance(ef.from_pretrained(tiny).head, ef.TiedHead)


def test_a_head_that_is_there_and_equal_is_tied_when_the_settings_say_so(tiny):
    table = np.asarray(MODEL.embedding.tokens.weight)
    edit_tensors(tiny, lm_head__weight=table)
    edit_settings(tiny, tie_word_embeddings=True)
    assert isinstance(ef.from_pretrained(tiny).head, ef.TiedHead)
    edit_settings(tiny, tie_word_embeddings=False)
    assert isinstance(ef.from_pretrained(tiny).head, ef.LinearHead)


def test_a_table_that_is_there_under_the_name_of_the_head_alone_is_both(tiny):
    """As `safetensors.torch.save_model` leaves it, which keeps one name of what is shared."""
    edit_settings(tiny, tie_word_embeddings=True)
    table = load_file(tiny / "model.safetensors")["model.embed_tokens.weight"]
    edit_tensors(tiny, "model.embed_tokens.weight", lm_head__weight=table)
    model = ef.from_pretrained(tiny)
    assert isinstance(model.config.head, ef.TiedHead.Config)
    assert np.array_equal(model.embedding.tokens.weight, table)


def test_a_head_that_is_there_and_different_is_not_tied_whatever_the_settings_say(tiny, tmp_path):
    edit_settings(tiny, tie_word_embeddings=True)
    model = ef.from_pretrained(tiny)
    assert equal(model, MODEL)
    ef.save_pretrained(model, tmp_path / "again")
    assert not json.loads((tmp_path / "again/config.json").read_text())["tie_word_embeddings"]
    assert equal(ef.from_pretrained(tmp_path / "again"), MODEL)


def test_a_head_that_is_neither_there_nor_tied_is_missing(tiny):
    edit_tensors(tiny, "lm_head.weight")
    with pytest.raises(ef.CheckpointError, match=r"missing: lm_head\.weight"):
        ef.from_pretrained(tiny)


def test_names_go_with_and_without_the_prefix_of_the_base_model(tiny):
    rename_tensors(tiny, lambda name: name.removeprefix("model."))
    assert equal(ef.from_pretrained(tiny), MODEL)


def test_a_tensor_that_is_there_under_both_names_is_an_error(tiny):
    edit_tensors(tiny, norm__weight=np.ones(12, np.float32))
    with pytest.raises(ef.CheckpointError, match=r"unexpected: norm\.weight"):
        ef.from_pretrained(tiny)


def test_old_buffers_are_no_surprise(tiny):
    name = "model__layers__0__self_attn__rotary_emb__inv_freq"
    edit_tensors(tiny, **{name: np.ones(2, np.float32)})
    assert equal(ef.from_pretrained(tiny), MODEL)


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float64"])
def test_weights_of_any_type_become_float32_on_a_cpu(tiny, stored):
    rounded = {k: v.astype(stored) for k, v in load_file(tiny / "model.safetensors").items()}
    edit_tensors(tiny, **{k.replace(".", "__"): v for k, v in rounded.items()})
    weight = ef.from_pretrained(tiny).embedding.tokens.weight
    assert weight.dtype == jnp.float32
    assert np.array_equal(weight, rounded["model.embed_tokens.weight"].astype(np.float32))


def test_a_type_can_be_asked_for(tiny):
    model = ef.from_pretrained(tiny, dtype="bfloat16")
    arrays = ef.named_arrays(model)
    assert {array.dtype for array in arrays.values()} == {jnp.dtype(jnp.bfloat16)}
    exact = np.asarray(MODEL.norm.weight).astype(ml_dtypes.bfloat16)
    assert np.array_equal(np.asarray(arrays["norm.weight"]), exact)
    assert logits(model, jnp.array([[1, 2]])).dtype == jnp.bfloat16


def test_the_router_of_experts_stays_in_float32_where_a_small_type_is_asked_for(tmp_path):
    mixture = ef.Experts.Config(3, 2, ef.GatedMLP.Config(hidden=5), ef.TopKThenSoftmax())
    whole = filled(MODEL.config.edit("blocks.*", feed_forward=mixture))
    ef.save_pretrained(whole, tmp_path / "mixture")
    for dtype in ("bfloat16", "float16"):
        model = ef.from_pretrained(tmp_path / "mixture", dtype=dtype)
        arrays = ef.named_arrays(model)
        wide = {name for name, array in arrays.items() if array.dtype != jnp.dtype(dtype)}
        assert wide == {f"blocks.{n}.feed_forward.router.weight" for n in range(2)}
        exact = ef.named_arrays(whole)
        assert all(np.array_equal(arrays[name], exact[name]) for name in wide)
    assert logits(model, jnp.array([[1, 2]])).dtype == jnp.float16
    ef.save_pretrained(model, tmp_path / "small")
    said = json.loads((tmp_path / "small/config.json").read_text())
    assert said.get("dtype", said.get("torch_dtype")) == "float16"


@pytest.fixture
def experts(tmp_path):
    """A mixture of three experts, and where its checkpoint lies."""
    mixture = ef.Experts.Config(3, 2, ef.GatedMLP.Config(hidden=5), ef.TopKThenSoftmax())
    whole = filled(MODEL.config.edit("blocks.*", feed_forward=mixture))
    ef.save_pretrained(whole, tmp_path / "experts", model_type="mixtral")
    return whole, tmp_path / "experts"


def test_experts_that_are_stored_in_several_types_are_not_rounded_to_the_first_ones(experts):
    whole, folder = experts
    name = "model.layers.0.block_sparse_moe.experts.0.w1.weight"
    rounded = load_file(folder / "model.safetensors")[name].astype(ml_dtypes.bfloat16)
    edit_tensors(folder, **{name.replace(".", "__"): rounded})
    gate = ef.from_pretrained(folder).blocks[0].feed_forward.experts.gate.weight
    assert np.array_equal(gate[0], rounded.astype(np.float32).T)
    assert np.array_equal(gate[1:], whole.blocks[0].feed_forward.experts.gate.weight[1:])


def test_numbers_with_and_without_fractions_are_not_made_one_array(experts):
    folder = experts[1]
    name = "model.layers.0.block_sparse_moe.experts.1.w1.weight"
    whole = load_file(folder / "model.safetensors")[name].astype(np.int8)
    edit_tensors(folder, **{name.replace(".", "__"): whole})
    message = (
        r"types: model\.layers\.0.*\.0\.w1\.weight, .* make one array and are float32 and int8"
    )
    with pytest.raises(ef.CheckpointError, match=message):
        ef.from_pretrained(folder)


def test_arrays_go_where_a_sharding_says_as_they_are_read(tiny):
    mesh = Mesh(np.array(jax.devices()[:2]), ("model",))

    def where(path, shape):
        split = path.endswith("up.weight")
        return NamedSharding(mesh, PartitionSpec(None, "model") if split else PartitionSpec())

    model = ef.from_pretrained(tiny, sharding=where)
    up = model.blocks[0].feed_forward.up.weight
    assert [shard.data.shape for shard in up.addressable_shards] == [(12, 7)] * 2
    assert len(model.norm.weight.sharding.device_set) == 2
    assert equal(model, MODEL)
    everywhere = NamedSharding(mesh, PartitionSpec())
    whole = ef.from_pretrained(tiny, sharding=everywhere)
    assert whole.norm.weight.sharding == everywhere


def test_loading_takes_hardly_more_memory_than_the_weights(tmp_path):
    config = ef.families.llama(vocab=6000, dim=96, layers=12, heads=4, hidden=384)
    ef.save_pretrained(filled(config), tmp_path / "wide")
    size = (tmp_path / "wide/model.safetensors").stat().st_size
    checkpoint = Checkpoint(tmp_path / "wide")
    tracemalloc.start()  # counts NumPy's arrays, not JAX's: what is held beside the model
    model = checkpoint.model(dtype="float32")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ef.count(model) * 4 == pytest.approx(size, rel=0.01)
    assert peak < 1.2 * size


def test_a_missing_directory_says_how_ids_of_the_hub_are_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ef.CheckpointError, match=r"eqxformer\[hub\]"):
        ef.from_pretrained("nobody/nothing")
    with pytest.raises(ef.CheckpointError, match="There is no directory"):
        ef.from_pretrained(tmp_path / "nothing")
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(ef.CheckpointError, match="is a file"):
        ef.from_pretrained(file)


def test_a_model_in_our_own_format_says_how_to_load_it(tmp_path):
    ef.save(MODEL, tmp_path)
    with pytest.raises(ef.CheckpointError, match="`load`"):
        ef.from_pretrained(tmp_path)


def test_a_classifier_loads_where_its_class_says_so(tiny, tmp_path):
    config = ef.EncoderWithHead.Config(
        ef.Encoder.Config(
            vocab=11,
            dim=12,
            blocks=MODEL.config.blocks,
            norm=MODEL.config.norm,
            direction="causal",
            pooling=ef.Pooling.Config(take="last"),
        ),
        ef.SequenceHead.Config(
            3, ef.Pooling.Config(take="last"), linear=ef.Linear.Config(bias=False)
        ),
    )
    model = filled(config)
    ef.save_pretrained(model, tmp_path / "classifier", model_type="llama")
    values = json.loads((tmp_path / "classifier/config.json").read_text())
    assert values["architectures"] == ["LlamaForSequenceClassification"]
    assert equal(ef.from_pretrained(tmp_path / "classifier"), model)


def test_the_origin_is_not_printed_and_survives_training(tiny):
    model = ef.from_pretrained(tiny)
    assert "origin" not in str(model.config)
    trained = eqx.tree_at(lambda m: m.norm.weight, model, replace_fn=lambda w: w + 1.0)
    assert trained.config.origin.directory == str(tiny.resolve())
