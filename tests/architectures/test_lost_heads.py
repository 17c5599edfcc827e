"""Encoder-decoders whose class has no head, where the model had one that was not its table."""

from typing import Any

import pytest

import eqxformer as ef
from tests.architectures.test_encoder_decoders import BART
from tests.helpers.models import filled
from tests.pretrained.tiny import edit_settings

T5 = {"vocab_size": 11, "d_model": 12, "d_ff": 14, "num_layers": 1, "num_heads": 3}
OWN_HEAD = [
    {"tie_word_embeddings": False},  # version 4
    {"tie_word_embeddings": True, "scale_decoder_outputs": False},  # version 5
    {"tie_word_embeddings": False, "scale_decoder_outputs": False},  # ours
]


@pytest.mark.parametrize("said", OWN_HEAD)
def test_a_class_without_a_head_is_refused_where_the_model_had_one_of_its_own(said, tmp_path):
    """As AutoModel leaves it, which drops the head. Where the states alone count, they are read."""
    t5 = tmp_path / "t5"
    tree = ef.families.t5(vocab=11, dim=12, layers=1, heads=3, head_dim=4, hidden=14)
    ef.save_pretrained(filled(tree), t5)
    edit_settings(t5, *({"scale_decoder_outputs"} - said.keys()), architectures=["T5Model"], **said)
    keys = [key for key, value in said.items() if not value]
    with pytest.raises(ef.CheckpointError, match="names T5Model, which has no head") as caught:
        ef.from_pretrained(t5)
    assert " and ".join(f"`{key}` is false" for key in keys) in str(caught.value)
    assert f"remove {' and '.join(f'`{key}`' for key in keys)}." in str(caught.value)
    assert "again as T5ForConditionalGeneration" in str(caught.value)
    edit_settings(t5, *keys)
    assert isinstance(ef.from_pretrained(t5), ef.EncoderDecoder)


@pytest.mark.parametrize("said", OWN_HEAD)
@pytest.mark.parametrize(
    "name", ["EncoderModel", "ForSequenceClassification", "ForQuestionAnswering"]
)
def test_classes_that_never_had_a_head_for_tokens_do_not_miss_one(name, said):
    ef.architecture("t5").tasks[f"T5{name}"].config(ef.Settings({**T5, **said}))


def test_mt5_scales_no_logits_so_that_its_scale_says_nothing_about_its_head():
    config = ef.architecture("mt5").tasks["MT5Model"].config
    tree: Any = config(ef.Settings({**T5, "scale_decoder_outputs": False}))
    assert tree.decoder.head == ef.TiedHead.Config(1.0)


@pytest.mark.parametrize(("tied", "so"), [(False, "was"), (True, "may have been")])
def test_an_mt5_without_a_head_is_refused_whatever_is_said_of_its_head(tied, so):
    """As version 4 leaves it, and version 5, which says of all that the head is tied."""
    tasks = ef.architecture("mt5").tasks
    said = ef.Settings({**T5, "tie_word_embeddings": tied})
    match = f"names MT5Model, which has no head, and .* head {so} another .*remove `tie_word_emb"
    with pytest.raises(ef.CheckpointError, match=match):
        tasks["MT5Model"].config(said)
    tasks["MT5EncoderModel"].config(said)
    whole: Any = tasks["MT5ForConditionalGeneration"].config(said)
    assert isinstance(whole.decoder.head, ef.TiedHead.Config) == tied
    bare: Any = tasks["MT5Model"].config(ef.Settings(T5))  # where the states alone are wanted
    assert bare.decoder.head == ef.TiedHead.Config(1.0)


@pytest.mark.parametrize(("kind", "name"), [("bart", "Bart"), ("marian", "Marian")])
def test_a_bart_without_a_head_is_refused_where_the_head_was_not_its_table(kind, name):
    config = ef.architecture(kind).tasks[f"{name}Model"].config
    config(ef.Settings(BART))
    with pytest.raises(ef.CheckpointError, match=f"names {name}Model, which has no head"):
        config(ef.Settings({**BART, "tie_word_embeddings": False}))
