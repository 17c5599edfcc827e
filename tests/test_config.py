"""Config trees: checked when made, edited by path, printed, to and from JSON."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import eqxformer as ef
from eqxformer.config import paths
from tests.helpers.models import DECODERS, SEQ2SEQ

GPT = DECODERS["gpt"]
LOCAL_AND_GLOBAL = DECODERS["gemma"]
EVERY_CONFIG = {**DECODERS, **SEQ2SEQ}


@pytest.mark.parametrize("name", EVERY_CONFIG)
def test_json_gives_back_an_equal_config_that_hashes_and_prints_the_same(name):
    config = EVERY_CONFIG[name]
    again = ef.Config.from_json(config.to_json())
    assert again == config
    assert hash(again) == hash(config)
    assert str(again) == str(config)
    assert type(again) is type(config)


def test_json_keeps_infinities_integers_and_none_apart():
    config = ef.TiedHead.Config(scale=float("inf"), softcap=None)
    assert ef.Config.from_json(config.to_json()) == config
    json.loads(config.to_json(), parse_constant=pytest.fail)  # no `Infinity`, which is not JSON
    negative = ef.TiedHead.Config(scale=float("-inf"))
    assert ef.Config.from_json(negative.to_json()) == negative


def test_from_json_of_a_class_refuses_configs_of_another_class():
    with pytest.raises(ValueError, match=r"Expected a config of type MLP; got one of Normal\."):
        ef.MLP.Config.from_json(ef.Normal(1.0).to_json())


def test_an_unequal_field_makes_unequal_configs():
    assert ef.MLP.Config(hidden=3) != ef.MLP.Config(hidden=5)
    assert ef.MLP.Config(hidden=3) != ef.GatedMLP.Config(hidden=3)
    assert len({ef.MLP.Config(hidden=3), ef.MLP.Config(hidden=3), ef.MLP.Config(hidden=5)}) == 2


def test_a_config_cannot_be_changed_in_place():
    with pytest.raises(AttributeError):
        ef.MLP.Config(hidden=3).hidden = 5


# Editing


def test_edit_changes_every_place_the_stars_match_and_no_other():
    edited = LOCAL_AND_GLOBAL.edit("blocks.*.attention", window=5)
    assert [b.attention.window for b in edited.blocks] == [5, 5, 5]
    assert [b.attention.window for b in LOCAL_AND_GLOBAL.blocks] == [3, None, 3]
    one = LOCAL_AND_GLOBAL.edit("blocks.1.attention", window=5)
    assert [b.attention.window for b in one.blocks] == [3, 5, 3]
    norms = GPT.edit("blocks.*.*_residual.pre_norm", eps=0.5)
    found = [b.attention_residual.pre_norm.eps for b in norms.blocks]
    found += [b.feed_forward_residual.pre_norm.eps for b in norms.blocks]
    assert found == [0.5] * 4
    assert norms.norm.eps == GPT.norm.eps


def test_edit_of_the_empty_path_changes_the_config_itself():
    assert GPT.edit(vocab=17).vocab == GPT.edit("", vocab=17).vocab == 17


def test_edit_reaches_both_sides_of_an_encoder_decoder_at_once():
    t5 = SEQ2SEQ["t5"]
    with pytest.raises(ValueError, match="To share a token table"):
        t5.edit("encoder", vocab=17)
    edited = t5.edit("*", vocab=17)
    assert (edited.encoder.vocab, edited.decoder.vocab) == (17, 17)


def test_edit_of_a_path_that_matches_nothing_names_the_nearest_and_all_others():
    with pytest.raises(ValueError, match=r"Did you mean `blocks\.\*\.attention`\?") as error:
        GPT.edit("blocks.*.atention", window=2)
    for path in {".".join("*" if p.isdigit() else p for p in q.split(".")) for q in paths(GPT)}:
        assert path in str(error.value)
    with pytest.raises(ValueError, match="matches nothing"):
        GPT.edit("blocks.7.attention", window=2)
    with pytest.raises(ValueError, match="matches nothing"):
        GPT.edit("blocks", window=2)


def test_edit_of_an_unknown_field_names_the_nearest_field():
    with pytest.raises(ValueError, match=r"Attention has no field `windw`\. Did you mean `window`"):
        GPT.edit("blocks.*.attention", windw=2)


def test_edit_checks_the_new_values():
    with pytest.raises(ValueError, match="`kv_heads` must divide `heads`"):
        GPT.edit("blocks.*.attention", kv_heads=2)
    with pytest.raises(TypeError, match="`Attention.heads` must be int"):
        GPT.edit("blocks.*.attention", heads=2.0)


def test_paths_of_an_edited_tree_are_those_of_the_tree_of_modules():
    model, absent = ef.shapes(GPT), {"init", "cross_residual", "cross_attention", "project"}
    for path in paths(GPT):
        node = model
        steps = [p for p in path.split(".") if p]
        if absent & set(steps) or path == "layout":
            continue  # values and parts that are not there have no module
        for step in steps:
            node = node[int(step)] if step.isdigit() else getattr(node, step)
        assert isinstance(node, eqx.Module)


# Types


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ef.MLP.Config(hidden="3"), r"`MLP\.hidden` must be int; got '3'\."),
        (lambda: ef.MLP.Config(hidden=3.0), r"`MLP\.hidden` must be int; got 3\.0\."),
        (lambda: ef.MLP.Config(hidden=True), r"`MLP\.hidden` must be int; got True\."),
        (lambda: ef.MLP.Config(hidden=3, dropout=True), r"`MLP\.dropout` must be float; got True"),
        (lambda: ef.LayerNorm.Config(bias=1), r"`LayerNorm\.bias` must be bool; got 1\."),
        (lambda: ef.MLP.Config(hidden=3, up="x"), r"`MLP\.up` must be Linear.Config; got 'x'"),
        (lambda: ef.MLP.Config(hidden=3, activation="rely"), r"must be 'relu' or .*got 'rely'"),
        (lambda: ef.Attention.Config(heads=2, window=(1, 2.5)), r"window.*got \(1, 2\.5\)"),
        (lambda: ef.Attention.Config(heads=2, window=(1, 2, 3)), r"window.*got \(1, 2, 3\)"),
        (lambda: GPT.edit(blocks=[]), r"`DecoderLM\.blocks` must be tuple.*got \[\]"),
        (lambda: GPT.edit(head=ef.MLP.Config(hidden=3)), r"must be TokenHead\.Config; got MLP"),
    ],
)
def test_a_value_of_a_wrong_type_is_refused_with_what_was_expected_and_got(make, message):
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize("place", range(9))
def test_every_item_of_a_tuple_is_checked_not_a_random_one(place):
    blocks = [GPT.blocks[0]] * 9
    blocks[place] = ef.MLP.Config(hidden=3)
    with pytest.raises(TypeError, match=r"blocks.*got \(.*MLP\(\.\.\.\)"):
        GPT.edit(blocks=tuple(blocks))


def test_a_whole_number_serves_as_a_float():
    assert ef.LayerNorm.Config(eps=1).eps == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda nan: ef.LayerNorm.Config(eps=nan),
        lambda nan: ef.TiedHead.Config(softcap=nan),
        lambda nan: ef.LongRoPE(short=(1.0, nan), long=(1.0, 1.0), original_length=8, factor=2.0),
    ],
)
def test_not_a_number_is_no_value_of_a_field(make):
    with pytest.raises(ValueError, match="must be a number; got nan"):
        make(float("nan"))


# JSON from anyone


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[1, 2]", "must be a JSON object; got list"),
        ("null", "must be a JSON object; got NoneType"),
        ("9" * 5000, "not JSON"),
        ('{"hidden": 3}', "`None` is not a known type"),
        ('{"type": ["MLP"], "hidden": 3}', "is not a known type"),
        ('{"type": "mlp", "hidden": 3}', r"`mlp` is not a known type.*Did you mean `MLP`\?"),
        ('{"type": "os.system"}', "is not a known type of config"),
        ('{"type": "Config"}', "is not a known type of config"),
        ('{"type": "MLP"}', r"MLP needs `hidden`"),
        ('{"type": "MLP", "hidden": 3, "hiden": 4}', r"no field `hiden`. Did you mean `hidden`"),
        ('{"type": "MLP", "hidden": 3, "build": 4}', "no field `build`"),
        ('{"type": "MLP", "hidden": 3, "__class__": 4}', "no field `__class__`"),
        ('{"type": "MLP", "hidden": 3, "hidden": 5}', "`hidden` is there twice"),
        ('{"type": "MLP", "hidden": -3}', "`hidden` must be positive"),
        ('{"type": "LayerNorm", "eps": NaN}', "must be a number; got nan"),
    ],
)
def test_json_that_is_no_config_is_refused_with_the_reason(text, message):
    with pytest.raises(ValueError, match=message):
        ef.Config.from_json(text)


@pytest.mark.parametrize(
    "text", ['{"type": "MLP", "hidden": 3.5}', '{"type": "MLP", "hidden": {}}']
)
def test_json_with_a_value_of_a_wrong_type_is_refused(text):
    with pytest.raises((TypeError, ValueError), match=r"hidden|not a known type"):
        ef.Config.from_json(text)


@pytest.mark.parametrize("depth", [40, 100_000])
@pytest.mark.parametrize(("left", "right"), [("[", "]"), ('{"type": "MLP", "hidden": ', "}")])
def test_json_nested_deeper_than_any_model_is_refused_and_does_not_crash(depth, left, right):
    text = f'{{"type": "MLP", "hidden": {left * depth}1{right * depth}}}'
    with pytest.raises(ValueError, match="levels deep|not JSON"):
        ef.Config.from_json(text)


# Printing


def test_printing_leaves_out_defaults_and_folds_equal_blocks():
    assert str(ef.MLP.Config(hidden=3)) == "MLP(hidden=3)"
    assert str(ef.MLP.Config(hidden=3, dropout=0.5)) == "MLP(hidden=3, dropout=0.5)"
    text = str(ef.families.gpt(vocab=65, dim=16, layers=9, heads=2, context=8))
    assert "0..8: Block(" in text
    assert text.count("Block(") == 1
    assert "softcap" not in text
    different = str(LOCAL_AND_GLOBAL)
    for line in ("0: Block(", "1: Block(", "2: Block(", "rotary=Rotary()", " sqrt(dim)'"):
        assert line in different
    assert repr(GPT) == str(GPT)


def test_no_printed_line_is_long():
    for config in EVERY_CONFIG.values():
        assert max(map(len, str(config).splitlines())) <= 100


# Parts of one's own


class Doubled(eqx.Module):
    """A part that a user writes."""

    class Config(ef.Config):
        """Its options."""

        factor: float = 2.0
        inner: ef.MLP.Config | None = None

        def build(self):
            return Doubled(self)

    config: Config = eqx.field(static=True)

    def __call__(self, x):
        return self.config.factor * x


def test_a_config_from_outside_the_library_round_trips_edits_and_builds():
    config = Doubled.Config(inner=ef.MLP.Config(hidden=3))
    assert ef.Config.from_json(config.to_json()) == config
    assert config.edit("inner", hidden=5).inner.hidden == 5
    assert config.edit(factor=3.0).build()(jnp.array(2.0)) == 6.0
    assert str(config) == "Doubled(inner=MLP(hidden=3))"


def test_a_name_the_library_has_cannot_be_taken_not_even_by_a_local_class():
    with pytest.raises(TypeError, match="The config name `MLP` is taken by eqxformer"):

        class MLP(eqx.Module):
            class Config(ef.Config):
                hidden: int

    assert ef.Config.registry["MLP"] is ef.MLP.Config


def test_a_local_class_may_be_defined_again_and_the_last_one_counts():
    def define():
        class Again(ef.Config):
            size: int = 1

        return Again

    define()
    second = define()
    assert type(ef.Config.from_json(second().to_json())) is second


def test_a_part_takes_a_config_or_its_options_but_not_both():
    key = jax.random.key(0)
    by_options = ef.MLP(3, hidden=5, key=jax.random.clone(key))
    by_config = ef.MLP(3, ef.MLP.Config(hidden=5), key=jax.random.clone(key))
    assert eqx.tree_equal(by_options, by_config)
    with pytest.raises(TypeError, match="takes a config or options, not both; got .* hidden"):
        ef.MLP(3, ef.MLP.Config(hidden=5), hidden=5, key=key)
    with pytest.raises(TypeError, match="hiden"):
        ef.MLP(3, hiden=5, key=key)
