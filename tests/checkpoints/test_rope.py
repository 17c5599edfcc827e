"""Rotary positions in the words of a `config.json`: of both versions, of every kind, and wrong."""

from typing import Any

import pytest

import eqxformer as ef
from eqxformer.checkpoints import CheckpointError, Settings
from eqxformer.checkpoints.rope import describe_length, describe_rotary, rotary

BASE = 5_000.0
LENGTH = 4096  # `max_position_embeddings` of all settings here
SHORT, LONG = (1.0, 1.5), (2.0, 8.0)
ORIGINAL = {"original_max_position_embeddings": 1024}
DIVISORS = {"short_factor": list(SHORT), "long_factor": list(LONG)}

# A kind, what is said of it beside the base, and what that means.
KINDS: dict[str, tuple[str, dict[str, Any], ef.Scaling | None]] = {
    "default": ("default", {}, None),
    "linear": ("linear", {"factor": 4.0}, ef.LinearScaling(4.0)),
    "dynamic": ("dynamic", {"factor": 4.0}, ef.DynamicNTK(4.0, LENGTH)),
    "llama3": (
        "llama3",
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0, **ORIGINAL},
        ef.Llama3Scaling(8.0, 1.0, 2.0, 1024),
    ),
    "yarn": ("yarn", {"factor": 2.0, **ORIGINAL}, ef.YaRN(2.0, 1024)),
    "yarn, all said": (
        "yarn",
        {
            "factor": 2.0,
            "beta_fast": 20.0,
            "beta_slow": 2.0,
            "truncate": False,
            "attention_factor": 1.5,
            **ORIGINAL,
        },
        ef.YaRN(2.0, 1024, 20.0, 2.0, False, 1.5),
    ),
    "longrope": (
        "longrope",
        {"factor": 3.0, **DIVISORS, **ORIGINAL},
        ef.LongRoPE(SHORT, LONG, 1024, 3.0),
    ),
    "longrope, attention factor": (
        "longrope",
        {"factor": 3.0, "attention_factor": 1.2, **DIVISORS, **ORIGINAL},
        ef.LongRoPE(SHORT, LONG, 1024, 3.0, 1.2),
    ),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def settings(**values: Any) -> Settings:
    """Settings of a model for texts of `LENGTH` tokens."""
    return Settings({"max_position_embeddings": LENGTH, **values})


def old_words(kind: str, key: str = "rope_type", **more: Any) -> Settings:
    """A kind as version 4 wrote it."""
    name, words, _ = KINDS[kind]
    scaling = None if name == "default" else {key: name, **words}
    return settings(rope_theta=BASE, rope_scaling=scaling, **more)


def new_words(kind: str, **more: Any) -> Settings:
    """A kind as version 5 writes it."""
    name, words, _ = KINDS[kind]
    return settings(rope_parameters={"rope_type": name, "rope_theta": BASE, **words, **more})


def meant(kind: str, **more: Any) -> ef.Rotary:
    """What a kind's words mean."""
    return ef.Rotary(base=BASE, scaling=KINDS[kind][2], **more)


@every_kind
def test_the_words_of_both_versions_mean_the_same(kind):
    assert rotary(old_words(kind)) == meant(kind)
    assert rotary(old_words(kind, key="type")) == meant(kind)
    assert rotary(new_words(kind)) == meant(kind)


@every_kind
def test_the_words_of_one_type_of_layer_are_those_of_all(kind):
    entry = new_words(kind).values["rope_parameters"]
    other = {"rope_type": "default", "rope_theta": 7.0}
    found = settings(rope_parameters={"near": entry, "far": other})
    assert rotary(found, layer_type="near") == meant(kind)
    assert rotary(found, layer_type="far") == ef.Rotary(base=7.0)


@every_kind
def test_a_description_is_read_as_what_it_describes(kind):
    for fraction in (1.0, 0.5):
        wanted = meant(kind, fraction=fraction)
        words = {"rope_parameters": describe_rotary(wanted), **describe_length(wanted)}
        assert rotary(Settings(words), fraction=1.0) == wanted


def test_whether_a_model_was_trained_with_its_yarn_makes_no_difference():
    for trained in (True, False):
        assert rotary(new_words("yarn", finetuned=trained)) == meant("yarn")


@every_kind
def test_every_word_is_accounted_for(kind):
    """A word that is none of the kind's is an error, so that none can be ignored."""
    found = new_words(kind, oops=1)
    with pytest.raises(CheckpointError, match=r"this kind of rotary positions.*\n  oops = 1"):
        rotary(found)
    old = old_words(kind)
    rotary(old)
    assert old.unread() == ([] if kind == "dynamic" else ["max_position_embeddings"])


@every_kind
def test_part_of_a_head_turns_where_the_architecture_knows_of_that(kind):
    wanted = meant(kind, fraction=0.25)
    assert rotary(new_words(kind, partial_rotary_factor=0.25), fraction=1.0) == wanted
    assert rotary(old_words(kind, partial_rotary_factor=0.25), fraction=1.0) == wanted
    assert rotary(old_words(kind, rotary_pct=0.25), fraction=1.0, fraction_key="rotary_pct") == (
        wanted
    )
    assert rotary(new_words(kind), fraction=0.25) == wanted
    for found in (
        new_words(kind, partial_rotary_factor=0.25),
        old_words(kind, partial_rotary_factor=0.25),
    ):
        with pytest.raises(CheckpointError, match="`partial_rotary_factor` must be 1.0"):
            rotary(found)


def test_version_4_has_words_of_its_own_for_the_types_of_layers():
    found = settings(
        rope_theta=1e6, rope_local_base_freq=1e4, rope_scaling={"type": "linear", "factor": 8.0}
    )
    near = rotary(found, layer_type="near", base_key="rope_local_base_freq", scaled=False)
    assert rotary(found, layer_type="far") == ef.Rotary(base=1e6, scaling=ef.LinearScaling(8.0))
    assert near == ef.Rotary(base=1e4)
    assert found.unread() == ["max_position_embeddings"]


def test_what_nothing_says_is_the_architecture_s():
    assert rotary(settings(), base=123.0) == ef.Rotary(base=123.0)
    assert rotary(settings(rope_parameters={"rope_type": "default"}), base=123.0).base == 123.0
    for lacking in ({}, {"far": {"rope_theta": 7.0}}, {"near": None, "far": {}}):
        found = settings(rope_parameters=lacking)
        assert rotary(found, layer_type="near", base=123.0) == ef.Rotary(base=123.0)


def test_the_new_words_come_before_a_base_at_the_top():
    found = settings(rope_theta=7.0, rope_parameters={"rope_theta": BASE})
    assert rotary(found).base == BASE


def test_a_factor_that_is_left_out_is_the_ratio_of_the_lengths():
    for kind in ("longrope", "su"):
        words = {"type": kind, **DIVISORS}
        found = settings(rope_scaling=words, original_max_position_embeddings=1024)
        assert rotary(found).scaling == ef.LongRoPE(SHORT, LONG, 1024, 4.0)
    found = settings(rope_scaling={"type": "yarn", "factor": None, **ORIGINAL})
    assert rotary(found).scaling == ef.YaRN(4.0, 1024)


def test_the_length_of_the_training_stands_at_the_top_inside_or_is_the_length():
    words = {"rope_type": "yarn", "factor": 2.0}
    for outer, inner, wanted in ((256, 512, 256), (None, 512, 512), (None, None, LENGTH)):
        key = "original_max_position_embeddings"
        given = {**words, **({} if inner is None else {key: inner})}
        found = settings(rope_parameters=given, **({} if outer is None else {key: outer}))
        assert rotary(found).scaling == ef.YaRN(2.0, wanted)


def test_mscale_is_the_magnitude_of_yarn_relative_to_all_numbers():
    """`(0.1 mscale ln(factor) + 1) / (0.1 mscale_all_dim ln(factor) + 1)`, `ln(factor)` being 2."""
    e2 = 7.38905609893065
    words = {"type": "yarn", "factor": e2, "mscale": 2.0, "mscale_all_dim": 1.0, **ORIGINAL}
    scaling = rotary(settings(rope_scaling=words)).scaling
    assert scaling is not None
    assert scaling.magnitude() == pytest.approx(1.4 / 1.2, rel=1e-12)
    one = rotary(settings(rope_scaling={**words, "mscale_all_dim": 0.0})).scaling
    assert one is not None
    assert one.magnitude() == pytest.approx(1.2, rel=1e-12)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rope_scaling": {"type": "mrope"}}, "`rope_type` must be one of default, linear"),
        ({"rope_scaling": {"type": "linear"}}, "lacks `factor`"),
        ({"rope_scaling": {"type": "linear", "factor": "four"}}, "`factor` must be a finite num"),
        ({"rope_scaling": ["linear"]}, "`rope_scaling` must be an object"),
        ({"rope_parameters": 1e4}, "`rope_parameters` must be an object"),
        ({"rope_parameters": {"near": {}, "far": {}}}, "one object for all layers"),
        ({"rope_parameters": {"near": {}, "rope_theta": 1.0}}, "one object for all layers"),
        (
            {"rope_scaling": {"factor": 2.0}, "rope_parameters": {"factor": 3.0}},
            "`rope_scaling` must be what `rope_parameters` says",
        ),
    ],
)
def test_a_mistake_in_the_words_is_an_error_that_names_it(values, message):
    with pytest.raises(CheckpointError, match=message):
        rotary(settings(**values))


def test_words_for_all_layers_do_not_do_where_types_differ():
    found = settings(rope_parameters={"rope_type": "default", "rope_theta": BASE})
    with pytest.raises(CheckpointError, match="one object per type of layer"):
        rotary(found, layer_type="near")


def test_a_scaling_of_one_s_own_has_no_words():
    class Halved(ef.Scaling):
        pass

    with pytest.raises(ValueError, match="no `config.json` has words for Halved"):
        describe_rotary(ef.Rotary(scaling=Halved()))
