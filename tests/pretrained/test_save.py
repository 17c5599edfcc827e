"""Saving: whole or not at all, in an architecture's words, with what lay beside the weights."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

import eqxformer as ef
from eqxformer.pretrained import save
from tests.helpers.compare import assert_close
from tests.helpers.models import filled, tokens
from tests.pretrained.tiny import CONFIG, MODEL, edit_settings


def settings(directory):
    """What is in a directory's `config.json`."""
    return json.loads((directory / "config.json").read_text())


def arrays_equal(a, b):
    """Whether two models have the same arrays, bit for bit."""
    one, other = ef.named_arrays(a), ef.named_arrays(b)
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and np.array_equal(one[k], other[k]) for k in one
    )


FAMILIES = {
    "gpt2": ef.families.gpt(vocab=11, dim=12, layers=2, heads=3, context=9),
    "llama": ef.families.llama(vocab=11, dim=12, layers=2, heads=3, hidden=14),
    "bert": ef.families.bert(vocab=11, dim=12, layers=2, heads=3, hidden=14, context=9),
    "t5": ef.families.t5(vocab=11, dim=12, layers=2, heads=3, head_dim=5, hidden=14),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_built_here_is_saved_as_the_simplest_architecture_that_says_it(name, tmp_path):
    model = filled(FAMILIES[name])
    ef.save_pretrained(model, tmp_path / "out")
    assert settings(tmp_path / "out")["model_type"] == name
    again = ef.from_pretrained(tmp_path / "out")
    assert arrays_equal(again, model)
    inputs = [tokens(2, 5, vocab=11)] * (2 if name == "t5" else 1)
    assert_close(again(*inputs), model(*inputs), 1e-6)


def test_a_model_that_nobody_else_has_words_for_says_to_use_save(tmp_path):
    odd = filled(CONFIG.edit("blocks.1.attention", sinks=ef.Normal(0.1)))
    with pytest.raises(ef.CheckpointError, match="`save` writes it"):
        ef.save_pretrained(odd, tmp_path / "out")
    with pytest.raises(ef.CheckpointError, match=r"blocks\.1\.attention\.sinks: Normal, not None"):
        ef.save_pretrained(odd, tmp_path / "out", model_type="llama")
    assert list(tmp_path.iterdir()) == []
    ef.save(odd, tmp_path / "native")
    assert arrays_equal(ef.load(tmp_path / "native"), odd)


def test_the_architecture_that_comes_closest_is_named_with_what_keeps_it_apart(tmp_path):
    head = ef.MaskedLMHead.Config()
    encoder = FAMILIES["bert"].edit("pooling", take="mean", dense=None)
    masked = filled(ef.EncoderWithHead.Config(encoder, head))
    with pytest.raises(ef.CheckpointError) as error:
        ef.save_pretrained(masked, tmp_path / "out")
    lines = "The closest is bert, but that this model has:\n  head.norm.eps: 1e-05, not 1e-12"
    assert str(error.value).endswith(lines)
    right = masked.config.edit("head", norm=FAMILIES["bert"].embedding.norm)
    ef.save_pretrained(ef.rebuild(masked, right), tmp_path / "out")
    assert settings(tmp_path / "out")["architectures"] == ["BertForMaskedLM"]


def test_no_architecture_is_called_close_to_a_model_of_another_kind(tmp_path):
    reader = ef.families.transformer(vocab=11, dim=12, layers=1, heads=3, hidden=14)
    ears = ef.AudioEncoder.Config(bins=5, dim=12, blocks=reader.encoder.blocks)
    with pytest.raises(ef.CheckpointError, match="No architecture") as error:
        ef.save_pretrained(filled(reader.edit(encoder=ears)), tmp_path / "out")
    assert "closest" not in str(error.value)


def test_the_words_of_the_checkpoint_are_kept_byte_for_byte(tiny, tmp_path):
    edit_settings(tiny, bos_token_id=7, _name_or_path="somewhere", torch_dtype="float32")
    edit_settings(tiny, "dtype")
    ef.save_pretrained(ef.from_pretrained(tiny), tmp_path / "out")
    kept = (tmp_path / "out/config.json").read_bytes()
    assert kept == (tiny / "config.json").read_bytes()


def test_the_type_that_is_written_is_the_type_that_is_named(tiny, tmp_path):
    ef.save_pretrained(ef.from_pretrained(tiny, dtype="bfloat16"), tmp_path / "out")
    assert settings(tmp_path / "out")["dtype"] == "bfloat16"
    with safe_open(tmp_path / "out/model.safetensors", framework="numpy") as file:
        assert file.get_slice("model.norm.weight").get_dtype() == "BF16"


def test_parts_of_one_tensor_may_differ_in_type(tmp_path):
    """GPT-2 stores queries, keys and values as one; here the values alone were trained."""
    whole = filled(FAMILIES["gpt2"])
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), whole)
    found = lambda model: [block.attention.value.weight for block in model.blocks]  # noqa: E731
    ef.save_pretrained(eqx.tree_at(found, halves, found(whole)), tmp_path / "mixed")
    again = ef.from_pretrained(tmp_path / "mixed", dtype="float32")
    assert np.array_equal(found(again)[0], found(whole)[0])
    query = halves.blocks[0].attention.query.weight
    assert np.array_equal(again.blocks[0].attention.query.weight, query.astype(jnp.float32))


def test_a_changed_model_is_described_anew_and_keeps_its_other_words(tiny, tmp_path):
    edit_settings(tiny, bos_token_id=7)
    model = ef.from_pretrained(tiny)
    turned = ef.rebuild(
        model, model.config.edit("blocks.*.attention", rotary=ef.Rotary(base=9000.0))
    )
    ef.save_pretrained(turned, tmp_path / "out")
    assert settings(tmp_path / "out")["rope_parameters"]["rope_theta"] == 9000.0
    assert settings(tmp_path / "out")["bos_token_id"] == 7
    shown = ef.from_pretrained(tmp_path / "out")
    assert shown.config.blocks[0].attention.rotary.base == 9000.0


def test_names_of_labels_stay_as_long_as_there_are_as_many(tmp_path):
    body = ef.families.bert(vocab=11, dim=12, layers=2, heads=3, hidden=14, context=9)
    head = ef.SequenceHead.Config(labels=2, pooling=body.pooling)
    whole = ef.EncoderWithHead.Config(body.edit(pooling=ef.Pooling.Config()), head)
    ef.save_pretrained(filled(whole), tmp_path / "in", model_type="bert")
    names = {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}
    edit_settings(tmp_path / "in", **names)
    model = ef.from_pretrained(tmp_path / "in")
    shorter = model.config.edit("encoder", blocks=model.config.encoder.blocks[:1])
    ef.save_pretrained(filled(shorter), tmp_path / "shorter")
    said = settings(tmp_path / "shorter")
    assert {key: said[key] for key in names} == names
    ef.save_pretrained(filled(model.config.edit("head", labels=3)), tmp_path / "more")
    said = settings(tmp_path / "more")
    assert list(said["id2label"].values()) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert "label2id" not in said


def test_a_change_that_the_architecture_has_no_words_for_is_refused_by_name(tiny, tmp_path):
    model = ef.from_pretrained(tiny)
    capped = ef.rebuild(model, model.config.edit("blocks.*.attention", softcap=5.0))
    with pytest.raises(ef.CheckpointError, match=r"attention\.softcap: 5\.0, not None"):
        ef.save_pretrained(capped, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_dropout_layout_and_initialisation_are_no_change(tiny, tmp_path):
    model = ef.from_pretrained(tiny)
    config = model.config.edit("blocks.*.attention", dropout=0.1).edit(layout=ef.Scanned())
    ef.save_pretrained(ef.rebuild(model, config), tmp_path / "out")
    assert (tmp_path / "out/config.json").read_bytes() == (tiny / "config.json").read_bytes()
    assert arrays_equal(ef.from_pretrained(tmp_path / "out"), model)


def test_the_tokenizer_and_generation_settings_are_carried_along(tiny, tmp_path):
    beside = {"tokenizer.json": "{}", "generation_config.json": '{"a": 1}', "vocab.txt": "a\nb\n"}
    for name, text in beside.items():
        (tiny / name).write_text(text)
    (tiny / "pytorch_model.bin").write_bytes(b"never opened")
    (tiny / "modeling_tiny.py").write_text("raise SystemExit")
    ef.save_pretrained(ef.from_pretrained(tiny), tmp_path / "out")
    found = {f.name for f in (tmp_path / "out").iterdir()}
    assert found == {*beside, "config.json", "model.safetensors"}
    assert all((tmp_path / "out" / n).read_text() == text for n, text in beside.items())


@pytest.mark.parametrize("name", ["normalizer.json", "tekken.json"])
def test_what_whisper_and_mistral_need_for_texts_is_carried_along(name, tiny, tmp_path):
    (tiny / name).write_text('{"colour": "color"}')
    ef.save_pretrained(ef.from_pretrained(tiny), tmp_path / "out")
    assert (tmp_path / "out" / name).read_text() == '{"colour": "color"}'


def test_templates_with_names_are_carried_along(tiny, tmp_path):
    (tiny / "additional_chat_templates").mkdir()
    (tiny / "chat_template.jinja").write_text("plain")
    (tiny / "additional_chat_templates/tool_use.jinja").write_text("tools")
    ef.save_pretrained(ef.from_pretrained(tiny), tmp_path / "out")
    template = ef.ChatTemplate.read(tmp_path / "out")
    talk = [{"role": "user", "content": "a"}]
    assert (template.render(talk), template.render(talk, tools=[])) == ("plain", "tools")


def test_what_an_older_model_said_of_its_use_does_not_stay(tiny, tmp_path):
    encoder = ef.families.bert(vocab=9, dim=4, layers=1, heads=1, hidden=4, context=8)
    first = encoder.edit(pooling=ef.Pooling.Config(take="first", unit_length=True))
    ef.save_pretrained(filled(first), tmp_path / "out")
    (tmp_path / "out/generation_config.json").write_text('{"min_new_tokens": 9}')
    (tmp_path / "out/tokenizer.json").write_text("{}")
    model = filled(encoder)
    ef.save_pretrained(model, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out/generation_config.json").exists()
    assert (tmp_path / "out/tokenizer.json").exists()
    ids = jnp.array([[1, 2, 3]])
    assert_close(ef.from_pretrained(tmp_path / "out").embed(ids), model.embed(ids), 1e-6)


def test_adapters_do_not_stay_beside_weights_that_replace_their_base(tiny, tmp_path):
    model = ef.from_pretrained(tiny)
    adapted = ef.add_lora(model, ef.LoRA(rank=2), to="**.query", key=jax.random.key(0))
    ef.save_adapters(adapted, tmp_path / "out")
    (tmp_path / "out/adapter_model.bin").write_text("a pickle")
    ef.save_pretrained(ef.merge(adapted), tmp_path / "out", overwrite=True)
    assert list((tmp_path / "out").glob("adapter_*")) == []


@pytest.mark.parametrize("size", [1500, "1.5kB"])
def test_shards_are_at_most_as_large_as_asked_and_load_again(tiny, tmp_path, size):
    model = ef.from_pretrained(tiny)
    ef.save_pretrained(model, tmp_path / "out", shard_size=size)
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 3
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {f.name for f in shards}
    for shard in shards:
        with safe_open(shard, framework="numpy") as file:
            sizes = [file.get_tensor(k).nbytes for k in file.keys()]  # noqa: SIM118
        assert sum(sizes) <= 1500 or len(sizes) == 1
    assert arrays_equal(ef.from_pretrained(tmp_path / "out"), model)


def test_a_directory_that_holds_something_is_replaced_only_when_asked(tiny, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    model = ef.from_pretrained(tiny)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        ef.save_pretrained(model, tmp_path / "out")
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["notes.txt"]
    ef.save_pretrained(model, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out/notes.txt").read_text() == "mine"
    assert arrays_equal(ef.from_pretrained(tmp_path / "out"), model)


def test_a_model_can_be_saved_over_the_checkpoint_it_is_from(tiny):
    (tiny / "tokenizer.json").write_text("{}")
    model = ef.from_pretrained(tiny)
    moved = eqx.tree_at(lambda m: m.norm.weight, model, replace_fn=lambda w: w + 1.0)
    ef.save_pretrained(moved, tiny, overwrite=True)
    assert arrays_equal(ef.from_pretrained(tiny), moved)
    assert (tiny / "tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no space")])
def test_a_save_that_is_interrupted_leaves_what_was_there(tiny, tmp_path, monkeypatch, error):
    model, before = ef.from_pretrained(tiny), (tiny / "model.safetensors").read_bytes()
    moved = eqx.tree_at(lambda m: m.norm.weight, model, replace_fn=lambda w: w + 1.0)
    write = save.write_tensors

    def interrupted(folder, tensors, **options):
        write(folder, tensors, **options)
        raise error

    monkeypatch.setattr(save, "write_tensors", interrupted)
    with pytest.raises(error if isinstance(error, type) else OSError):
        ef.save_pretrained(moved, tiny, overwrite=True)
    assert (tiny / "model.safetensors").read_bytes() == before
    with pytest.raises(error if isinstance(error, type) else OSError):
        ef.save_pretrained(moved, tmp_path / "new")
    assert [f.name for f in tmp_path.iterdir()] == ["tiny"]


def test_a_wrong_size_of_shards_is_an_error_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="5GB"):
        ef.save_pretrained(MODEL, tmp_path / "out", shard_size="much")
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_config_cannot_be_saved(tmp_path):
    norm = ef.RMSNorm(4)
    with pytest.raises(ef.CheckpointError, match="RMSNorm is no whole model"):
        ef.save_pretrained(norm, tmp_path / "out")


def test_weights_that_are_not_numbers_of_the_config_are_refused(tmp_path):
    wide = eqx.tree_at(lambda m: m.norm.weight, MODEL, jnp.ones(13))
    with pytest.raises(ef.CheckpointError, match=r"norm\.weight is \(13,\), expected \(12,\)"):
        ef.save_pretrained(wide, tmp_path / "out")


def test_saving_names_the_nearest_architecture_for_one_that_is_not_known(tmp_path):
    with pytest.raises(ef.CheckpointError, match="Did you mean `llama`"):
        ef.save_pretrained(MODEL, tmp_path / "out", model_type="lama")
