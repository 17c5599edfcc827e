"""Encoder-decoders as files have them: old names, tables stored twice, heads tied and not."""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import eqxformer as ef
from eqxformer.pretrained import Checkpoint
from tests.helpers.models import filled, logits
from tests.pretrained.tiny import edit_settings, edit_tensors

SIZES = {"vocab": 11, "dim": 12, "layers": 1, "heads": 3}
BART = {
    "model_type": "bart",
    "vocab_size": 11,
    "d_model": 12,
    **{f"{side}_layers": 1 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 3 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 14 for side in ("encoder", "decoder")},
    "max_position_embeddings": 8,
}


@functools.cache
def family():
    """The T5 of the library's own family, which others are compared with."""
    return filled(ef.families.t5(**SIZES, head_dim=4, hidden=14, dropout=0.1))


def stored(directory):
    """The tensors of a checkpoint."""
    return load_file(directory / "model.safetensors")


def built(model_type, **settings):
    """A model of an architecture with random weights, as its settings describe it."""
    known = ef.architecture(model_type)
    values = ef.Settings({**BART, "model_type": model_type, **settings})
    return filled(next(iter(known.tasks.values())).config(values))


@pytest.fixture
def t5(tmp_path):
    """The directory of a T5 1.0, which the library chose to write it as."""
    ef.save_pretrained(family(), tmp_path / "t5")
    return tmp_path / "t5"


def same(model, other):
    """Whether two models have the same config and numbers."""
    one, two = ef.named_arrays(model), ef.named_arrays(other)
    assert model.config.edit(origin=None) == other.config.edit(origin=None)
    return one.keys() == two.keys() and all(np.array_equal(one[k], two[k]) for k in one)


def test_the_family_is_written_as_t5_and_comes_back(t5):
    values = json.loads((t5 / "config.json").read_text())
    assert (values["model_type"], values["architectures"]) == ("t5", ["T5ForConditionalGeneration"])
    assert "lm_head.weight" not in stored(t5)
    assert same(ef.from_pretrained(t5), family())


def test_an_old_t5_file_has_another_class_repeated_tables_and_a_bias_without_use(t5):
    table = stored(t5)["shared.weight"]
    edit_settings(
        t5,
        "scale_decoder_outputs",
        architectures=["T5WithLMHeadModel"],
        n_positions=512,
        output_past=True,
        task_specific_params={"summarization": {"num_beams": 4}},
    )
    name = "decoder__block__0__layer__1__EncDecAttention__relative_attention_bias__weight"
    edit_tensors(
        t5,
        encoder__embed_tokens__weight=table,
        decoder__embed_tokens__weight=table,
        lm_head__weight=table,
        **{name: np.zeros((32, 3), np.float32)},
    )
    assert same(ef.from_pretrained(t5), family())


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_the_shared_table_may_be_stored_under_the_name_of_one_side_alone(t5, side):
    table = stored(t5)["shared.weight"]
    edit_tensors(t5, "shared.weight", **{f"{side}__embed_tokens__weight": table})
    assert same(ef.from_pretrained(t5), family())


def test_tables_that_should_be_one_and_differ_are_refused(t5):
    table = stored(t5)["shared.weight"]
    edit_tensors(t5, encoder__embed_tokens__weight=table + 1)
    message = "encoder.embed_tokens.weight and shared.weight must be equal; they differ"
    with pytest.raises(ef.CheckpointError, match=message):
        ef.from_pretrained(t5)


@pytest.mark.parametrize(
    ("said", "scale"),
    [
        ({"tie_word_embeddings": False}, 1.0),  # version 4
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, 1.0),  # version 5
        ({"tie_word_embeddings": True}, 12**-0.5),
    ],
)
def test_a_head_of_its_own_is_kept_and_scaled_as_the_settings_say(t5, said, scale):
    edit_settings(t5, *({"scale_decoder_outputs"} - said.keys()), **said)
    head = np.random.default_rng(0).normal(size=(11, 12)).astype(np.float32)
    edit_tensors(t5, lm_head__weight=head)
    model = ef.from_pretrained(t5)
    assert model.config.decoder.head == ef.LinearHead.Config(
        model.config.decoder.head.linear, scale
    )
    assert np.array_equal(model.decoder.head.linear.weight, head.T)
    ef.save_pretrained(model, t5.parent / "again")
    assert same(ef.from_pretrained(t5.parent / "again"), model)


def test_a_head_that_is_neither_tied_nor_there_is_missing(t5):
    edit_settings(t5, "scale_decoder_outputs", tie_word_embeddings=False)
    with pytest.raises(ef.CheckpointError, match="missing: lm_head.weight"):
        ef.from_pretrained(t5)


def test_the_encoder_of_a_whole_t5_is_read_alone(t5):
    edit_settings(t5, architectures=["T5EncoderModel"], is_encoder_decoder=False)
    encoder = ef.from_pretrained(t5)
    assert isinstance(encoder, ef.Encoder)
    assert same(encoder, ef.rebuild(family().encoder, encoder.config.edit(origin=None)))
    ef.save_pretrained(encoder, t5.parent / "alone")
    assert not any("decoder" in name for name in stored(t5.parent / "alone"))


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("relu", ef.MLP.Config(14, "relu")),
        ("gelu", ef.MLP.Config(14, "gelu")),
        ("gated-gelu", ef.GatedMLP.Config(14, "gelu_tanh")),
        ("gated-silu", ef.GatedMLP.Config(14, "silu")),
    ],
)
def test_the_feed_forward_is_the_one_that_its_word_names(word, expected):
    values = {
        "model_type": "t5",
        "vocab_size": 11,
        "d_model": 12,
        "d_ff": 14,
        "num_layers": 1,
        "num_heads": 3,
        "feed_forward_proj": word,
    }
    tree = ef.architecture("t5").tasks["T5ForConditionalGeneration"].config(ef.Settings(values))
    found = tree.encoder.blocks[0].feed_forward
    assert (type(found), found.activation) == (type(expected), expected.activation)


def test_an_unknown_feed_forward_is_refused():
    values = {"d_model": 12, "d_ff": 14, "num_layers": 1, "num_heads": 3, "vocab_size": 11}
    settings = ef.Settings({**values, "feed_forward_proj": "open-gelu"})
    with pytest.raises(ef.CheckpointError, match="`feed_forward_proj` must be an activation"):
        ef.architecture("t5").tasks["T5Model"].config(settings)


def test_pegasus_files_hold_the_sinusoids_and_others_than_these_are_refused(tmp_path):
    model, folder = built("pegasus"), tmp_path / "pegasus"
    ef.save_pretrained(model, folder)
    name = "model.encoder.embed_positions.weight"
    table = stored(folder)[name]
    positions = model.encoder.embedding.positions(jnp.arange(len(table)))
    assert np.allclose(table, positions, atol=1e-4)
    assert same(ef.from_pretrained(folder), model)
    edit_tensors(folder, **{name.replace(".", "__"): table[::-1]})
    with pytest.raises(ef.CheckpointError, match="must be the one that follows from the settings"):
        ef.from_pretrained(folder)


def test_marian_files_may_hold_the_sinusoids(tmp_path):
    model, folder = built("marian"), tmp_path / "marian"
    ef.save_pretrained(model, folder)
    assert not any("embed_positions" in name for name in stored(folder))
    edit_settings(folder, max_position_embeddings=6)
    waves = np.asarray(model.encoder.embedding.positions(jnp.arange(6)), np.float16)
    edit_tensors(folder, model__encoder__embed_positions__weight=waves)
    assert same(ef.from_pretrained(folder), model)


def test_each_side_of_marian_may_have_words_of_its_own(tmp_path):
    model = built("marian", share_encoder_decoder_embeddings=False, decoder_vocab_size=7)
    ef.save_pretrained(model, tmp_path / "marian")
    tensors = stored(tmp_path / "marian")
    assert tensors["model.encoder.embed_tokens.weight"].shape == (11, 12)
    assert tensors["model.decoder.embed_tokens.weight"].shape == (7, 12)
    assert "model.shared.weight" not in tensors
    assert same(ef.from_pretrained(tmp_path / "marian"), model)


def test_a_bart_without_a_head_is_read_as_one_that_writes_with_its_table(tmp_path):
    model, folder = built("bart"), tmp_path / "bart"
    ef.save_pretrained(model, folder)
    edit_settings(folder, architectures=["BartModel"])
    edit_tensors(folder, "final_logits_bias")
    bare = ef.from_pretrained(folder)
    assert bare.config.decoder.head == ef.TiedHead.Config()
    assert np.array_equal(
        bare.encoder.embedding.tokens.weight, stored(folder)["model.shared.weight"]
    )
    ef.save_pretrained(bare, tmp_path / "bare")
    assert "shared.weight" in stored(tmp_path / "bare")


def test_a_cut_encoder_has_its_depth_under_both_names_of_it(tmp_path):
    """`num_hidden_layers` goes before `encoder_layers` where BART's settings have both."""
    ef.save_pretrained(built("bart", encoder_layers=2), tmp_path / "whole", model_type="bart")
    edit_settings(tmp_path / "whole", num_hidden_layers=2)
    config = ef.from_pretrained(tmp_path / "whole").config
    cut = config.edit("encoder", blocks=config.encoder.blocks[:1])
    ef.save_pretrained(filled(cut), tmp_path / "cut")
    values = json.loads((tmp_path / "cut/config.json").read_text())
    assert (values["encoder_layers"], values["num_hidden_layers"]) == (1, 1)


def test_the_first_place_of_m2m_100_comes_after_that_of_padding():
    for padding in (0, 1, 4):
        positions = built("m2m_100", pad_token_id=padding).config.encoder.embedding.positions
        assert positions.offset == padding + 1


# What the config.json of well-known checkpoints of each kind says, those of version 3 included.
OLD = {
    "_num_labels": 3,
    "add_bias_logits": False,
    "add_final_layer_norm": True,
    "classif_dropout": 0.0,
    "classifier_dropout": 0.0,
    "decoder_layerdrop": 0.05,
    "encoder_layerdrop": 0.05,
    "extra_pos_embeddings": 1,
    "force_bos_token_to_be_generated": False,
    "gradient_checkpointing": False,
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
    "length_penalty": 0.8,
    "max_length": 128,
    "normalize_before": True,
    "normalize_embedding": False,
    "num_beams": 4,
    "num_hidden_layers": 12,
    "output_past": True,
    "prefix": " ",
    "replacing_rate": 0,
    "save_step": 58,
    "static_position_embeddings": True,
    "student_decoder_layers": None,
    "student_encoder_layers": None,
    "task_specific_params": {},
    "torch_dtype": "float32",
}


@pytest.mark.parametrize("model_type", ["bart", "mbart", "marian", "pegasus", "m2m_100"])
def test_keys_of_old_files_that_make_no_difference_are_known(model_type):
    settings = ef.Settings({**BART, **OLD, "model_type": model_type})
    next(iter(ef.architecture(model_type).tasks.values())).config(settings)
    settings.check_all_read(model_type)


def test_all_of_t5_1_1_is_where_the_checkpoint_has_it(t5):
    tree = family().config.edit("*.blocks.*", feed_forward=ef.GatedMLP.Config(14, "gelu_tanh"))
    model = filled(tree.edit("decoder", head=ef.LinearHead.Config()))
    ef.save_pretrained(model, t5.parent / "gated", model_type="mt5")
    names = Checkpoint(t5.parent / "gated").stored.names
    assert {"lm_head.weight", "encoder.block.0.layer.1.DenseReluDense.wi_1.weight"} <= names


def labelled(body, *, start: Any, end: int | None) -> ef.EncoderDecoderWithHead.Config:
    """A tree of a classifier as the reference's are."""
    pooling = ef.Pooling.Config("last", ef.Linear.Config())
    head = ef.SequenceHead.Config(3, pooling, dropout=0.2)
    return ef.EncoderDecoderWithHead.Config(
        body.edit("decoder", head=ef.TiedHead.Config()), head, start, end
    )


@pytest.mark.parametrize(
    ("kind", "name", "start", "end"),
    [
        ("bart", "Bart", 2, 2),
        ("mbart", "MBart", "last", 2),
        ("t5", "T5", 0, 1),
        ("mt5", "MT5", 0, 1),
        ("umt5", "UMT5", 0, 1),
    ],
)
def test_a_classifier_starts_and_ends_as_its_family_does_unless_told(kind, name, start, end):
    task = ef.architecture(kind).tasks[f"{name}ForSequenceClassification"]
    t5 = {"vocab_size": 11, "d_model": 12, "d_ff": 14, "num_layers": 1, "num_heads": 3}
    sizes = t5 if "t5" in kind else BART
    tree: Any = task.config(ef.Settings(sizes))
    assert (tree.start, tree.end, tree.head.labels) == (start, end, 2)
    words = {"decoder_start_token_id": 7, "eos_token_id": 5, "classifier_dropout": 0.3}
    settings = ef.Settings({**sizes, **words, "id2label": {"0": "good", "1": "bad", "2": "odd"}})
    tree = task.config(settings)
    settings.check_all_read(kind)
    assert (tree.start, tree.end, tree.head.labels) == ("last" if start == "last" else 7, 5, 3)
    assert (tree.head.dropout, tree.head.pooling.dropout) == (0.3, 0.3)


@pytest.mark.parametrize(
    ("kind", "name", "start"), [("bart", "Bart", 7), ("mbart", "MBart", "last"), ("t5", "T5", 7)]
)
def test_a_classifier_built_here_is_written_with_its_start_and_its_end(kind, name, start, tmp_path):
    body = family().config if kind == "t5" else built(kind).config
    model = filled(labelled(body, start=start, end=5))
    ef.save_pretrained(model, tmp_path / "ours", model_type=kind)
    values = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert values["architectures"] == [f"{name}ForSequenceClassification"]
    assert (values["eos_token_id"], values["classifier_dropout"]) == (5, 0.2)
    assert values.get("decoder_start_token_id", "last") == start
    again = ef.from_pretrained(tmp_path / "ours")
    one, two = ef.named_arrays(model), ef.named_arrays(again)
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[k], two[k]) for k in one)
    assert (again.config.start, again.config.end) == (start, 5)


def test_a_classifier_that_the_reference_has_not_is_not_written_as_one(tmp_path):
    model = filled(labelled(family().config, start=0, end=None))
    with pytest.raises(ef.CheckpointError, match="end: None, not 1"):
        ef.save_pretrained(model, tmp_path / "ours", model_type="t5")


def test_the_table_of_a_t5_classifier_may_have_the_name_of_a_side(tmp_path):
    model, folder = filled(labelled(family().config, start=0, end=1)), tmp_path / "t5"
    ef.save_pretrained(model, folder, model_type="t5")
    table = stored(folder)["transformer.shared.weight"]
    name = "transformer__encoder__embed_tokens__weight"
    edit_tensors(folder, "transformer.shared.weight", **{name: table})
    again = ef.from_pretrained(folder)
    assert np.array_equal(again.body.encoder.embedding.tokens.weight, table)


def test_whisper_hears_frames_and_its_places_start_as_sinusoids():
    values = {**BART, "model_type": "whisper", "num_mel_bins": 5, "max_source_positions": 4}
    del values["max_position_embeddings"]
    for key in (
        "forced_decoder_ids",
        "suppress_tokens",
        "begin_suppress_tokens",
        "alignment_heads",
    ):
        values[key] = [1]
    settings = ef.Settings({**values, "median_filter_width": 7, "mask_time_prob": 0.05})
    known = ef.architecture("whisper")
    tree: Any = known.tasks["WhisperForConditionalGeneration"].config(settings)
    settings.check_all_read("whisper")
    assert isinstance(tree.encoder, ef.AudioEncoder.Config)
    assert [each.attention.key.bias for each in tree.encoder.blocks] == [False]
    model = filled(tree)
    target = jnp.array([[1, 2, 3]])
    assert logits(model, jnp.ones((1, 8, 5)), target).shape == (1, 3, 11)
    table = tree.encoder.embedding.positions.build(12, key=jax.random.key(0)).weight
    assert table[0].tolist() == [0.0] * 6 + [1.0] * 6
