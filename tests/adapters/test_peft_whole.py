"""What is stored whole beside adapters: heads, norms, token tables that a model uses twice."""

import functools

import equinox as eqx
import numpy as np
import pytest
from safetensors.numpy import load_file

import eqxformer as ef
from tests.adapters.made import adapted
from tests.adapters.on_disk import (
    GPT2,
    LLAMA,
    PREFIX,
    account,
    edit,
    edit_tensors,
    load,
    settings,
)
from tests.helpers.compare import same_bits
from tests.helpers.hostile import refused
from tests.helpers.models import filled


@functools.cache
def tied():
    """A model whose head is its token table, with adapters."""
    return adapted(filled(LLAMA.config.edit(head=ef.TiedHead.Config())), to="**.query")


def other_table(model):
    return eqx.tree_at(lambda m: m.embedding.tokens.weight, model, replace_fn=lambda x: x + 1.0)


@pytest.fixture
def tied_folder(tmp_path):
    """Adapters of a tied model and its new token table on disk."""
    model = other_table(tied())
    ef.save_adapters(model, tmp_path / "tied", model_type="llama", whole=("embedding",))
    return tmp_path / "tied"


def test_the_table_of_a_tied_model_is_written_as_peft_keeps_it_tied(tied_folder):
    tensors = load_file(tied_folder / "adapter_model.safetensors")
    table = tensors[f"{PREFIX}model.embed_tokens.weight"]
    assert same_bits(tensors[f"{PREFIX}lm_head.weight"], table)
    assert settings(tied_folder)["ensure_weight_tying"] is True
    assert settings(tied_folder)["modules_to_save"] == ["model.embed_tokens"]
    found = load(tied_folder, ef.without_adapters(tied()))
    assert same_bits(found, other_table(tied()))


def test_the_table_of_a_tied_model_that_peft_replaced_in_one_place_is_refused(tied_folder):
    base = ef.without_adapters(tied())
    path = tied_folder / "adapter_model.safetensors"
    edit_tensors(tied_folder, "lm_head.weight")
    with pytest.raises(ef.CheckpointError, match=r"missing: lm_head.weight \(11, 8\)"):
        load(tied_folder, base)
    edit(tied_folder, ensure_weight_tying=False)
    with pytest.raises(ef.CheckpointError, match="has model.embed_tokens.weight, which this model"):
        load(tied_folder, base)
    table = load_file(path)[f"{PREFIX}model.embed_tokens.weight"]
    edit(tied_folder, ensure_weight_tying=True)
    edit_tensors(tied_folder, **{"lm_head.weight": table + 1.0})
    with pytest.raises(ef.CheckpointError, match="embed_tokens.weight and lm_head.weight must be"):
        load(tied_folder, base)


T5 = ef.families.t5(vocab=11, dim=8, layers=1, heads=2, head_dim=4, hidden=5)
BERT = ef.families.bert(vocab=11, dim=8, layers=1, heads=2, hidden=5, context=8)
MASKED = ef.EncoderWithHead.Config(
    BERT.edit(pooling=ef.Pooling.Config(take="mean")),
    ef.MaskedLMHead.Config(norm=BERT.embedding.norm),
)


@pytest.mark.parametrize(
    ("config", "model_type", "whole", "name"),
    [
        (GPT2.config, "gpt2", "embedding.tokens", "transformer.wte.weight"),
        (T5, "t5", "encoder.embedding", "shared.weight"),
        (MASKED, "bert", "encoder.embedding", "bert.embeddings.word_embeddings.weight"),
    ],
)
def test_a_table_that_peft_cannot_keep_tied_is_not_written(
    config, model_type, whole, name, tmp_path
):
    model = adapted(filled(config), to="**.query")
    with pytest.raises(ValueError, match=f"{name} cannot be written whole beside adapters"):
        ef.save_adapters(model, tmp_path / "no", model_type=model_type, whole=(whole,))


def test_all_modules_are_meant_whose_names_end_as_one_to_save(tmp_path):
    model = adapted(filled(LLAMA.config, seed=1), to="**.query")
    whole = ("norm", "**.pre_norm")
    ef.save_adapters(model, tmp_path / "norms", model_type="llama", whole=whole)
    edit(tmp_path / "norms", modules_to_save=["norm"])
    found = load(tmp_path / "norms")
    assert same_bits(found.norm, model.norm)
    assert same_bits(found.blocks[1].attention_residual, model.blocks[1].attention_residual)
    edit(tmp_path / "norms", modules_to_save=["model.norm"])
    with pytest.raises(ef.CheckpointError, match="unexpected: .*input_layernorm.weight"):
        load(tmp_path / "norms")


def test_a_part_is_not_written_by_a_name_that_means_others_to_peft(tmp_path):
    """A model without a head has no prefix before `norm`, as which every `layernorm` ends."""
    config = LLAMA.config
    body = ef.Encoder.Config(
        **{
            field: getattr(config, field)
            for field in ("vocab", "dim", "blocks", "embedding", "norm")
        },
        pooling=ef.Pooling.Config(take="last"),
        direction="causal",
    )
    model = adapted(filled(body), to="**.query")
    with pytest.raises(ValueError, match="norm cannot be written whole without layers.0.input"):
        ef.save_adapters(model, tmp_path / "no", model_type="llama", whole=("norm",))


@functools.cache
def mixture(count=2):
    """A model with experts."""
    experts = ef.Experts.Config(count, 1, ef.GatedMLP.Config(hidden=5), ef.TopKThenSoftmax())
    return filled(LLAMA.config.edit("blocks.*", feed_forward=experts))


@pytest.fixture
def routed(tmp_path):
    """A mixture's adapters on disk beside its routers, and the mixture."""
    folder, model = tmp_path / "routed", adapted(mixture(), to="**.query")
    ef.save_adapters(model, folder, whole=("**.router",), model_type="mixtral")
    return folder, model


def of_experts(number, block=0):
    """The tensors of one expert as PEFT wrote them while each was a module."""
    parts = mixture().blocks[block].feed_forward.experts
    there = {"w1": parts.gate, "w3": parts.up, "w2": parts.down}
    stem = f"model.layers.{block}.block_sparse_moe.experts.{number}"
    return {f"{stem}.{name}.weight": each.weight[number].T for name, each in there.items()}


def test_experts_that_are_no_modules_there_are_not_written(tmp_path):
    for count, whole in ((2, "**.experts.up"), (2, "blocks.1.feed_forward"), (1, "**.experts")):
        model = adapted(mixture(count), to="**.query")
        with pytest.raises(NotImplementedError, match=r"`blocks.*` cannot be .*one parameter"):
            ef.save_adapters(model, tmp_path / "no", whole=(whole,), model_type="mixtral")


def test_routers_are_written_under_the_names_of_their_modules(routed):
    folder, model = routed
    gates = [f"model.layers.{number}.mlp.gate" for number in (0, 1)]
    assert settings(folder)["modules_to_save"] == gates
    tensors = load_file(folder / "adapter_model.safetensors")
    router = model.blocks[1].feed_forward.router.weight
    assert same_bits(tensors[f"{PREFIX}{gates[1]}.weight"], np.asarray(router.T))


@pytest.mark.parametrize("word", ["mlp", "block_sparse_moe"])
@pytest.mark.parametrize("saved", ["gate", "{word}.gate", "model.layers.{number}.{word}.gate"])
def test_routers_are_read_by_the_names_of_modules_of_either_version(word, saved, routed):
    folder, model = routed
    tensors = load_file(folder / "adapter_model.safetensors")
    gates = {name.removeprefix(PREFIX): n for name, n in tensors.items() if ".gate." in name}
    edit_tensors(folder, *gates, **{n.replace("mlp", word): 2 * a for n, a in gates.items()})
    names = {saved.format(word=word, number=number) for number in (0, 1)}
    edit(folder, modules_to_save=sorted(names))
    found = ef.load_adapters(mixture(), folder, model_type="mixtral")
    for block, other in zip(found.blocks, model.blocks, strict=True):
        assert same_bits(block.feed_forward.router.weight, 2 * other.feed_forward.router.weight)
    router = next(iter(gates))
    edit_tensors(
        folder,
        **{router: gates[router], router.replace("mlp", "block_sparse_moe"): 0.0 * gates[router]},
    )
    with pytest.raises(ef.CheckpointError, match=f"unexpected: {PREFIX}{router}"):
        ef.load_adapters(mixture(), folder, model_type="mixtral")


def test_an_array_that_is_saved_in_part_is_refused(routed):
    folder, _ = routed
    tensors = {k: v for i in (0, 1) for j in (0, 1) for k, v in of_experts(i, j).items()}
    edit(folder, modules_to_save=["gate", "w1", "w2", "w3"])
    edit_tensors(folder, **{name: np.ascontiguousarray(each) for name, each in tensors.items()})
    found = ef.load_adapters(mixture(), folder, model_type="mixtral")
    assert same_bits(ef.without_adapters(found), mixture())
    edit(folder, modules_to_save=["gate", "experts.0.w1", "experts.0.w2", "experts.0.w3"])
    edit_tensors(folder, *(name for name in tensors if "experts.1" in name))
    with pytest.raises(ef.CheckpointError, match=r"in part: .*experts.0.* is saved without .*s.1"):
        ef.load_adapters(mixture(), folder, model_type="mixtral")


def test_the_map_beside_an_adapter_may_be_in_the_file_too(tmp_path):
    folder, model = tmp_path / "head", adapted(LLAMA, to=("**.query", "head"))
    ef.save_adapters(model, folder, model_type="llama")
    new = np.random.default_rng(0).standard_normal((11, 8), np.float32)
    edit_tensors(folder, **{"lm_head.base_layer.weight": new})
    found = load(folder)
    assert same_bits(found.head.linear.base.weight, new.T)
    assert same_bits(ef.adapters_of(found), ef.adapters_of(model))
    edit_tensors(folder, **{"lm_head.base_layer.weight": np.ones((8, 11), np.float32)})
    refused(lambda: account(folder), "shape: lm_head.weight is (8, 11), expected (11, 8)")
    more = {"lm_head.base_layer.weight": new, "lm_head.base_layer.bias": new[0]}
    edit_tensors(folder, **more)
    refused(lambda: account(folder), f"unexpected: {PREFIX}lm_head.base_layer.bias")
