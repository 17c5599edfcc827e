"""Beam search is the search one would write with lists, for each row as if it were alone."""

import functools
import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.layers.masks import valid_keys
from tests.generation import twins
from tests.generation.beam_twin import beam_search, scorer
from tests.generation.small import shallow
from tests.helpers.hot import hot
from tests.helpers.models import VOCAB, block, decoder, filled, model

NEW = 7
PAIRS = [(3, 1.0), (3, 0.6), (4, 0.0), (4, 2.0)]
EARLY = [False, True, "never"]
PROMPTS = [[1, 2, 3, 4, 5], [6, 7, 8], [9, 10]]


@functools.cache
def llama():
    """One block, which serves where the kinds of caches are not the question."""
    return hot(filled(shallow("llama")), jax.random.key(0))


def expected(built, prompts, start=None, **options):
    """What the twin finds for each row."""
    options = {"new": NEW, "penalty": 1.0, "early": False, **options}
    return [beam_search(scorer(built, prompt, start), **options) for prompt in prompts]


def same(found, wanted):
    """Asserts that all texts are equal, and their scores equal to rounding."""
    for texts, scores, row in zip(found.tokens, found.scores, wanted, strict=True):
        assert texts == [text for _, text in row]
        np.testing.assert_allclose(scores, [score for score, _ in row], rtol=0, atol=1e-4)


def frequent(found):
    """The id that stands most often in the middle of texts."""
    middle = [token for row in found.tokens for text in row for token in text[1:-1]]
    return max(sorted(set(middle)), key=middle.count)


@pytest.mark.parametrize("early", EARLY)
@pytest.mark.parametrize(("beams", "penalty"), PAIRS)
def test_every_beam_is_that_of_the_loop_over_lists(beams, penalty, early):
    built = llama()
    options = {"beams": beams, "best": beams, "max_new_tokens": NEW}
    stop = frequent(ef.beam_search(built, PROMPTS, **options, stop=(0,)))
    found = ef.beam_search(
        built, PROMPTS, **options, stop=(stop,), length_penalty=penalty, early_stopping=early
    )
    assert any(len(text) < NEW for row in found.tokens for text in row)
    wanted = expected(built, PROMPTS, beams=beams, penalty=penalty, early=early, stop=(stop,))
    same(found, wanted)


def _mixed():
    """Windows shorter than a text, latents, experts, weights that are used twice, and scans."""
    near = {"kv_heads": 1, "head_dim": 4, "window": 3, "sinks": ef.Normal(1.0)}
    windowed = block({**near, "rotary": ef.Rotary()})
    latent = ef.LatentAttention.Config(3, latent=5, head_dim=6, rotary_dim=2)
    experts = ef.Experts.Config(count=3, top=2, expert=ef.GatedMLP.Config(hidden=5))
    return decoder(
        ef.Repeated.Config(blocks=(windowed,), times=2),
        windowed,
        windowed,
        ef.Block.Config(latent, experts),
        layout=ef.Scanned(),
    )


class Summed(ef.AbstractBlock):
    """A block that remembers the sum of what it has read: `x + mix(tanh(sum up to here))`."""

    class Config(ef.AbstractBlock.Config):
        """Nothing to choose."""

        def build(self, dim, *, source_dim=None, key):
            return Summed(ef.Linear(dim, dim, key=key))

    mix: ef.Linear

    def run(self, x, context, *, cache=None, key=None):
        real = valid_keys(context.mask)
        real = (
            jnp.ones(x.shape[:-1], bool) if real is None else jnp.broadcast_to(real, x.shape[:-1])
        )
        sums = jnp.cumsum(jnp.where(real[..., None], x, 0.0), axis=-2)
        if cache is not None:
            sums = sums + cache[..., None, :]
            cache = sums[..., -1, :]
        return x + self.mix(jnp.tanh(sums)), cache, None

    def init_cache(self, batch, slots, *, source=None, dtype=jnp.float32):
        return jnp.zeros((*batch, self.mix.weight.shape[-2]), dtype)


OTHERS = {
    "mixed": lambda: filled(_mixed()),
    "own": lambda: filled(decoder(*[Summed.Config()] * 3, layout=ef.Scanned())),
    "t5": lambda: model("t5", ef.Scanned()),
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_beam_finds_what_it_comes_from_in_caches_of_all_kinds(name):
    built, start = hot(OTHERS[name](), jax.random.key(1)), 2 if name == "t5" else None
    options = {"beams": 4, "best": 4, "max_new_tokens": NEW, "start": start}
    stop = (frequent(ef.beam_search(built, PROMPTS, **options, stop=(0,))),)
    found = ef.beam_search(built, PROMPTS, **options, stop=stop, length_penalty=0.6)
    same(found, expected(built, PROMPTS, start, beams=4, penalty=0.6, stop=stop))


def test_padding_on_either_side_and_a_batch_change_nothing():
    built = llama()
    options = {"beams": 3, "best": 3, "max_new_tokens": NEW, "stop": (4,)}
    lists = ef.beam_search(built, PROMPTS, **options)
    same(lists, expected(built, PROMPTS, beams=3, stop=(4,)))
    for left in (False, True):
        rows = np.full((3, 5), -1)
        for row, prompt in enumerate(PROMPTS):
            rows[row, slice(-len(prompt), None) if left else slice(len(prompt))] = prompt
        array = ef.beam_search(built, jnp.asarray(rows), valid=jnp.asarray(rows >= 0), **options)
        made = np.asarray(array.tokens)
        assert made.shape == (3, 3, NEW)
        for row, texts in enumerate(lists.tokens):
            for place, text in enumerate(texts):
                assert made[row, place].tolist() == text + [4] * (NEW - len(text))
        np.testing.assert_array_equal(array.scores, np.float32(lists.scores))
    for row in range(3):
        alone = ef.beam_search(built, PROMPTS[row : row + 1] * 3, **options)  # no row is any other
        assert alone.tokens == lists.tokens[row : row + 1] * 3


def test_one_beam_is_greedy():
    built = llama()
    free = ef.generate(built, PROMPTS, max_new_tokens=NEW, stop=(0,))
    stop = (free[0][4],)
    made = ef.generate(built, PROMPTS, max_new_tokens=NEW, stop=stop)
    found = ef.beam_search(built, PROMPTS, beams=1, max_new_tokens=NEW, stop=stop)
    assert [row[0] for row in found.tokens] == made
    assert len(made[0]) < NEW


def test_as_many_beams_as_there_are_texts_find_the_best_of_all():
    built = filled(shallow("llama").edit(vocab=3, head=ef.LinearHead.Config()))
    new, stop, score = 3, 2, scorer(built, [0, 1])
    found = ef.beam_search(
        built, [[0, 1]], beams=27, best=15, max_new_tokens=new, stop=stop, early_stopping="never"
    )
    every = {}
    for text in itertools.product(range(3), repeat=new):
        text = text[: text.index(stop) + 1] if stop in text else text
        rows = score([list(text[:i]) for i in range(len(text))])
        chances = [twins.softmax(row)[token] for row, token in zip(rows, text, strict=True)]
        every[text] = math.log(math.prod(chances)) / len(text)
    best = sorted(every, key=lambda text: -every[text])
    assert [tuple(text) for text in found.tokens[0]] == best
    np.testing.assert_allclose(found.scores[0], [every[text] for text in best], atol=1e-5)


# Processors and stops


def processed(row, text, prompt=(), stop=(), first=0, last=0):
    """What the processors of the next test do, one row at a time."""
    tokens = [*prompt, *text]
    row = twins.repetition(row, tokens, len(prompt), 1.7)
    row = twins.no_repeat(row, tokens, len(prompt), 2)
    row = twins.without(row, stop) if len(text) < 3 else row
    row = twins.demanded(row, [first]) if not text else row
    return twins.demanded(row, [last]) if len(text) == NEW - 1 else row


def test_processors_see_the_tokens_of_the_beams_as_they_are():
    built, stop = llama(), (4, 11)
    processor = ef.RepetitionPenalty(1.7) | ef.NoRepeatNGram(2) | ef.MinNewTokens(3, stop=stop)
    found = ef.beam_search(
        built,
        PROMPTS,
        beams=4,
        best=4,
        max_new_tokens=NEW,
        processor=processor | ef.Force({0: 5, -1: 11}),
        stop=stop,
    )
    for row, prompt in enumerate(PROMPTS):
        options = {"prompt": prompt, "stop": stop, "first": 5, "last": 11}
        wanted = expected(
            built,
            [prompt],
            beams=4,
            stop=stop,
            process=lambda numbers, text, options=options: processed(numbers, text, **options),
        )
        same(ef.Hypotheses(*(part[row : row + 1] for part in found)), wanted)


class Counted(ef.Processor):
    """Forbids the token that is as large as the sum of all before it, counted round."""

    memory: ef.Memory | None = None

    def begin(self, rows):
        return Counted(ef.Memory(jnp.zeros(rows, jnp.int32)))

    def after(self, tokens):
        return Counted(ef.Memory(self.memory.value + tokens))

    def __call__(self, logits, seen=None):
        rows = jnp.arange(logits.shape[0])
        return logits.at[rows, self.memory.value % VOCAB].set(-jnp.inf)


class Sums(ef.Stop):
    """Ends a row whose tokens sum up to 30 or more."""

    memory: ef.Memory | None = None

    def begin(self, rows):
        return Sums(ef.Memory(jnp.zeros(rows, jnp.int32)))

    def after(self, tokens):
        return Sums(ef.Memory(self.memory.value + tokens))

    def reached(self, seen):
        return self.memory.value >= 30


def test_what_processors_and_stops_remember_goes_with_the_beams():
    built = llama()
    found = ef.beam_search(
        built,
        PROMPTS,
        beams=4,
        best=4,
        max_new_tokens=NEW,
        processor=Counted(),
        stop=Sums() | ef.StopIds(4),
        length_penalty=0.0,
    )
    wanted = expected(
        built,
        PROMPTS,
        beams=4,
        penalty=0.0,
        ids=1,
        stop=lambda text: sum(text) >= 30 or text[-1] == 4,
        process=lambda row, text: twins.without(row, [sum(text) % VOCAB]),
    )
    assert any(len(text) < NEW and text[-1] != 4 for row in found.tokens for text in row)
    same(found, wanted)


class Ending(ef.Processor):
    """Nothing may come after one token."""

    token: jax.Array

    def __call__(self, logits, seen=None):
        return jnp.where(seen.newest()[:, None] == self.token, -jnp.inf, logits)


def of_two_ids(prompts, ending, stop):
    """Texts of 1 and 2 alone, in which nothing comes after `ending`."""
    others = ef.Suppress([i for i in range(VOCAB) if i not in (1, 2)])
    processor = others | Ending(jnp.asarray(np.int32(ending))) | ef.Normalize()
    options = {"beams": 4, "best": 4, "max_new_tokens": 2, "stop": stop}
    return ef.beam_search(llama(), prompts, processor=processor, **options)


def test_texts_that_are_forbidden_are_not_among_the_best():
    found = of_two_ids([[3]], ending=VOCAB, stop=1)
    assert sorted(found.tokens[0]) == [[1], [2, 1], [2, 2]]
    array = of_two_ids(np.array([[3]]), ending=VOCAB, stop=1)
    assert array.scores[0, 3] == -jnp.inf


def test_a_beam_that_runs_into_a_dead_end_leaves_the_others_what_they_have():
    found = of_two_ids([[3]], ending=2, stop=0)
    assert sorted(found.tokens[0]) == [[1, 1], [1, 2]]


# Groups


@pytest.mark.parametrize(("beams", "groups", "stop"), [(4, 2, (4,)), (3, 3, (7, 9, 12))])
def test_groups_avoid_each_others_tokens_as_lists_do(beams, groups, stop):
    built = llama()
    found = ef.beam_search(
        built,
        PROMPTS,
        beams=beams,
        best=beams,
        groups=groups,
        diversity_penalty=1.3,
        max_new_tokens=NEW,
        stop=stop,
    )
    options = {"beams": beams, "groups": groups, "diversity": 1.3, "stop": stop}
    same(found, expected(built, PROMPTS, **options))
    assert len({text[0] for text in found.tokens[0]}) > 1


# Compiling and memory


class Traced(ef.Processor):
    """Counts how often it is traced, and how often it is run."""

    number: jax.Array
    traced: list = eqx.field(static=True)

    def __call__(self, logits, seen=None):
        self.traced.append("traced")
        jax.debug.callback(lambda: self.traced.append("run"))
        return logits * self.number


class Tally(list):
    """A list that is equal to itself and hashable, as static fields must be."""

    __hash__ = object.__hash__

    def __eq__(self, other):
        return self is other


def test_other_numbers_compile_nothing_anew_and_a_loop_ends_when_all_rows_are_done():
    tally = Tally()

    def run(prompts, new, **options):
        processor = Traced(jnp.asarray(options.pop("number", 1.0)), tally)
        options = {"beams": 3, "max_new_tokens": new, "processor": processor, **options}
        return ef.beam_search(llama(), prompts, **options)

    run([[1, 2, 3], [4]], 6, stop=3)
    jax.effects_barrier()
    assert tally.count("traced") == 2  # before the loop and in it
    run([[5] * 14, [6]], 14, stop=4, length_penalty=-1.5, early_stopping=True, number=0.5)
    run([[5], [6]], 3, stop=5, early_stopping="never", length_penalty=2.0)
    assert tally.count("traced") == 2
    jax.effects_barrier()
    tally.clear()
    stop = int(scorer(llama(), [1])([[]])[0].argmax())
    found = ef.beam_search(
        llama(),
        [[1], [1]],
        beams=3,
        max_new_tokens=14,
        stop=stop,
        processor=Traced(jnp.asarray(9.0), tally),
        length_penalty=0.0,
    )
    jax.effects_barrier()
    assert tally.count("traced") == 0
    assert found.tokens[0] == [[stop]]
    assert tally.count("run") < 14
