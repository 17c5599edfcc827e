"""Adapters on disk: what is written is read again, and what does not fit is refused by name."""

import equinox as eqx
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import eqxformer as ef
from tests.adapters.made import KINDS, adapted, learned
from tests.adapters.on_disk import (
    GPT2,
    LLAMA,
    PREFIX,
    PROJECTIONS,
    Q_PROJ,
    account,
    edit,
    edit_tensors,
    load,
    made,
    settings,
)
from tests.helpers.compare import same_bits
from tests.helpers.hostile import refused
from tests.helpers.models import filled
from tests.helpers.safetensors import write_raw


@pytest.fixture
def folder(tmp_path):
    """The adapters of the small Llama on disk."""
    ef.save_adapters(made(), tmp_path / "adapters", model_type="llama")
    return tmp_path / "adapters"


@pytest.mark.parametrize("kind", ["rsLoRA", "DoRA"])
def test_adapters_are_read_as_they_were_written(kind, tmp_path):
    ef.save_adapters(made(kind), tmp_path / "adapters", model_type="llama")
    assert same_bits(load(tmp_path / "adapters"), made(kind))


def test_names_and_settings_are_those_of_peft(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    assert tensors[f"{PREFIX}{Q_PROJ}.lora_A.weight"].shape == (2, 8)
    assert tensors[f"{PREFIX}{Q_PROJ}.lora_B.weight"].shape == (8, 2)
    assert len(tensors) == 2 * 4 * 2
    found = settings(folder)
    assert (found["r"], found["lora_alpha"], found["peft_type"]) == (2, 3, "LORA")
    assert Q_PROJ in found["target_modules"]
    assert found["task_type"] == "CAUSAL_LM"


def test_ranks_and_scales_that_differ_are_patterns(tmp_path):
    model = ef.add_lora(
        made(to="**.query"), ef.LoRA(rank=3), to="blocks.1.attention.out", key=jax.random.key(0)
    )
    model = ef.add_lora(
        model,
        ef.LoRA(rank=4, scale="alpha/sqrt(rank)"),
        to="blocks.0.feed_forward.up",
        key=jax.random.key(0),
    )
    model = learned(model)
    ef.save_adapters(model, tmp_path / "adapters", model_type="llama")
    found = settings(tmp_path / "adapters")
    assert found["rank_pattern"] == {
        "model.layers.1.self_attn.o_proj": 3,
        "model.layers.0.mlp.up_proj": 4,
    }
    assert found["alpha_pattern"] == {
        "model.layers.1.self_attn.o_proj": 16,
        "model.layers.0.mlp.up_proj": 32,
    }
    again = load(tmp_path / "adapters")
    for path, adapter in ef.adapters_of(model).items():
        np.testing.assert_allclose(ef.adapters_of(again)[path].delta(), adapter.delta(), rtol=1e-6)


def test_adapters_saved_into_a_checkpoint_leave_its_weights_there(tmp_path):
    ef.save_pretrained(LLAMA, tmp_path, model_type="llama", shard_size=1500)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    ef.save_adapters(made(), tmp_path, model_type="llama", overwrite=True)
    assert before.items() <= {file.name: file.read_bytes() for file in tmp_path.iterdir()}.items()
    again = load(tmp_path, ef.from_pretrained(tmp_path))
    assert same_bits(ef.adapters_of(again), ef.adapters_of(made()))


@pytest.mark.parametrize("kind", ["LoRA", "DoRA"])
def test_adapters_on_parts_of_a_fused_projection_are_one_of_all_their_ranks(kind, tmp_path):
    model = adapted(GPT2, KINDS[kind], ("**.query", "**.value", "**.up"))
    ef.save_adapters(model, tmp_path / "adapters", model_type="gpt2")
    tensors = load_file(tmp_path / "adapters" / "adapter_model.safetensors")
    fused = f"{PREFIX}transformer.h.0.attn.c_attn"
    assert tensors[f"{fused}.lora_A.weight"].shape == (4, 8)
    assert tensors[f"{fused}.lora_B.weight"].shape == (24, 4)
    assert not tensors[f"{fused}.lora_B.weight"][8:16].any()  # the keys, which have no adapter
    again = ef.load_adapters(GPT2, tmp_path / "adapters", model_type="gpt2")
    found, written = ef.named_arrays(ef.merge(again)), ef.named_arrays(ef.merge(model))
    for path, array in written.items():
        np.testing.assert_allclose(found[path], array, rtol=0, atol=1e-6, err_msg=path)
    ranks = {path: a.config.rank for path, a in ef.adapters_of(again).items()}
    assert ranks["blocks.0.attention.query"] == 2


def test_one_adapter_on_a_fused_projection_is_written_again_as_the_same_bytes(tmp_path):
    model = adapted(GPT2, KINDS["LoRA"], "**.attention.query")
    ef.save_adapters(model, tmp_path / "one", model_type="gpt2")
    file = tmp_path / "one" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = f"{PREFIX}transformer.h.0.attn.c_attn.lora_B.weight"
    tensors[name] = np.random.default_rng(0).standard_normal(tensors[name].shape, np.float32)
    save_file(tensors, file)
    again = ef.load_adapters(GPT2, tmp_path / "one", model_type="gpt2")
    assert len(ef.adapters_of(again)) == 3
    ef.save_adapters(again, tmp_path / "two", model_type="gpt2")
    found = load_file(tmp_path / "two" / "adapter_model.safetensors")
    assert same_bits(found, tensors)


def test_parts_that_were_trained_whole_are_written_and_read_beside(tmp_path):
    head = eqx.tree_at(lambda m: m.head.linear.weight, LLAMA, LLAMA.head.linear.weight + 1.0)
    model = ef.with_adapters(head, ef.adapters_of(made()))
    ef.save_adapters(model, tmp_path / "adapters", model_type="llama", whole=("head",))
    assert settings(tmp_path / "adapters")["modules_to_save"] == ["lm_head"]
    assert same_bits(load(tmp_path / "adapters"), model)
    with pytest.raises(
        ValueError, match="`blocks.0.attention.query.weight` cannot be written whole"
    ):
        ef.save_adapters(model, tmp_path / "no", model_type="llama", whole=("**.attention",))


def test_adapters_load_onto_int8_weights_and_into_stacked_layers(folder):
    base = ef.quantise(ef.rebuild(LLAMA, LLAMA.config.edit(layout=ef.Scanned())), to="blocks")
    found = load(folder, base)
    assert same_bits(ef.adapters_of(found), ef.adapters_of(made()))
    assert same_bits(ef.without_adapters(found), base)


def test_what_peft_has_no_words_for_is_refused(tmp_path):
    options = {"model_type": "llama"}
    with pytest.raises(ValueError, match="has no adapters"):
        ef.save_adapters(LLAMA, tmp_path / "no", **options)
    both = ef.add_lora(made(), ef.DoRA(), to="**.up", key=jax.random.key(0))
    with pytest.raises(ValueError, match="one kind of adapter per model"):
        ef.save_adapters(both, tmp_path / "no", **options)
    odd = filled(LLAMA.config.edit("blocks.*.attention", softcap=3.0))
    with pytest.raises(ef.CheckpointError, match="softcap"):
        ef.save_adapters(adapted(odd, to="**.query"), tmp_path / "no", **options)
    with pytest.raises(ef.CheckpointError, match="MLP is no whole model"):
        ef.save_adapters(adapted(ef.MLP(3, hidden=4, key=jax.random.key(0))), tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_adapters_of_experts_are_refused(tmp_path):
    routing = ef.TopKThenSoftmax()
    feed_forward = ef.Experts.Config(2, 1, ef.GatedMLP.Config(hidden=5), routing)
    model = filled(LLAMA.config.edit("blocks.*", feed_forward=feed_forward))
    with pytest.raises(NotImplementedError, match=r"experts.gate` is no linear map by itself"):
        ef.save_adapters(
            adapted(model, to="**.experts.gate"), tmp_path / "no", model_type="mixtral"
        )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"peft_type": "IA3"}, "`peft_type` must be one of LORA; got 'IA3'"),
        ({"surprise": 1}, "surprise = 1"),
        ({"init_lora_weights": "pissa"}, "`init_lora_weights` must be True"),
        ({"bias": "all"}, "`bias` must be 'none'"),
        ({"alora_invocation_tokens": [1]}, "`alora_invocation_tokens` must be None"),
        ({"layer_replication": [[0, 2]]}, "`layer_replication` must be None"),
        ({"lora_bias": True}, "`lora_bias` must be False"),
        ({"r": 0}, "`r` must be a whole number from 1"),
        (
            {"r": 3},
            "shape: model.layers.0.self_attn.k_proj.lora_A.weight is (2, 8), expected (3, 8)",
        ),
        ({"lora_alpha": 0}, "`lora_alpha` must be above 0"),
        ({"lora_alpha": True}, "`lora_alpha` must be a finite number"),
        ({"use_dora": True}, "missing: model.layers.0.self_attn.k_proj.lora_magnitude_vector"),
        ({"rank_pattern": {".*": 2}}, "not by regular expressions; got '.*'"),
        ({"rank_pattern": {"q_proj": 4}}, "expected (4, 8)"),
        ({"alpha_pattern": {"q_proj": "x"}}, "`alpha_pattern` must be above 0 and finite; got 'x'"),
        ({"target_modules": ["q_proj"]}, "no target means model.layers.0.self_attn.k_proj"),
        ({"target_modules": ["c_attn"]}, "no tensors for the target 'c_attn'"),
        ({"target_modules": 3}, "`target_modules` must be a list of names"),
        ({"modules_to_save": ["lm_head"]}, "missing: lm_head.weight"),
    ],
)
def test_settings_that_would_change_what_is_computed_are_refused_by_name(folder, changed, message):
    edit(folder, **changed)
    refused(lambda: account(folder), message)


@pytest.mark.parametrize(
    "changed",
    [
        {"lora_dropout": 0.5, "inference_mode": False, "peft_version": "0.9", "task_type": None},
        {"target_modules": ".*attn.*", "layers_to_transform": [0, 1], "megatron_core": "x"},
        {"exclude_modules": ["up_proj"], "target_modules": [*PROJECTIONS, "up_proj"]},
        {"exclude_modules": ".*up_proj", "ensure_weight_tying": True},
        {"target_modules": [*PROJECTIONS, "c_attn"]},
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        {"fan_in_fan_out": True, "revision": "main", "init_lora_weights": "gaussian"},
        {"alpha_pattern": {r"^model\.layers\.9\.x": 2, "9.k_proj": 3}, "loftq_config": {}},
    ],
)
def test_settings_without_effect_are_read_past(folder, changed):
    edit(folder, **changed)
    assert same_bits(account(folder), ef.adapters_of(made()))


def test_settings_that_are_absent_have_pefts_defaults(folder):
    edit(folder, "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "bias")
    found = account(folder)["blocks.0.attention.query"]
    assert (found.config.rank, found.config.alpha, found.config.factor) == (2, 8.0, 4.0)


@pytest.mark.parametrize(
    ("removed", "changed", "message"),
    [
        ([f"{Q_PROJ}.lora_A.weight"], {}, f"missing: {Q_PROJ}.lora_A.weight (2, 8)"),
        (
            [f"{Q_PROJ}.lora_A.weight", f"{Q_PROJ}.lora_B.weight"],
            {},
            f"no tensors for {Q_PROJ}, which a target means",
        ),
        ([], {f"{Q_PROJ}.lora_C.weight": 2}, f"unexpected: {PREFIX}{Q_PROJ}.lora_C.weight"),
        (
            [],
            {"model.layers.9.mlp.up_proj.lora_A.weight": 2},
            "unexpected: base_model.model.model.l",
        ),
        ([], {"lm_head.weight": 2}, "unexpected: base_model.model.lm_head.weight"),
        ([], {f"{Q_PROJ}.lora_magnitude_vector": 1}, "unexpected: "),
        ([], {f"{Q_PROJ}.lora_B.weight": 2}, f"shape: {Q_PROJ}.lora_B.weight is (3, 3)"),
    ],
)
def test_every_tensor_is_accounted_for(folder, removed, changed, message):
    shapes = {name: (3,) * ndim for name, ndim in changed.items()}
    edit_tensors(folder, *removed, **{n: np.ones(s, np.float32) for n, s in shapes.items()})
    refused(lambda: account(folder), message)


def test_files_that_are_absent_torn_or_pickles_are_named(folder):
    path = folder / "adapter_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    refused(lambda: account(folder), "adapter_model.safetensors is not a whole safetensors file")
    write_raw(path, "{}", length=2**40)
    refused(lambda: account(folder), "adapter_model.safetensors is not a whole safetensors file")
    path.rename(folder / "adapter_model.bin")
    refused(lambda: account(folder), "No adapter_model.safetensors", "is a pickle")
    (folder / "adapter_config.json").write_text('{"r": 2, "r": 3}')
    refused(lambda: account(folder), "adapter_config.json")
    (folder / "adapter_config.json").unlink()
    refused(lambda: account(folder), "adapter_config.json")


def test_thousands_of_patterns_and_targets_are_looked_through_in_no_time(folder):
    many = {f"x{i}.q_proj": 2 for i in range(8_000)}
    edit(folder, rank_pattern=many, target_modules=list(many))
    refused(lambda: account(folder), "no tensors for the target")
