"""Decoders outside Llama's family as files have them: old words and names, defaults, refusals."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import eqxformer as ef
from eqxformer.checkpoints import CheckpointError, Settings
from eqxformer.checkpoints.rebuild import expected
from eqxformer.checkpoints.rules import bind
from eqxformer.pretrained.checkpoint import read_tree
from eqxformer.pretrained.express import expression

GOLDEN = Path(__file__).parent.parent / "golden"
USUAL = {"vocab_size": 11, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED = {**USUAL, "intermediate_size": 16, "num_key_value_heads": 2}
SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 11, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 8},
    "gptj": {"vocab_size": 11, "n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
    "gpt_neo": {
        "vocab_size": 11,
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
    },
    "gpt_neox": {**USUAL, "intermediate_size": 16},
    "opt": {**USUAL, "ffn_dim": 16},
    "bloom": {"vocab_size": 11, "hidden_size": 64, "n_layer": 2, "n_head": 4},
    "phi": {**USUAL, "intermediate_size": 16},
    "falcon": USUAL,
    "gpt_oss": {**GATED, "num_local_experts": 4},
    "stablelm": GATED,
    "cohere": GATED,
}


def tree(kind: str, class_name: str | None = None, **changes: Any) -> Any:
    """The config tree of tiny settings, every key of which is accounted for."""
    known = ef.architecture(kind)
    task = known.tasks[class_name or next(iter(known.tasks))]
    return read_tree(known, task.config, Settings({**SIZES[kind], **changes}))


def each(config: Any, field: str) -> list[Any]:
    """A field of the attention of every block."""
    return [getattr(block.attention, field) for block in config.blocks]


# What files of the Hub hold beside the weights, named as those of the base model are there.
BUFFERS = {
    "gpt2": ("transformer.", "h.0.attn.bias", "h.1.attn.masked_bias"),
    "gptj": ("transformer.", "h.0.attn.bias", "h.1.attn.masked_bias"),
    "gpt_neo": ("transformer.", "h.0.attn.attention.bias", "h.1.attn.attention.masked_bias"),
    "gpt_neox": (
        *("gpt_neox.", "layers.0.attention.bias", "layers.1.attention.masked_bias"),
        "layers.0.attention.rotary_emb.inv_freq",
    ),
    "opt": ("model.",),
    "bloom": ("transformer.",),
    "falcon": ("transformer.",),
    "phi": ("model.", "layers.0.self_attn.rotary_emb.inv_freq"),
}
TABLES = {
    "gpt2": "transformer.wte.weight",
    "gpt_neo": "transformer.wte.weight",
    "opt": "model.decoder.embed_tokens.weight",
    "bloom": "transformer.word_embeddings.weight",
    "falcon": "transformer.word_embeddings.weight",
    "cohere": "model.embed_tokens.weight",
}


def changed(name: str, folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """The model of a golden checkpoint whose tensors have been changed."""
    shutil.copyfile(GOLDEN / name / "config.json", folder / "config.json")
    save_file(change(load_file(GOLDEN / name / "model.safetensors")), folder / "model.safetensors")
    return ef.from_pretrained(folder)


def assert_same_arrays(model: Any, name: str) -> None:
    arrays = ef.named_arrays(ef.from_pretrained(GOLDEN / name))
    found = ef.named_arrays(model)
    assert found.keys() == arrays.keys()
    for path, array in arrays.items():
        np.testing.assert_array_equal(found[path], array, path)


@pytest.mark.parametrize("name", BUFFERS)
def test_files_without_the_prefix_and_with_old_buffers_load(name, tmp_path):
    prefix, *buffers = BUFFERS[name]

    def older(tensors):
        assert any(key.startswith(prefix) for key in tensors)
        short = {key.removeprefix(prefix): array for key, array in tensors.items()}
        return {**short, **{key: np.ones((1, 1, 4, 4), np.uint8) for key in buffers}}

    assert_same_arrays(changed(name, tmp_path, older), name)


@pytest.mark.parametrize("name", TABLES)
def test_a_tied_head_may_be_in_the_file_and_one_that_differs_is_not_tied(name, tmp_path):
    def twice(tensors):
        return {**tensors, "lm_head.weight": tensors[TABLES[name]]}

    def untied(tensors):
        return {**tensors, "lm_head.weight": -tensors[TABLES[name]]}

    assert_same_arrays(changed(name, tmp_path, twice), name)
    head = changed(name, tmp_path, untied).head
    table = load_file(GOLDEN / name / "model.safetensors")[TABLES[name]]
    np.testing.assert_array_equal(head.linear.weight, -table.T)


@pytest.mark.parametrize(
    ("kind", "own", "other"),
    [
        ("gpt2", "n_embd", "hidden_size"),
        ("gpt2", "n_positions", "max_position_embeddings"),
        ("gptj", "n_layer", "num_hidden_layers"),
        ("gpt_neo", "num_heads", "num_attention_heads"),
        ("bloom", "hidden_size", "n_embed"),
        ("bloom", "n_head", "num_attention_heads"),
        ("falcon", "hidden_size", "n_embed"),
    ],
)
def test_a_size_may_have_either_of_its_names_but_not_two_values(kind, own, other):
    size = SIZES[kind][own]
    settings = {key: value for key, value in SIZES[kind].items() if key != own}
    known = ef.architecture(kind)
    task = next(iter(known.tasks.values()))
    assert read_tree(known, task.config, Settings({**settings, other: size})) == tree(kind)
    assert tree(kind, **{other: size}) == tree(kind)
    with pytest.raises(CheckpointError, match=f"`{own}` must be {2 * size}, as `{other}` says"):
        tree(kind, **{other: 2 * size})


def test_partly_rotated_heads_have_the_share_of_their_family():
    shares = {"gpt_neox": 0.25, "phi": 0.5, "stablelm": 0.25, "falcon": 1.0, "cohere": 1.0}
    for kind, share in shares.items():
        assert tree(kind).blocks[0].attention.rotary.fraction == share
    assert tree("gpt_neox", rotary_pct=1.0, rotary_emb_base=50).blocks[0].attention.rotary == (
        ef.Rotary(base=50.0)
    )
    for kind in ("phi", "stablelm"):
        whole = tree(kind, partial_rotary_factor=1.0)
        assert whole.blocks[0].attention.rotary == ef.Rotary()
        found = expression(whole, expected(ef.shapes(whole)), kind).settings
        assert found["rope_parameters"]["partial_rotary_factor"] == 1.0


def test_gptj_rotates_as_many_numbers_as_it_says_whatever_the_size_of_a_head():
    for size in (44, 46, 49, 256):  # 30 / 44 * 44 is less than 30, in float64
        words: dict[str, Any] = {"n_embd": 4 * size, "rotary_dim": size // 3 * 2}
        config = tree("gptj", **words)
        assert config.blocks[0].attention.rotary.width(size) == words["rotary_dim"]
        found = expression(config, expected(ef.shapes(config)), "gptj").settings
        assert found["rotary_dim"] == words["rotary_dim"]


def test_gpt2_scores_are_scaled_by_the_head_the_layer_both_or_neither():
    by_layer: dict[str, Any] = {"scale_attn_by_inverse_layer_idx": True}
    unscaled: dict[str, Any] = {"scale_attn_weights": False}
    assert each(tree("gpt2"), "scale") == [None, None]
    assert each(tree("gpt2", **by_layer), "scale") == [0.25, 0.125]
    assert each(tree("gpt2", **unscaled), "scale") == [1.0, 1.0]
    assert each(tree("gpt2", **unscaled, **by_layer), "scale") == [1.0, 0.5]


def test_gpt_neo_says_its_windows_in_groups_or_one_by_one():
    assert each(tree("gpt_neo"), "window") == [None, 256]
    groups = {"attention_types": [[["local"], 1], [["global"], 1]], "window_size": 7}
    assert each(tree("gpt_neo", **groups), "window") == [7, None]
    assert each(tree("gpt_neo", attention_layers=["local"] * 2), "window") == [256, 256]


@pytest.mark.parametrize(
    "types",
    [
        [[["local"], 10**15]],
        [[[], 10**30]],
        [[["local"], -2]],
        [[["local"], "2"]],
        [["local", 2]],
        [2],
        [[[["local"]], 2]],
    ],
)
def test_gpt_neo_groups_of_layers_that_are_none_are_an_error_at_once(types):
    with pytest.raises(CheckpointError, match="`attention_types` must be|describes no model"):
        tree("gpt_neo", attention_types=types)


def test_gpt_oss_has_yarn_and_windows_of_128_where_nothing_else_is_said():
    config = tree("gpt_oss")
    yarn = ef.YaRN(factor=32.0, original_length=4096, rounded=False)
    assert each(config, "rotary") == [ef.Rotary(base=150_000.0, scaling=yarn)] * 2
    assert each(config, "window") == [128, None]
    assert each(config, "head_dim") == [64, 64]
    assert each(tree("gpt_oss", rope_scaling=None), "rotary") == each(config, "rotary")
    plain = tree("gpt_oss", rope_scaling={"rope_type": "default"})
    assert each(plain, "rotary") == [ef.Rotary(base=150_000.0)] * 2
    expert = config.blocks[0].feed_forward.expert
    assert (expert.alpha, expert.limit) == (1.702, 7.0)


def test_falcon_has_one_key_head_or_as_many_as_its_kind():
    new = {"new_decoder_architecture": True, "num_kv_heads": 2}
    assert each(tree("falcon"), "kv_heads") == [1, 1]
    assert each(tree("falcon", num_kv_heads=4), "kv_heads") == [1, 1]  # what version 5 writes
    assert each(tree("falcon", multi_query=False), "kv_heads") == [4, 4]
    assert each(tree("falcon", **new), "kv_heads") == [2, 2]
    assert tree("falcon", **new).blocks[0].feed_forward_norm is not None
    assert tree("falcon", **new, num_ln_in_parallel_attn=1).blocks[0].feed_forward_norm is None
    assert isinstance(tree("falcon", parallel_attn=False).blocks[0], ef.Block.Config)


def test_falcons_alibi_is_scaled_with_the_scores():
    config = tree("falcon", alibi=True, rope_theta=10_000.0, rope_scaling=None)
    assert config.bias == ef.ALiBi.Config(scale=0.25, rounding="bfloat16")
    assert each(config, "rotary") == [None, None]


def test_opt_has_norms_behind_and_none_at_the_end_where_it_says_so():
    before, after = tree("opt"), tree("opt", do_layer_norm_before=False)
    assert (before.norm, after.norm) == (ef.LayerNorm.Config(), None)
    assert after.blocks[0].attention_residual == ef.post_norm(dropout=0.1)
    removed = tree("opt", _remove_final_layer_norm=True)
    assert removed == before.edit(norm=None)


def test_a_narrow_table_of_opt_belongs_to_the_language_model_alone():
    narrow = tree("opt", word_embed_proj_dim=20)
    assert ef.shapes(narrow).embedding.tokens.weight.shape == (11, 20)
    with pytest.raises(CheckpointError, match="only with the head"):
        tree("opt", "OPTModel", word_embed_proj_dim=20)
    with pytest.raises(CheckpointError, match="`word_embed_proj_dim` must be 64"):
        tree("opt", word_embed_proj_dim=20, tie_word_embeddings=False)


@pytest.mark.parametrize(
    ("kind", "name", "table"),
    [
        ("gpt2", "GPT2", "transformer.wte.weight"),
        ("gpt_neox", "GPTNeoX", "gpt_neox.embed_in.weight"),
        ("llama", "Llama", "transformer.embed_tokens.weight"),
        ("mistral", "Mistral", "model.embed_tokens.weight"),
        ("opt", "OPT", "model.decoder.embed_tokens.weight"),
    ],
)
def test_a_head_for_answers_stands_on_a_body_with_the_names_it_has_there(kind, name, table):
    sizes = SIZES.get(kind, GATED)
    task = ef.architecture(kind).tasks[f"{name}ForQuestionAnswering"]
    config = task.config(Settings(sizes))
    assert config.head == ef.LabelHead.Config(labels=2)
    bindings = bind(task.rules(config), expected(ef.shapes(config)))
    names = {theirs for binding in bindings for theirs in binding.theirs}
    assert {table, "qa_outputs.weight", "qa_outputs.bias"} <= names
    assert all(each.startswith(("qa_outputs.", task.prefix)) for each in names)


def test_classes_that_there_are_not_are_not_offered():
    for kind, lacking in {
        "opt": {"OPTForTokenClassification"},
        "gptj": {"GPTJForTokenClassification"},
        "cohere": {"CohereForSequenceClassification", "CohereForTokenClassification"},
    }.items():
        assert not lacking & set(ef.architecture(kind).tasks)
    with pytest.raises(CheckpointError, match="`architectures` must name one of OPTForCausalLM"):
        ef.architecture("opt").task(Settings({"architectures": ["OPTForTokenClassification"]}))


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        ("gpt2", {"add_cross_attention": True}, "`add_cross_attention` must be False"),
        ("gptj", {"rotary": False}, "`rotary` must be True"),
        ("gptj", {"rotary_dim": 18}, "`rotary_dim` must be at most 16"),
        ("opt", {"scale_embeddings": True}, "`scale_embeddings` must be False"),
        (
            "bloom",
            {"apply_residual_connection_post_layernorm": True},
            "`apply_residual_connection_post_layernorm` must be False",
        ),
        ("bloom", {"n_inner": 50}, "`n_inner` must be 256"),
        ("falcon", {"num_kv_heads": 2}, "`num_kv_heads` must be 1 or 4"),
        ("falcon", {"num_ln_in_parallel_attn": 2}, "`num_ln_in_parallel_attn` must be 1"),
        (
            "falcon",
            {"new_decoder_architecture": True, "parallel_attn": False},
            "`parallel_attn` must be True",
        ),
        ("gpt_oss", {"layer_types": ["full_attention"]}, "2 times full_attention or sliding"),
        ("gpt_oss", {"quantization_config": {"quant_method": "mxfp4"}}, "quantization_config"),
        (
            "stablelm",
            {"use_parallel_residual": True, "hidden_dropout": 0.1},
            "`hidden_dropout` must be 0.0",
        ),
        ("cohere", {"mlp_bias": True}, "`mlp_bias` must be False"),
    ],
)
def test_what_would_compute_something_else_is_an_error(kind, wrong, message):
    with pytest.raises(CheckpointError, match=message):
        tree(kind, **wrong)


@pytest.mark.parametrize(
    ("kind", "path", "change"),
    [
        ("gpt2", "blocks.0.attention", {"scale": 0.3}),
        ("gpt2", "blocks.*.feed_forward.up", {"bias": False}),
        ("gptj", "blocks.*.attention", {"rotary": ef.Rotary(base=500.0, layout="interleaved")}),
        ("gpt_neo", "blocks.*.attention", {"scale": None}),
        ("gpt_neox", "blocks.*", {"feed_forward_norm": None}),
        ("opt", "embedding", {"positions": ef.Sinusoids.Config()}),
        ("opt", "blocks.1.attention_residual", {"pre_norm": None}),
        ("bloom", "", {"bias": ef.ALiBi.Config(scale=2.0)}),
        ("bloom", "blocks.*.feed_forward", {"hidden": 16}),
        ("phi", "head", {"linear": ef.Linear.Config(bias=False)}),
        ("falcon", "", {"bias": ef.ALiBi.Config()}),
        ("gpt_oss", "blocks.1.attention", {"sinks": None}),
        ("gpt_oss", "blocks.*.feed_forward", {"routing": ef.SoftmaxThenTopK()}),
        ("stablelm", "blocks.*.attention", {"qk_norm": ef.LayerNorm.Config()}),
        ("cohere", "blocks.*", {"dropout": 0.0, "feed_forward_norm": ef.LayerNorm.Config()}),
    ],
)
def test_a_model_that_the_reference_would_compute_otherwise_is_not_saved_as_one(kind, path, change):
    config = tree(kind)
    assert expression(config, expected(ef.shapes(config)), kind).architecture.model_type == kind
    other = config.edit(path, **change)
    with pytest.raises(CheckpointError, match=f"cannot be expressed as {kind}"):
        expression(other, expected(ef.shapes(other)), kind)
