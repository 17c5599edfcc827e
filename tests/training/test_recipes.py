import codecs

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqxformer.checkpoints.native import shapes
from eqxformer.config import Config
from eqxformer.data.characters import Characters
from eqxformer.data.corpus import Corpus
from eqxformer.data.subwords import ByteLevelBPE, Unigram, WordBPE
from eqxformer.data.windows import Epochs
from eqxformer.generation import Greedy, Sample
from eqxformer.inspect.table import count
from eqxformer.layers import Experts, GatedMLP
from eqxformer.losses.scores import TokenScores
from eqxformer.losses.tokens import NextToken, SequenceToSequence
from eqxformer.models import families
from eqxformer.training.callbacks import evaluator
from eqxformer.training.experiment import Experiment, Request
from eqxformer.training.recipes import RECIPES, language_model, recipe
from eqxformer.training.recipes.language_model import TextLM, continued
from eqxformer.training.recipes.nanogpt import experiment as nanogpt
from eqxformer.training.recipes.rot13 import (
    END,
    LETTERS,
    START,
    RandomWords,
    Rot13,
    answer,
    pairs,
    spell,
)
from eqxformer.training.recipes.shakespeare import experiment as shakespeare
from eqxformer.training.recipes.text import experiment as text
from eqxformer.training.recipes.vpj import experiment as vpj
from tests.helpers.models import filled

CORPUS = Corpus("numbers", " ".join(map(str, range(2000))) + " The It \n")
SUGGESTIONS = {"text": text, "vpj": vpj, "nanogpt": nanogpt, "shakespeare": shakespeare}
LETTERS_ALONE = Rot13().tokenizer


def word(ids):
    return "".join(LETTERS_ALONE.alphabet[i - LETTERS] for i in ids if i >= LETTERS)


def test_the_recipes_are_known_by_name():
    assert list(RECIPES) == [
        *("text", "rot13", "vpj", "nanogpt", "shakespeare"),
        *("translate", "mlm", "denoise", "finetune"),
    ]
    assert recipe("rot13").name == "rot13"
    with pytest.raises(ValueError, match=r"no recipe `rot12`; the recipes are text, rot13, vpj"):
        recipe("rot12")


@pytest.mark.parametrize("name", ["rot13", *SUGGESTIONS])
def test_every_experiment_survives_json_and_suits_its_own_data(name):
    task = Rot13() if name == "rot13" else TextLM(CORPUS, SUGGESTIONS[name])
    task.check(task.experiment)
    assert Config.from_json(task.experiment.to_json()) == task.experiment
    assert count(shapes(task.experiment.model)) > 0


@pytest.mark.parametrize("name", ["rot13", *SUGGESTIONS])
def test_every_recipe_differentiates_its_loss_on_its_own_batches(name):
    task = Rot13() if name == "rot13" else TextLM(CORPUS, SUGGESTIONS[name])
    experiment = task.experiment.edit("data", batch=2)
    model, batch = shapes(experiment.model), task.batches(experiment)(0)
    loss = eqx.filter_value_and_grad(lambda m, b: experiment.loss(m, b).mean)
    value, gradients = eqx.filter_eval_shape(loss, model, batch)
    assert value.shape == ()
    arrays, slopes = (
        jax.tree.leaves(eqx.filter(tree, eqx.is_array_like)) for tree in (model, gradients)
    )
    assert [a.shape for a in arrays] == [s.shape for s in slopes]


def test_vpj_has_the_sizes_of_the_original():
    tokenizer = Characters("".join(map(chr, range(32, 97))))  # 65 characters, as tinyshakespeare
    tokens = np.zeros(1_003_855, np.int32)  # nine tenths of it
    made = vpj(tokenizer, tokens)
    assert made.data == Epochs(length=32, batch=128)
    assert made.steps == -(-32 * (1_003_854 // 32) // 128)
    block = 4 * (128 * 128 + 128) + (128 * 512 + 512) + (512 * 128 + 128) + 4 * 128
    tables = 65 * 128 + 32 * 128
    assert count(shapes(made.model)) == tables + 3 * block + 2 * 128 + 128 * 65
    model = made.model.build(key=jax.random.key(0))
    assert not np.any(np.asarray(model.embedding.positions.weight))
    assert model.embedding.scale == pytest.approx(128**-0.5)


def test_nanogpt_has_the_sizes_of_the_original():
    tokenizer = Characters("".join(map(chr, range(32, 97))))
    model = nanogpt(tokenizer, np.zeros(10, np.int32)).model.build(key=jax.random.key(0))
    block = 12 * 128 * 128 + 2 * 128
    assert count(model) == 65 * 128 + 64 * 128 + 4 * block + 128
    up, out = model.blocks[0].feed_forward.up, model.blocks[3].attention.out
    np.testing.assert_allclose(np.std(np.asarray(up.weight)), 0.02, rtol=0.02)
    writes = 0.02 / np.sqrt(2 * 4)
    np.testing.assert_allclose(np.std(np.asarray(out.weight)), writes, rtol=0.02)


def test_shakespeare_has_the_sizes_of_the_original():
    tokenizer = Characters("".join(map(chr, range(32, 97))))
    made = shakespeare(tokenizer, np.zeros(10, np.int32))
    model = shapes(made.model)
    # What the original prints: "number of parameters: 10.65M", without those of positions.
    assert count(model) - count(model.embedding.positions) == 10_646_784
    block = made.model.blocks[0]
    rates = (block.attention.dropout, block.attention_residual.dropout)
    assert (*rates, block.feed_forward_residual.dropout, made.model.embedding.dropout) == (0.2,) * 4
    assert (made.data.batch, made.data.length, made.steps) == (64, 256, 5000)


def small(context=8):
    config = families.gpt(vocab=5, dim=8, layers=1, heads=2, context=context)
    return filled(config), Characters("abcde")


@pytest.mark.parametrize("prompt", ["a", "abcdeabc", "abcdeabcdeabcdeabcde"])
def test_a_text_goes_on_for_as_long_as_asked_whatever_the_context(prompt):
    model, tokenizer = small()
    options = {"context": 8, "sampler": Sample(1.0)}
    out = "".join(continued(model, tokenizer, prompt, count=21, key=jax.random.key(1), **options))
    assert out.startswith(prompt)
    assert len(out) == len(prompt) + 21
    again = "".join(continued(model, tokenizer, prompt, count=21, key=jax.random.key(1), **options))
    other = "".join(continued(model, tokenizer, prompt, count=21, key=jax.random.key(2), **options))
    assert out == again != other


def test_within_its_context_a_text_goes_on_as_the_model_says():
    model, tokenizer = small(context=40)
    pieces = continued(
        model, tokenizer, "abc", count=10, context=40, sampler=Greedy(), key=jax.random.key(0)
    )
    ids = tokenizer.encode("".join(pieces))
    assert len(ids) == 3 + 10
    # A causal model's logits for the whole text are those for each of its beginnings.
    following = np.asarray(eqx.filter_jit(model)(jnp.asarray(ids))).argmax(axis=-1)
    np.testing.assert_array_equal(ids[3:], following[2:-1])


def test_the_final_loss_is_plain_cross_entropy_also_of_a_mixture_of_experts():
    task = TextLM(CORPUS, text)
    experts = Experts.Config(expert=GatedMLP.Config(hidden=8), count=4, top=2)
    blocks = task.experiment.model.blocks[:1]
    experiment = task.experiment.edit("model", dim=8, blocks=blocks).edit("data", length=16)
    experiment = experiment.edit("model.blocks.*", feed_forward=experts)
    model = filled(experiment.model)
    found = task.evaluate(model, experiment)["final_validation_loss"]
    batches = task.validation(experiment, most=None)
    assert found == float(evaluator(TokenScores())(model, batches).mean)
    assert found < float(evaluator(NextToken())(model, batches).mean) - 1e-3
    assert "between inf equally likely" in task.conclude({"final_validation_loss": 1e3}, experiment)


def test_what_a_recipe_counts_in_tokens_follows_the_tokens():
    wanted = vpj(Characters("ab"), np.zeros(10, np.int32)).edit(tokenizer=ByteLevelBPE(300))
    task = TextLM(CORPUS, vpj)
    made = task.fitted(task.experiment.edit(tokenizer=ByteLevelBPE(300), sample_every=7))
    assert made.model.vocab == task.tokenizer.vocab > len(set(CORPUS.text))
    assert made.steps == wanted.data.steps(task.training, 32) < TextLM(CORPUS, vpj).experiment.steps
    assert (made.validate_every, made.sample_every) == (wanted.data.steps(task.training, 1), 7)


def test_a_vocabulary_that_a_run_has_learned_is_not_learned_again(monkeypatch):
    task, known = TextLM(CORPUS, text), ByteLevelBPE(270).train(["1 2 3"])
    asked = task.experiment.edit(tokenizer=Unigram(300))
    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: 2)
        with pytest.raises(ValueError, match="Each process would learn another vocabulary with Un"):
            task.fitted(asked)
        task.fitted(task.experiment.edit(tokenizer=ByteLevelBPE(270)))
    task = TextLM(CORPUS, text)
    task.known = known
    assert task.fitted(asked).model.vocab == known.vocab
    assert task.tokenizer == known


def test_a_checkpoint_needs_room_for_the_ids_of_the_text_alone():
    task = TextLM(CORPUS, text)
    task.take(Characters.of(CORPUS.text + "\uffff"))
    known = task.experiment.edit(checkpoint="somewhere")
    for rows in (task.tokenizer.vocab - 1, task.tokenizer.vocab + 9):
        task.check(known.edit("model", vocab=rows))
    with pytest.raises(ValueError, match="`model.vocab` must be the number of different"):
        task.check(known.edit("model", vocab=task.tokenizer.vocab - 2))


@pytest.mark.parametrize("training", [ByteLevelBPE(262), WordBPE(40), Characters])
def test_pieces_joined_are_the_text_of_all_tokens(training, monkeypatch):
    text, prompt = "a man 日本 rides a bike, été", "a man"
    tokenizer = Characters.of(text) if training is Characters else training.train([text] * 3)
    ids, known = (tokenizer.encode(each).tolist() for each in (text, prompt))
    assert ids[: len(known)] == known
    left = ids[len(known) :]

    def write(model, rows, *, max_new_tokens, **options):
        assert rows[0] == ids[: len(ids) - len(left)][-6:]
        new = left[:max_new_tokens]
        del left[:max_new_tokens]
        return [new]

    monkeypatch.setattr(language_model, "generate", write)
    options = {"count": len(left), "context": 8, "sampler": Greedy(), "key": jax.random.key(0)}
    pieces = list(continued(None, tokenizer, prompt, **options))
    assert pieces[0] == prompt
    assert "".join(pieces) == text
    assert not left
    assert "\ufffd" not in "".join(pieces)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (("data", {"length": 2000}), "both parts need more than the 2000 of a window"),
        (("model", {"vocab": 9}), "`model.vocab` must be the number of different characters"),
        (("data", {"length": 65}), r"`data\.length` may be at most the model's 64 positions"),
        (("", {"prompt": "é"}), "outside the alphabet: 'é'"),
        (("", {"prompt": ""}), "`prompt` must have at least one character"),
    ],
)
def test_experiments_that_the_text_does_not_allow_are_refused(edit, message):
    task = TextLM(CORPUS, nanogpt)
    path, changes = edit
    with pytest.raises(ValueError, match=message):
        task.check(task.experiment.edit(path, **changes))


def test_a_text_without_the_characters_of_the_prompt_begins_with_its_own():
    task = TextLM(Corpus("kana", "あいうえお" * 400), text)
    assert task.experiment.prompt == "あ"
    task.check(task.experiment)


@pytest.mark.parametrize("field", ["steps", "validate_every", "sample_every"])
def test_counts_of_an_experiment_are_positive(field):
    with pytest.raises(ValueError, match=f"`{field}` must be at least 1; got 0"):
        Rot13().experiment.edit(**{field: 0})


def test_uses_of_randomness_have_different_roots():
    experiment = Rot13().experiment
    roots = {
        tuple(jax.random.key_data(experiment.key(use)).tolist())
        for use in ("model", "steps", "samples")
    }
    assert len(roots) == 3


@pytest.mark.parametrize("wrong", [{"max_new_tokens": 0}, {"seed": -1}])
def test_requests_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be at least"):
        Request("a", Greedy(), **wrong).check()


def test_words_and_answers_are_rot13_of_each_other():
    words = RandomWords()
    batch = words.build(words.unseen())(3)
    for source, target in zip(batch.source, batch.target, strict=True):
        assert target[0] == START
        assert word(target) == codecs.encode(word(source), "rot13")


def test_every_word_ends_and_its_end_is_learned_but_not_what_is_behind():
    words = RandomWords()
    batch = words.build(words.unseen())(0)
    for source, valid, weights in zip(
        batch.source, batch.source_valid, batch.target_weights, strict=True
    ):
        length = int((source != END).sum())
        assert 1 <= length <= 15
        assert source[length] == END
        assert valid.sum() == length + 1
        assert weights.sum() == length + 2  # the start token, the letters, the end


def test_unseen_words_are_never_shown():
    words = RandomWords(longest=3, batch=500)
    unseen = words.unseen()
    kept_back = {word(ids) for ids in unseen}
    batches = words.build(unseen)
    assert len(kept_back) == len(unseen)
    shown = {word(ids) for step in range(20) for ids in batches(step).source}
    assert len(shown) > 1000
    assert not shown & kept_back


def test_a_thousand_words_of_every_length_are_kept_back():
    unseen = RandomWords().unseen()
    assert unseen.shape == (1000, 16)
    assert {len(word(ids)) for ids in unseen} == set(range(1, 16))
    np.testing.assert_array_equal(unseen, RandomWords().unseen())


def test_batches_of_words_are_a_pure_function_of_seed_and_step():
    words = RandomWords(batch=4)
    one, two = words.build(words.unseen(), seed=1), words.build(words.unseen(), seed=1)
    np.testing.assert_array_equal(one(5).source, two(5).source)
    assert (one(5).source != one(6).source).any()
    assert (one(5).source != words.build(words.unseen(), seed=2)(5).source).any()


@pytest.mark.parametrize("wrong", ["Hey", "a-b", "abcdefghijklmnop"])
def test_what_is_no_word_cannot_be_spelled(wrong):
    with pytest.raises(ValueError, match=r"alphabet|15 letters"):
        spell([wrong], LETTERS_ALONE, 15)


def test_an_untrained_model_answers_something_for_every_word():
    config = families.transformer(vocab=28, dim=8, layers=1, heads=2, hidden=8)
    answers = answer(filled(config), ["hey", "a"], LETTERS_ALONE, 15)
    assert len(answers) == 2
    assert all(len(given) <= 16 for given in answers)


def test_one_letter_pairs_are_spelled_out():
    batch = pairs(spell(["a"], LETTERS_ALONE, 3))
    assert batch.source.tolist() == [[2, 0, 0, 0]]
    assert batch.target.tolist() == [[1, 15, 0, 0, 0]]
    assert batch.source_valid.tolist() == [[True, True, False, False]]
    assert batch.target_weights.tolist() == [[True, True, True, False, False]]


def test_losses_of_recipes_match_their_models():
    assert isinstance(Rot13().experiment.loss, SequenceToSequence)
    assert isinstance(TextLM(CORPUS, text).experiment.loss, NextToken)
    assert isinstance(Rot13().experiment, Experiment)
