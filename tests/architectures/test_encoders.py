"""Encoders as files have them: old names, heads stored twice, poolers where none is asked for."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import eqxformer as ef
from eqxformer.checkpoints.errors import CheckpointError
from eqxformer.pretrained import Checkpoint
from tests.helpers.models import filled
from tests.pretrained.tiny import edit_settings, edit_tensors, rename_tensors

SIZES = {
    "vocab_size": 11,
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 14,
    "max_position_embeddings": 9,
}
TOKENS = jnp.array([[4, 5, 6, 7]])
BIAS, DECODER = "cls.predictions.bias", "cls.predictions.decoder"
# What the settings of the first BERTs say beside what is read today.
OLD_WORDS = {
    "directionality": "bidi",
    "pooler_fc_size": 768,
    "pooler_num_attention_heads": 12,
    "pooler_num_fc_layers": 3,
    "pooler_size_per_head": 128,
    "pooler_type": "first_token_transform",
    "position_embedding_type": "absolute",
    "gradient_checkpointing": False,
    "model_type": "bert",
    "type_vocab_size": 2,
}


def built(directory, kind, ending, **settings):
    """A random model of a class, and the directory it is saved in."""
    known = ef.architecture(kind)
    name = known.body.removesuffix("Model") + ending
    values = {**SIZES, "model_type": kind, "architectures": [name], **settings}
    model = filled(known.tasks[name].config(ef.Settings(values)))
    ef.save_pretrained(model, directory / "model", model_type=kind)
    return model, directory / "model"


def stored(directory):
    """The tensors of a checkpoint."""
    return load_file(directory / "model.safetensors")


def saved_again(model, directory):
    """The tensors and the settings of a model that is saved once more."""
    ef.save_pretrained(model, directory / "again")
    return stored(directory / "again"), json.loads((directory / "again/config.json").read_text())


def random(*shape):
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def pooler():
    """The tensors of a pooler, by names that begin with that of the model."""
    return {"pooler__dense__weight": random(12, 12), "pooler__dense__bias": random(12)}


def test_a_file_as_old_as_bert_is_read_with_its_pooler_and_without_its_second_head(tmp_path):
    model, folder = built(tmp_path, "bert", "ForMaskedLM")
    old = {"weight": "gamma", "bias": "beta"}

    def aged(name):
        stem, _, leaf = name.rpartition(".")
        return f"{stem}.{old[leaf]}" if stem.endswith("LayerNorm") else name

    rename_tensors(folder, aged)
    edit_tensors(
        folder,
        bert__embeddings__position_ids=np.arange(9)[None],
        cls__seq_relationship__weight=random(2, 12),
        cls__seq_relationship__bias=random(2),
        **{f"bert__{name}": tensor for name, tensor in pooler().items()},
    )
    edit_settings(folder, **OLD_WORDS)
    loaded = ef.from_pretrained(folder)
    assert np.array_equal(loaded(TOKENS), model(TOKENS))
    first = np.asarray(loaded.encoder(TOKENS))[:, 0]
    weight, bias = pooler().values()
    expected = np.tanh(first @ weight.T + bias)
    assert np.abs(loaded.encoder.embed(TOKENS) - expected).max() < 1e-6
    tensors, values = saved_again(loaded, tmp_path)
    assert {"bert.embeddings.LayerNorm.weight", "bert.pooler.dense.bias"} <= tensors.keys()
    assert not any("seq_relationship" in name or "gamma" in name for name in tensors)
    assert values["architectures"] == ["BertForMaskedLM"]


def test_the_class_with_two_heads_is_saved_as_that_with_the_one_that_is_read(tmp_path):
    model, folder = built(tmp_path, "bert", "ForMaskedLM")
    edit_settings(folder, architectures=["BertForPreTraining"])
    edit_tensors(
        folder,
        cls__seq_relationship__weight=random(2, 12),
        cls__seq_relationship__bias=random(2),
    )
    loaded = ef.from_pretrained(folder)
    assert np.array_equal(loaded(TOKENS), model(TOKENS))
    tensors, values = saved_again(loaded, tmp_path)
    assert values["architectures"] == ["BertForMaskedLM"]
    assert not any("seq_relationship" in name for name in tensors)


def test_a_tied_output_may_be_stored_again_if_it_is_equal(tmp_path):
    model, folder = built(tmp_path, "bert", "ForMaskedLM")
    there = stored(folder)
    table = there["bert.embeddings.word_embeddings.weight"]
    edit_tensors(folder, **{f"{DECODER}.weight": table, f"{DECODER}.bias": there[BIAS]})
    loaded = ef.from_pretrained(folder)
    assert isinstance(loaded.config.head.output, ef.TiedHead.Config)
    assert np.array_equal(loaded(TOKENS), model(TOKENS))
    assert not any(name.startswith(DECODER) for name in saved_again(loaded, tmp_path)[0])


def test_a_second_bias_of_a_tied_output_that_differs_is_refused(tmp_path):
    _, folder = built(tmp_path, "bert", "ForMaskedLM")
    edit_tensors(folder, **{f"{DECODER}.bias": random(11)})
    with pytest.raises(CheckpointError, match=r"decoder\.bias and .*bias must be equal"):
        Checkpoint(folder)


@pytest.mark.parametrize("own", [True, False], ids=["its-own-bias", "the-other-bias"])
def test_an_output_of_its_own_has_its_own_bias_or_else_the_other(own, tmp_path):
    _, folder = built(tmp_path, "bert", "ForMaskedLM")
    weight, bias = random(11, 12), random(11)
    biases = {f"{DECODER}.bias": bias, BIAS: bias + 1} if own else {BIAS: bias}
    edit_tensors(folder, **{f"{DECODER}.weight": weight}, **biases)
    loaded = ef.from_pretrained(folder)
    assert np.array_equal(loaded.head.output.linear.weight, weight.T)
    assert np.array_equal(loaded.head.output.linear.bias, bias)
    tensors, values = saved_again(loaded, tmp_path)
    assert np.array_equal(tensors[f"{DECODER}.bias"], bias)
    assert values["tie_word_embeddings"] is False
    again = ef.from_pretrained(tmp_path / "again")
    assert np.array_equal(again(TOKENS), loaded(TOKENS))


def test_an_output_that_is_neither_tied_nor_there_is_missing(tmp_path):
    _, folder = built(tmp_path, "bert", "ForMaskedLM")
    edit_settings(folder, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"missing: cls\.predictions\.decoder\.weight"):
        Checkpoint(folder)


def test_a_classifier_needs_the_pooler_that_its_class_has(tmp_path):
    _, folder = built(tmp_path, "bert", "ForSequenceClassification", num_labels=3)
    edit_tensors(folder, "bert.pooler.dense.weight", "bert.pooler.dense.bias")
    with pytest.raises(CheckpointError, match=r"missing: bert\.pooler\.dense\.weight \(12, 12\)"):
        Checkpoint(folder)


def test_a_classifier_with_a_layer_of_its_own_leaves_a_pooler_alone(tmp_path):
    settings = {"num_labels": 3, "pad_token_id": 1, "type_vocab_size": 1}
    model, folder = built(tmp_path, "roberta", "ForSequenceClassification", **settings)
    edit_tensors(folder, **{f"roberta__{name}": tensor for name, tensor in pooler().items()})
    loaded = ef.from_pretrained(folder)
    assert np.array_equal(loaded(TOKENS), model(TOKENS))
    assert not any("pooler" in name for name in saved_again(loaded, tmp_path)[0])


def test_a_bare_model_without_a_pooler_is_pooled_by_its_mean(tmp_path):
    _, folder = built(tmp_path, "bert", "Model")
    edit_tensors(folder, "pooler.dense.weight", "pooler.dense.bias")
    loaded = ef.from_pretrained(folder)
    assert loaded.config.pooling == ef.Pooling.Config()


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_roberta_counts_from_the_row_behind_that_of_padding(padding, tmp_path):
    model, folder = built(tmp_path, "roberta", "Model", pad_token_id=padding, type_vocab_size=1)
    table = stored(folder)["embeddings.position_embeddings.weight"]
    positions = model.embedding.positions
    assert table.shape == (9, 12)
    assert np.array_equal(positions(jnp.arange(2)), table[padding + 1 : padding + 3])
    with pytest.raises(ValueError, match="position"):
        positions(jnp.array([9 - padding - 1]))


def test_mpnet_counts_from_row_two_whatever_the_settings_say(tmp_path):
    _, folder = built(tmp_path, "mpnet", "Model")
    edit_settings(folder, pad_token_id=5)
    assert Checkpoint(folder).config.embedding.positions.offset == 2
    edit_settings(folder, relative_attention_num_buckets=64)
    with pytest.raises(CheckpointError, match="relative_attention_num_buckets"):
        Checkpoint(folder)


def test_distilbert_is_read_in_its_own_words_and_in_those_of_bert(tmp_path):
    model, folder = built(tmp_path, "distilbert", "ForSequenceClassification", num_labels=3)
    values = json.loads((folder / "config.json").read_text())
    assert values["dim"] == 12
    assert "hidden_size" not in values
    edit_settings(folder, "dim", "n_heads", hidden_size=12, num_attention_heads=3)
    edit_settings(folder, tie_weights_=True, sinusoidal_pos_embds=False, seq_classif_dropout=0.3)
    loaded = ef.from_pretrained(folder)
    assert loaded.config.head.dropout == 0.3
    assert np.array_equal(loaded(TOKENS), model(TOKENS))


@pytest.mark.parametrize(
    ("said", "bases"),
    [
        ({"global_rope_theta": 500.0, "local_rope_theta": 100.0}, (500.0, 100.0)),
        ({"global_rope_theta": 500.0, "local_rope_theta": None}, (500.0, 500.0)),
        ({}, (160_000.0, 10_000.0)),
        ({"rope_parameters": {"full_attention": {"rope_theta": 500.0}}}, (500.0, 10_000.0)),
    ],
)
def test_modernbert_turns_far_and_near_layers_at_bases_of_their_own(said, bases):
    settings = {**SIZES, "num_hidden_layers": 4, "global_attn_every_n_layers": 2, **said}
    tree = ef.architecture("modernbert").tasks["ModernBertModel"].config(ef.Settings(settings))
    attention = [block.attention for block in tree.blocks]
    assert [each.rotary.base for each in attention] == [*bases] * 2
    assert [each.window for each in attention] == [None, (64, 64)] * 2
    assert [block.attention_residual.pre_norm is None for block in tree.blocks] == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("layers", "groups", "times"), [(12, 1, [12]), (12, 3, [4, 4, 4]), (5, 2, [3, 2])]
)
def test_albert_divides_its_layers_among_its_groups(layers, groups, times):
    settings = {**SIZES, "num_hidden_layers": layers, "num_hidden_groups": groups}
    tree = ef.architecture("albert").tasks["AlbertModel"].config(ef.Settings(settings))
    assert [block.times for block in tree.blocks] == times


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_hidden_groups", "inner_group_num"])
def test_an_albert_of_a_million_layers_is_refused(key, tmp_path):
    _, folder = built(tmp_path, "albert", "Model", embedding_size=8)
    edit_settings(folder, **{key: 10**6})
    with pytest.raises(CheckpointError, match=f"`{key}` must be"):
        Checkpoint(folder)
