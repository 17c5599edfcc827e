"""Directories of sentence-transformers: what they ask for is done, all else is refused."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.checkpoints.errors import CheckpointError
from eqxformer.pretrained import Checkpoint
from eqxformer.pretrained.sentences import describe_pooling, pooling_of
from tests.helpers.hostile import refused
from tests.helpers.models import filled
from tests.pretrained.tiny import edit_settings, edit_tensors

BERT = filled(ef.families.bert(vocab=11, dim=12, layers=1, heads=3, hidden=14, context=9))
TOKENS = jnp.array([[4, 5, 6, 7], [8, 9, 0, 0], [0, 3, 2, 1]])
VALID = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 1]], bool)
# By the names of versions 2 to 5 and of version 6.
OLD, NEW = "sentence_transformers.models.{}", "sentence_transformers.base.modules.x.{}"
MEAN = {"word_embedding_dimension": 12, "pooling_mode_mean_tokens": True}
FOLDERS = {
    "Transformer": "",
    "Pooling": "1_Pooling",
    "Normalize": "2_Normalize",
    "Dense": "2_Dense",
}


def listed(*kinds, names=OLD):
    """A `modules.json`."""
    return [
        {"idx": i, "name": str(i), "path": FOLDERS[kind], "type": names.format(kind)}
        for i, kind in enumerate(kinds)
    ]


def write(folder, name, values):
    """A JSON file, with its folder."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(values if isinstance(values, str) else json.dumps(values))


@pytest.fixture
def bert(tmp_path):
    """A BERT by itself, with its pooler."""
    ef.save_pretrained(BERT, tmp_path / "bert", model_type="bert")
    return tmp_path / "bert"


@pytest.fixture
def sentences(bert):
    """The same, with files that ask for the mean at unit length."""
    write(bert, "modules.json", listed("Transformer", "Pooling", "Normalize"))
    write(bert, "1_Pooling/config.json", MEAN)
    return bert


def expected(states, take):
    """What a pooling takes of each row's real tokens, one row after the other."""
    rows = [np.asarray(row)[np.asarray(valid)] for row, valid in zip(states, VALID, strict=True)]
    functions = {
        "mean": lambda row: row.mean(0),
        "max": lambda row: row.max(0),
        "first": lambda row: row[0],
        "last": lambda row: row[-1],
    }
    return np.stack([functions[take](row) for row in rows])


@pytest.mark.parametrize("unit", [True, False], ids=["normalised", "as-it-is"])
@pytest.mark.parametrize(
    ("said", "take"),
    [
        (MEAN, "mean"),
        ({"word_embedding_dimension": 12}, "mean"),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False}, "max"),
        ({"pooling_mode_cls_token": True, "pooling_mode_lasttoken": False}, "first"),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, "last"),
        ({"embedding_dimension": 12, "pooling_mode": "mean", "include_prompt": True}, "mean"),
        ({"pooling_mode": "max"}, "max"),
        ({"pooling_mode": ["cls"]}, "first"),
        ({"pooling_mode": "lasttoken", "pooling_mode_mean_tokens": True}, "last"),
    ],
)
def test_embeddings_are_what_the_files_ask_for(said, take, unit, sentences):
    write(sentences, "1_Pooling/config.json", said)
    if not unit:
        write(sentences, "modules.json", listed("Transformer", "Pooling", names=NEW))
    model = ef.from_pretrained(sentences)
    mask = ef.Padding(VALID)
    wanted = expected(model(TOKENS, mask=mask), take)
    if unit:
        wanted = wanted / np.linalg.norm(wanted, axis=-1, keepdims=True)
    assert np.abs(model.embed(TOKENS, mask=mask) - wanted).max() < 1e-6


def test_texts_are_cut_where_the_sentence_encoder_says(sentences):
    """Not where the file of the tokenizer does, which sentence-transformers does not go by."""
    import tokenizers

    folder = sentences
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(3, direction="left")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 7}')
    found = ef.load_tokenizer(folder)
    assert len(found.encode("a " * 20).ids) == 7
    assert found.truncation["direction"] == "left"
    for said, length in (("null", 3), ("-1", None)):
        (folder / "sentence_bert_config.json").write_text(f'{{"max_seq_length": {said}}}')
        if length is None:
            with pytest.raises(ef.CheckpointError, match="`max_seq_length` must be a positive"):
                ef.load_tokenizer(folder)
        else:
            assert len(ef.load_tokenizer(folder).encode("a " * 20).ids) == length


def test_texts_are_made_lower_case_where_the_sentence_encoder_says(sentences):
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "A": 1}, unk_token="a"))
    tokenizer.save(str(sentences / "tokenizer.json"))
    for lower, ids in ((False, [1]), (True, [0])):
        write(sentences, "sentence_bert_config.json", {"do_lower_case": lower})
        assert ef.load_tokenizer(sentences).encode("A").ids == ids


def test_a_cross_encoder_is_its_transformer_alone(tmp_path):
    body = ef.families.bert(vocab=11, dim=12, layers=1, heads=3, hidden=14, context=9)
    head = ef.SequenceHead.Config(labels=1, pooling=body.pooling)
    plain = body.edit(pooling=ef.Pooling.Config())
    scorer = filled(ef.EncoderWithHead.Config(plain, head))
    ef.save_pretrained(scorer, tmp_path / "out", model_type="bert")
    values = json.loads((tmp_path / "out/config.json").read_text())
    values |= {"sentence_transformers": {"activation_fn": "torch.nn.Sigmoid", "version": "4.1.0"}}
    values |= {"sbert_ce_default_activation_function": "torch.nn.Identity", "language": "english"}
    write(tmp_path / "out", "config.json", values)
    write(tmp_path / "out", "modules.json", listed("Transformer"))
    with pytest.raises(ef.CheckpointError, match="modules must be"):
        ef.from_pretrained(tmp_path / "out")
    write(
        tmp_path / "out",
        "sentence_bert_config.json",
        {"transformer_task": "sequence-classification"},
    )
    again = ef.named_arrays(ef.from_pretrained(tmp_path / "out"))
    assert all(np.array_equal(again[k], v) for k, v in ef.named_arrays(scorer).items())


def test_without_the_modules_that_are_refused_the_transformer_is_read_alone(sentences):
    write(sentences, "modules.json", listed("Transformer", "Pooling", "Dense"))
    refused(lambda: pooling_of(sentences), "A copy of the directory without modules.json")
    (sentences / "modules.json").unlink()
    assert np.array_equal(ef.from_pretrained(sentences)(TOKENS), BERT(TOKENS))


def test_files_of_version_6_say_the_same(sentences):
    before = Checkpoint(sentences).config
    write(sentences, "modules.json", listed("Transformer", "Pooling", "Normalize", names=NEW))
    write(sentences, "1_Pooling/config.json", {"embedding_dimension": 12, "pooling_mode": "mean"})
    both = dict.fromkeys(("module_input_name", "module_output_name"), "sentence_embedding")
    write(sentences, "2_Normalize/config.json", both)
    task = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}
    write(sentences, "sentence_bert_config.json", task)
    assert Checkpoint(sentences).config == before


def test_a_directory_without_modules_keeps_its_own_pooling(bert):
    assert pooling_of(bert) is None
    assert np.array_equal(ef.from_pretrained(bert).embed(TOKENS), BERT.embed(TOKENS))


def test_the_pooler_of_the_file_is_left_out_since_the_modules_do_not_ask_for_it(sentences):
    model = ef.from_pretrained(sentences)
    assert model.pooling.dense is None
    assert np.array_equal(model(TOKENS), BERT(TOKENS))


def test_the_states_are_pooled_whatever_head_the_settings_name(sentences):
    edit_settings(sentences, architectures=["BertForMaskedLM"])
    model = ef.from_pretrained(sentences)
    assert isinstance(model, ef.Encoder)
    ef.save_pretrained(model, sentences.parent / "again")
    values = json.loads((sentences.parent / "again" / "config.json").read_text())
    assert values["architectures"] == ["BertModel"]
    assert Checkpoint(sentences.parent / "again").config.pooling == model.config.pooling


def test_a_decoder_is_pooled_at_its_last_token(tiny):
    edit_tensors(tiny, "lm_head.weight")
    write(tiny, "modules.json", listed("Transformer", "Pooling"))
    write(tiny, "1_Pooling/config.json", {"pooling_mode": "lasttoken"})
    model = ef.from_pretrained(tiny)
    states = model(TOKENS, mask=ef.Padding(VALID))
    vectors = model.embed(TOKENS, mask=ef.Padding(VALID))
    assert np.abs(vectors - expected(states, "last")).max() < 1e-6


def test_both_sides_of_an_encoder_decoder_cannot_be_pooled(tmp_path):
    t5 = filled(ef.families.t5(vocab=11, dim=12, layers=1, heads=3, head_dim=4, hidden=14))
    ef.save_pretrained(t5, tmp_path / "t5")
    write(tmp_path / "t5", "modules.json", listed("Transformer", "Pooling"))
    write(tmp_path / "t5", "1_Pooling/config.json", MEAN)
    with pytest.raises(CheckpointError, match="has no states of its own that can be pooled"):
        Checkpoint(tmp_path / "t5")


@pytest.mark.parametrize(
    ("modules", "reason"),
    [
        ({"0": "Transformer"}, "This must be a JSON list; got dict."),
        ([], "must be Transformer, Pooling or Transformer, Pooling, Normalize; got ."),
        (listed("Transformer"), "got Transformer."),
        (listed("Pooling", "Transformer"), "got Pooling, Transformer."),
        (listed("Transformer", "Pooling", "Dense", "Normalize"), "Dense, Normalize."),
        (listed(*["Transformer"] * 10**4), "Transformer, Transformer."),
        (["Transformer"], "every module needs a `type` and a `path`; got 'Transformer'."),
        ([{"type": 3, "path": ""}], "every module needs a `type` and a `path`"),
        ([{"type": "x" * 10**5}], "got xxxx"),
        ([{"type": "a\nb\x1b[2J"}], "got a"),
        ([{"type": "a.Transformer", "path": ["x"]}], "every module needs"),
        ([{"type": "a.Transformer", "path": "../x"}], "must be a folder here; got '../x'."),
        ([{"type": "a.Transformer", "path": ".."}], "must be a folder here; got '..'."),
        ([{"type": "a.Transformer", "path": "C:\\x"}], "must be a folder here"),
        ([{"type": "a.Transformer", "path": "x\ny"}], "must be a folder here"),
        ("[" * 10**5, "nested"),
        ('[{"type": "a", "type": "b"}]', "`type` is there twice"),
        ("[NaN]", "must be a number; got nan"),
        ("[1", "not JSON"),
        ("", "not JSON"),
    ],
)
def test_other_modules_are_refused_in_one_line(modules, reason, sentences):
    write(sentences, "modules.json", modules)
    refused(lambda: pooling_of(sentences), str(sentences / "modules.json"), reason)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"pooling_mode": "weightedmean"}, "`pooling_mode` must be one of mean, max, cls"),
        ({"pooling_mode": ["cls", "mean"]}, "and nothing beside it; got ['cls', 'mean']."),
        ({"pooling_mode": []}, "got []."),
        ({"pooling_mode": [["mean"]]}, "got [['mean']]."),
        ({"pooling_mode": 3}, "got [3]."),
        ({**MEAN, "pooling_mode_cls_token": True}, "got ['cls', 'mean']."),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "got ['mean_sqrt_len_tokens']."),
        ({**MEAN, "pooling_mode_max_tokens": "yes"}, "must be true or false; got 'yes'."),
        ({**MEAN, "include_prompt": False}, "`include_prompt` must be True"),
        ({**MEAN, "pooling_mode_median_tokens": True}, "pooling_mode_median_tokens = True"),
        ([MEAN], "A config must be a JSON object; got list."),
    ],
)
def test_other_poolings_are_refused_in_one_line(values, reason, sentences):
    write(sentences, "1_Pooling/config.json", values)
    path = str(sentences / "1_Pooling" / "config.json")
    refused(lambda: pooling_of(sentences), path, reason)


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("2_Normalize/config.json", {"module_input_name": "token_embeddings"}, "module_input_name"),
        ("2_Normalize/config.json", {"norm": 1}, "norm = 1"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task"),
    ],
)
def test_what_the_other_modules_add_is_refused(name, values, reason, sentences):
    write(sentences, name, values)
    refused(lambda: pooling_of(sentences), reason, str(sentences / name))


def test_a_transformer_in_a_folder_of_its_own_is_refused(sentences):
    modules = listed("Transformer", "Pooling")
    modules[0]["path"] = "0_Transformer"
    write(sentences, "modules.json", modules)
    refused(lambda: pooling_of(sentences), "must lie beside this file, not in 0_Transformer")


@pytest.mark.parametrize("part", ["modules.json", "1_Pooling", "1_Pooling/config.json"])
def test_no_link_leads_out_of_the_directory(part, sentences, tmp_path):
    (sentences / part).rename(tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", sentences / part)
    refused(lambda: pooling_of(sentences), "is a link to", "outside")


@pytest.mark.parametrize("part", ["modules.json", "1_Pooling/config.json"])
def test_what_is_not_there_or_no_file_is_refused(part, sentences):
    (sentences / part).unlink()
    if part != "modules.json":
        refused(lambda: pooling_of(sentences), "No config.json")
    (sentences / part).mkdir()
    refused(lambda: pooling_of(sentences), "must be a file; it is a directory")


def test_a_link_that_leads_nowhere_does_not_pass_for_no_modules(sentences):
    (sentences / "modules.json").unlink()
    os.symlink(sentences / "gone.json", sentences / "modules.json")
    refused(lambda: pooling_of(sentences), "which is not there")


@pytest.mark.parametrize("take", ["mean", "max", "first", "last"])
@pytest.mark.parametrize("unit", [True, False])
def test_what_is_said_of_a_pooling_is_read_as_that_pooling(take, unit, tmp_path):
    pooling = ef.Pooling.Config(take=take, unit_length=unit)
    for name, values in describe_pooling(pooling, 12).items():
        write(tmp_path, name, values)
    assert pooling_of(tmp_path) == pooling


def files(folder):
    """The bytes of all files below a directory."""
    return {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_saving_what_was_saved_gives_the_same_files(sentences, tmp_path):
    write(sentences, "config_sentence_transformers.json", {"prompts": {"query": "q: "}})
    ef.save_pretrained(ef.from_pretrained(sentences), tmp_path / "first")
    ef.save_pretrained(ef.from_pretrained(tmp_path / "first"), tmp_path / "second")
    names = {path.as_posix() for path in files(tmp_path / "first")}
    assert {"config_sentence_transformers.json", "1_Pooling/config.json", "modules.json"} <= names
    assert files(tmp_path / "first") == files(tmp_path / "second")


@pytest.mark.parametrize(
    ("pooling", "said"),
    [
        (ef.Pooling.Config("mean"), False),
        (ef.Pooling.Config("mean", unit_length=True), True),
        (ef.Pooling.Config("max"), True),
    ],
)
@pytest.mark.parametrize("loaded", [True, False])
def test_a_pooling_that_is_not_the_usual_one_is_said_in_files(pooling, said, loaded, bert):
    if loaded:
        edit_tensors(bert, "pooler.dense.weight", "pooler.dense.bias")
        model = ef.from_pretrained(bert)
        model = ef.rebuild(model, model.config.edit(pooling=pooling))
    else:
        model = filled(BERT.config.edit(pooling=pooling))
    ef.save_pretrained(model, bert.parent / "again", model_type="bert")
    assert (bert.parent / "again" / "modules.json").exists() is said
    assert Checkpoint(bert.parent / "again").config.pooling == pooling


def test_the_usual_pooling_of_a_decoder_is_that_of_its_last_token(tiny, tmp_path):
    edit_settings(tiny, architectures=["LlamaModel"])
    edit_tensors(tiny, "lm_head.weight")
    model = ef.from_pretrained(tiny)
    ef.save_pretrained(model, tmp_path / "last")
    mean = ef.rebuild(model, model.config.edit(pooling=ef.Pooling.Config("mean")))
    ef.save_pretrained(mean, tmp_path / "mean")
    assert not (tmp_path / "last" / "modules.json").exists()
    assert Checkpoint(tmp_path / "last").config.pooling.take == "last"
    assert Checkpoint(tmp_path / "mean").config.pooling.take == "mean"


@pytest.mark.parametrize(
    "change", [{"activation": "gelu"}, {"take": "mean"}, {"unit_length": True}]
)
def test_a_pooler_that_bert_does_not_have_is_not_saved_as_one(change, tmp_path):
    config = BERT.config.edit("pooling", **change)
    with pytest.raises(CheckpointError, match="pooling"):
        ef.save_pretrained(filled(config), tmp_path / "bert", model_type="bert")
