"""Llama's family as files have it: what absent and null keys mean, old words, and honest saving."""

import pytest

import eqxformer as ef
from eqxformer.checkpoints import CheckpointError, Settings
from eqxformer.checkpoints.rebuild import expected
from eqxformer.pretrained.checkpoint import read_tree
from eqxformer.pretrained.express import expression

SIZES = {
    "vocab_size": 11,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def tree(model_type, class_name=None, **changes):
    """The config tree of tiny settings, every key of which is accounted for."""
    known = ef.architecture(model_type)
    task = known.tasks[class_name or next(iter(known.tasks))]
    return read_tree(known, task.config, Settings({**SIZES, **changes}))


def each(config, field):
    """A field of the attention of every block."""
    return [getattr(block.attention, field) for block in config.blocks]


def test_mistral_has_a_window_unless_its_settings_say_null():
    assert each(tree("mistral"), "window") == [4096] * 4
    assert each(tree("mistral", sliding_window=None), "window") == [None] * 4
    assert each(tree("mixtral", num_local_experts=2), "window") == [None] * 4


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("mistral", {"max_sequence_length": 4096}),
        ("qwen2", {"dual_chunk_attention_config": {"chunk_size": 262144, "local_size": 8192}}),
        ("qwen3", {"dual_chunk_attention_config": {"chunk_size": 262144, "local_size": 8192}}),
        ("llama", {"name_or_path": "someone/llama", "model_name": "llama", "_name_or_path": "."}),
        ("llama", {"use_flash_attention_2": True, "_flash_attn_2_enabled": True}),
        ("llama", {"attn_implementation": "sdpa", "xla_device": True}),
        ("llama", {"custom_pipelines": {"text": {"impl": "text.Pipeline"}}}),
        ("llama", {"nobody_knows_this": None}),
        ("llama", {"rope_scaling": {"type": "default", "nobody_knows_this": None}}),
    ],
)
def test_keys_that_make_no_difference_are_known(kind, words):
    assert tree(kind, **words) == tree(kind)


@pytest.mark.parametrize("words", [{"_nobody_knows_this": 1}, {"nobody_knows_this": False}])
def test_keys_that_nobody_knows_are_still_refused(words):
    with pytest.raises(CheckpointError, match="nobody_knows_this"):
        tree("llama", **words)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("gelu_python", "gelu"), ("gelu_python_tanh", "gelu_tanh"), ("gelu_accurate", "gelu_tanh")],
)
def test_other_ways_to_compute_a_gelu_are_that_gelu(theirs, ours):
    assert tree("llama", hidden_act=theirs).blocks[0].feed_forward.activation == ours


def test_a_gelu_that_is_cut_off_is_another_function():
    with pytest.raises(CheckpointError, match="`hidden_act` must be one of"):
        tree("llama", hidden_act="gelu_10")


def test_qwen_has_windows_in_later_layers_once_they_are_used():
    words = {"sliding_window": 7, "max_window_layers": 3}
    for kind in ("qwen2", "qwen3"):
        assert each(tree(kind, **words), "window") == [None] * 4
        used = tree(kind, **words, use_sliding_window=True)
        assert each(used, "window") == [None, None, None, 7]
        types = ["sliding_attention", "full_attention"] * 2
        said = tree(kind, **words, use_sliding_window=True, layer_types=types)
        assert each(said, "window") == [7, None, 7, None]


def test_gemma_bounds_are_there_unless_its_settings_say_null():
    config = tree("gemma2")
    assert (each(config, "softcap"), config.head.softcap) == ([50.0] * 4, 30.0)
    assert each(config, "window") == [4096, None] * 2
    config = tree("gemma2", attn_logit_softcapping=None, final_logit_softcapping=None)
    assert (each(config, "softcap"), config.head.softcap) == ([None] * 4, None)


def test_gelu_means_the_approximation_in_gemma_s_first_files():
    for named in ("gelu", "gelu_pytorch_tanh"):
        config = tree("gemma", hidden_act=named, hidden_activation=None)
        assert config.blocks[0].feed_forward.activation == "gelu_tanh"


def test_gemma_3_has_a_far_layer_after_every_five_near_ones_or_as_the_pattern_says():
    words = {"rope_theta": 1e5, "rope_local_base_freq": 100.0}
    scaled = tree("gemma3_text", **words, rope_scaling={"rope_type": "linear", "factor": 8.0})
    assert each(scaled, "rotary") == [ef.Rotary(base=100.0)] * 4
    config = tree("gemma3_text", **words, sliding_window_pattern=2, sliding_window=9)
    assert each(config, "window") == [9, None] * 2
    assert each(config, "rotary") == [ef.Rotary(base=100.0), ef.Rotary(base=1e5)] * 2
    usual = tree("gemma3_text", sliding_window_pattern=2)
    assert [rotary.base for rotary in each(usual, "rotary")] == [1e4, 1e6] * 2


def test_gemma_3_looks_ahead_where_it_is_an_encoder_that_says_so():
    words = {"use_bidirectional_attention": True, "sliding_window": 9, "sliding_window_pattern": 2}
    config = tree("gemma3_text", "Gemma3TextModel", **words)
    assert config.direction == "bidirectional"
    assert each(config, "window") == [(4, 4), None] * 2
    assert tree("gemma3_text", "Gemma3TextModel").direction == "causal"
    with pytest.raises(CheckpointError, match="`use_bidirectional_attention` must be False"):
        tree("gemma3_text", **words)


def test_smollm3_turns_no_heads_in_every_fourth_layer_or_as_the_list_says():
    turned = ef.Rotary(base=2e6)
    assert each(tree("smollm3"), "rotary") == [turned, turned, turned, None]
    listed = tree("smollm3", no_rope_layers=[0, 1, 1, 1, 0])
    assert each(listed, "rotary") == [None, turned, turned, turned]
    words = {"use_sliding_window": True, "sliding_window": 5}
    assert each(tree("smollm3", **words), "window") == [None, None, None, 5]


def test_heads_are_tied_by_default_where_they_are_in_the_reference():
    tied = {"gemma", "gemma2", "gemma3_text", "smollm3", "starcoder2"}
    untied = {"llama", "mistral", "qwen2", "qwen3", "phi3", "olmo", "olmo2", "granite"}
    for kind in tied | untied:
        assert isinstance(tree(kind).head, ef.TiedHead.Config) == (kind in tied), kind


def test_qwen3_moe_is_dense_where_it_is_told_to_be():
    words = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    config = tree("qwen3_moe", **words, decoder_sparse_step=2, mlp_only_layers=[3])
    kinds = [type(block.feed_forward) for block in config.blocks]
    dense, mixed = ef.GatedMLP.Config, ef.Experts.Config
    assert kinds == [dense, mixed, dense, dense]
    assert tree("qwen3_moe", num_experts=0, norm_topk_prob=True) == tree("qwen3_moe", num_experts=0)


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        ("llama", {"rope_interleaved": True}, "`rope_interleaved` must be False"),
        ("llama", {"partial_rotary_factor": 0.5}, "`partial_rotary_factor` must be 1.0"),
        ("llama", {"sliding_window": 5}, "sliding_window = 5"),
        ("mistral", {"attention_bias": True}, "`attention_bias` must be False"),
        ("mixtral", {"router_jitter_noise": 0.1}, "`router_jitter_noise` must be 0.0"),
        ("qwen2", {"use_mrope": True}, "`use_mrope` must be False"),
        ("qwen3", {"layer_types": ["full_attention"]}, "4 times full_attention or sliding"),
        ("gemma", {"hidden_activation": "relu"}, "`hidden_activation` must be 'gelu_py"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "`attn_logit_softcapping` must be None"),
        ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "null or of the type longr"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "4 times 0 or 1"),
        ("starcoder2", {"norm_type": "rms_norm"}, "`norm_type` must be 'layer_norm'"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "`scoring_func` must be 'sigmoid'"),
    ],
)
def test_what_would_compute_something_else_is_an_error(kind, wrong, message):
    with pytest.raises(CheckpointError, match=message):
        tree(kind, **wrong)


@pytest.mark.parametrize(
    ("kind", "path", "change"),
    [
        ("llama", "blocks.1.attention", {"window": 5}),
        ("llama", "blocks.*.attention", {"rotary": ef.Rotary(fraction=0.5)}),
        ("llama", "blocks.*.attention", {"rotary": ef.Rotary(layout="interleaved")}),
        ("llama", "head", {"scale": 2.0}),
        ("mistral", "blocks.*.attention.query", {"bias": True}),
        ("mistral", "blocks.0.attention", {"window": None}),
        ("qwen2", "blocks.*.attention.out", {"bias": True}),
        ("qwen3", "blocks.*.attention", {"qk_norm_over": "each_head"}),
        ("gemma", "embedding", {"scale": 1.0}),
        ("gemma2", "blocks.*.attention", {"scale": 0.3}),
        ("gemma3_text", "blocks.*.attention", {"softcap": 5.0}),
        ("phi3", "blocks.*.attention", {"rotary": ef.Rotary(scaling=ef.LinearScaling(2.0))}),
        ("olmo2", "blocks.*.attention_residual", {"pre_norm": ef.RMSNorm.Config()}),
        ("granite", "blocks.0.attention_residual", {"scale": 0.5}),
        ("smollm3", "blocks.0.attention", {"rotary": ef.Rotary(base=7.0)}),
        ("starcoder2", "blocks.*.feed_forward.up", {"bias": False}),
        ("mixtral", "blocks.*.feed_forward", {"routing": ef.SoftmaxThenTopK(False)}),
    ],
)
def test_a_model_that_the_reference_would_compute_otherwise_is_not_saved_as_one(kind, path, change):
    config = tree(kind, **({"num_local_experts": 2} if kind == "mixtral" else {}))
    assert expression(config, expected(ef.shapes(config)), kind).architecture.model_type == kind
    other = config.edit(path, **change)
    with pytest.raises(CheckpointError, match=f"cannot be expressed as {kind}"):
        expression(other, expected(ef.shapes(other)), kind)
