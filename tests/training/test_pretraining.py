"""The recipes `mlm` and `denoise`: their data, their samples, and what they refuse."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.config import Config
from eqxformer.data.corpus import Corpus
from eqxformer.generation import Greedy
from eqxformer.training.experiment import Request
from eqxformer.training.recipes import denoise, mlm
from eqxformer.training.recipes.pretraining import Pretraining, check_prompt
from eqxformer.training.start import Start
from tests.helpers.compare import same_bits
from tests.helpers.models import filled

CORPUS = Corpus("numbers", " ".join(map(str, range(2500))) + " The for statement is used\n")
MODULES = {"mlm": mlm, "denoise": denoise}


def task(name, corpus=CORPUS):
    module = MODULES[name]
    return Pretraining(corpus, module.experiment, module.SPECIAL, module.fill)


def small(name):
    """The task, its experiment with a tiny model, and that model."""
    made = task(name)
    path = {"mlm": "encoder", "denoise": "*"}[name]
    experiment = made.experiment.edit(f"model.{path}", dim=8).edit("data", batch=2)
    return made, experiment, filled(experiment.model)


@pytest.mark.parametrize("name", MODULES)
def test_an_experiment_survives_json_and_differentiates_its_loss_on_its_own_batches(name):
    made = task(name)
    made.check(made.experiment)
    assert Config.from_json(made.experiment.to_json()) == made.experiment
    experiment = made.experiment.edit("data", batch=2)
    model, batch = ef.shapes(experiment.model), made.batches(experiment)(0)
    loss = eqx.filter_value_and_grad(lambda m, b: experiment.loss(m, b).mean)
    value, gradients = eqx.filter_eval_shape(loss, model, batch)
    assert value.shape == ()
    assert ef.count(gradients) == ef.count(model)


@pytest.mark.parametrize("name", MODULES)
def test_the_final_loss_is_plain_cross_entropy_whatever_the_objective_adds(name):
    made, experiment, model = small(name)
    plain = made.evaluate(model, experiment)
    more = experiment.edit("loss", label_smoothing=0.3, z_loss=0.1)
    assert made.evaluate(model, more) == plain


def test_a_loss_beyond_all_numbers_is_told_all_the_same():
    made, experiment, _ = small("mlm")
    told = made.conclude({"final_validation_loss": 800.0}, experiment)
    assert "as uncertain as between inf equally likely characters" in told


@pytest.mark.parametrize("name", MODULES)
def test_what_is_validated_with_is_kept_back_and_always_the_same(name):
    made, experiment, _ = small(name)
    few, every = made.validation(experiment), made.validation(experiment, most=None)
    assert len(few) == 4 < len(every)
    again = jax.tree.leaves(made.validation(experiment))
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(few), again, strict=True))
    assert len(made.training) + len(made.kept_back) == len(CORPUS.text)


@pytest.mark.parametrize("name", MODULES)
def test_only_the_holes_of_a_prompt_are_filled(name):
    made, experiment, model = small(name)
    text = made.sample(model, experiment.edit(prompt="The f_r st__ is"), 0)
    assert text.startswith("The f")
    assert text.endswith(" is")
    assert "_" not in text
    assert set(text) <= set(made.tokenizer.alphabet)
    if name == "mlm":
        assert len(text) == len("The f_r st__ is")
        assert (text[6], text[8:10]) == ("r", "st")


def test_the_likeliest_character_is_filled_in_whatever_is_behind_the_prompt():
    made, experiment, _ = small("mlm")

    def knows_its_place(ids, *, mask):
        """Scores that name the character at each place of the alphabet, the mask above all."""
        places = jnp.arange(ids.shape[-1]) % made.tokenizer.vocab
        scores = jax.nn.one_hot(places, made.tokenizer.vocab + 1)
        return scores.at[:, -1].set(9.0)

    asked = Request("1_2_3", Greedy())
    text = mlm.fill(knows_its_place, made.tokenizer, experiment, asked)
    alphabet = made.tokenizer.alphabet
    assert text == f"1{alphabet[1]}2{alphabet[3]}3"


def test_what_stands_behind_each_sentinel_is_read_in_any_order():
    spans = ef.SpanCorruption(sentinel=99, sentinels=5, start=50, end=51)
    written = np.array([7, 98, 1, 2, 99, 3, 97, 4, 51, 51])
    assert denoise.answers(written, spans, 2) == [[3], [1, 2]]
    assert denoise.answers(written[:0], spans, 2) == [[], []]


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (("data", {"length": 2000}), "both parts need the 2000 of a window"),
        (("", {"prompt": "no hole"}), "must have a hole to fill, written `_`"),
        (("", {"prompt": "é_"}), "outside the alphabet: 'é'"),
        (("", {"prompt": "1_" * 50}), "that the model was trained on; got 100"),
    ],
)
def test_experiments_that_the_text_does_not_allow_are_refused(name, edit, message):
    made = task(name)
    path, changes = edit
    with pytest.raises(ValueError, match=message):
        made.check(made.experiment.edit(path, **changes))


def test_a_vocabulary_without_room_for_what_is_missing_is_refused():
    made = task("mlm")
    letters = made.tokenizer.vocab
    with pytest.raises(ValueError, match=f"must be {letters + 1}: .* and 1 ids for what is miss"):
        made.check(made.experiment.edit("model.encoder", vocab=letters))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "mlm",
            {"mask": 500, "masked": 1.0, "replaced": 0.0},
            "ids below the model's 27; it made 500",
        ),
        ("denoise", {"sentinels": 2}, "has 3 spans and there are 2 sentinels"),
    ],
)
def test_noise_that_the_model_has_no_ids_for_is_refused(name, changes, message):
    made = task(name)
    with pytest.raises(ValueError, match=message):
        made.check(made.experiment.edit("data.corruption", **changes))


def test_more_gaps_than_sentinels_are_refused():
    made, experiment, model = small("denoise")
    with pytest.raises(ValueError, match="may have 20 gaps; got 30"):
        made.sample(model, experiment.edit(prompt="1_" * 30), 0)


def test_another_alphabet_begins_with_its_own_text():
    made = task("mlm", Corpus("kana", "あいうえお" * 400))
    made.check(made.experiment)
    check_prompt(made.experiment.prompt, made.tokenizer, 64)


@pytest.mark.parametrize("name", MODULES)
def test_a_text_goes_on_with_the_characters_of_the_model_to_begin_from(name, tmp_path):
    _, _, model = small(name)
    ef.save(model, tmp_path)
    made = task(name, Corpus("counts", " ".join(map(str, range(900)))))
    alone = made.experiment
    known = task(name).tokenizer
    (tmp_path / "tokenizer.json").write_text(known.to_json())
    made.begin(Start(tmp_path))
    made.check(made.experiment)
    assert made.tokenizer == known
    assert made.experiment.data == task(name).experiment.data != alone.data
    assert same_bits(made.experiment.init(), model)
    words = [*"0123456789", " ", *(f"{n} " for n in range(10))]
    subwords = ef.ByteLevelBPE(vocab=270).train(words)
    (tmp_path / "tokenizer.json").write_text(subwords.to_json())
    with pytest.raises(ValueError, match="This recipe restores characters"):
        made.begin(Start(tmp_path))


def test_a_trained_mlm_is_saved_as_modernbert_and_read_again(tmp_path):
    _, experiment, model = small("mlm")
    ef.save_pretrained(model, tmp_path / "there", model_type="modernbert")
    again = ef.from_pretrained(tmp_path / "there")
    ids = jnp.asarray(np.arange(12)[None])
    found, wanted = (eqx.filter_jit(lambda m: m(ids))(m) for m in (again, model))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * float(jnp.abs(wanted).max()))
    assert isinstance(experiment.loss, ef.MaskedLM)
