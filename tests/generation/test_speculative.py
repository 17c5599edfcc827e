"""Speculation changes the time and nothing else: the text is that of `generate`."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from tests.generation.small import shallow, small
from tests.generation.speculation import (
    CHANCE,
    NEW,
    OTHERS,
    PROMPTS,
    VARIED,
    assert_some_were_kept_and_some_not,
    both,
    built,
    nudged,
)
from tests.helpers.models import (
    VOCAB,
    block,
    close,
    decoder,
    extend,
    filled,
    logits,
    tokens,
)

# The text is that of `generate`


@pytest.mark.parametrize("name", ["small llama", "small gemma"])
def test_greedy_text_with_a_draft_model_is_that_of_generate(name):
    """Also through windows, of which a rejected token has overwritten nothing that is needed."""
    text, made = both(name, ef.DraftModel(nudged(name), ahead=3))
    assert made.tokens == text
    assert_some_were_kept_and_some_not(made)
    assert made.passes < NEW - 1


def test_a_draft_model_proposes_what_it_would_write_itself_whatever_was_rejected_before():
    """So that its own cache goes back too: every beginning of the text, continued by the draft."""
    draft, ahead = nudged("small gemma"), 3
    made = both("small gemma", ef.DraftModel(draft, ahead))[1]
    lengths = range(1, NEW)
    begun = [p + t[:n] for p, t in zip(PROMPTS, made.tokens, strict=True) for n in lengths]
    guesses = iter(ef.generate(draft, begun, max_new_tokens=ahead, sampler=VARIED))
    for row, text in enumerate(made.tokens):
        guess, length, proposed, accepted = dict(zip(lengths, guesses, strict=False)), 1, 0, 0
        while length < NEW:
            room = min(ahead, NEW - length - 1)
            pairs = zip(guess[length][:room], text[length:], strict=False)
            kept = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
            proposed, accepted, length = proposed + room, accepted + kept, length + kept + 1
        assert (made.proposed[row], made.accepted[row]) == (proposed, accepted)


def test_text_drawn_with_prompt_lookup_is_that_of_generate_for_the_same_key():
    """Also with a source, which is looked through as well."""
    options = {"sampler": ef.Sample(0.3), "start": [[2], [3, 4], [5]], "key": jax.random.key(2)}
    text, made = both("small t5", ef.PromptLookup(ngram=2, ahead=3), **options)
    assert made.tokens == text
    assert_some_were_kept_and_some_not(made)


@pytest.mark.parametrize("alone", [False, True], ids=["reads the source", "knows the target"])
def test_an_encoder_decoder_has_a_draft_of_its_kind_or_a_decoder(alone):
    draft = nudged("small llama") if alone else nudged("small t5", 0.1)
    text, made = both("small t5", ef.DraftModel(draft, ahead=3), start=(2, 3))
    assert made.tokens == text
    assert alone or made.accepted.sum() > 0


@pytest.mark.parametrize("named", ["prompt lookup", "draft model"])
def test_counts_stay_in_32_bits_where_jax_has_64(named):
    """Types are mixed there as outside of tests: whole numbers of Python are 64 bits long."""
    draft = ef.PromptLookup(ahead=3) if named == "prompt lookup" else nudged("small gpt")
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        text, made = both("small gpt", draft, PROMPTS[:2], max_new_tokens=5)
    assert made.tokens == text


def test_padding_on_either_side_changes_nothing():
    ids = np.array([[1, 2, 3, 4, 5], [6, 7, 8, -1, -1], [-1, -1, -1, 9, 10]])
    draft = ef.DraftModel(nudged("small llama"), ahead=3)
    text, made = both("small llama", draft, jnp.asarray(ids), valid=jnp.asarray(ids >= 0))
    np.testing.assert_array_equal(made.tokens, text)


class Following(ef.Processor):
    """Forbids the remainder by three of the sum of all new tokens, which it remembers."""

    total: ef.Memory = ef.Memory(None)

    def begin(self, rows):
        return Following(ef.Memory(jnp.zeros(rows, jnp.int32)))

    def after(self, tokens):
        return Following(ef.Memory(self.total.value + tokens))

    def __call__(self, logits, seen=None):
        ids = jnp.arange(logits.shape[-1])[None] % 3
        return jnp.where(ids == self.total.value[:, None] % 3, -jnp.inf, logits)


class Enough(ef.Stop):
    """Finished when the new tokens make up so much, which it remembers."""

    most: int = eqx.field(static=True)
    total: ef.Memory = ef.Memory(None)

    def begin(self, rows):
        return Enough(self.most, ef.Memory(jnp.zeros(rows, jnp.int32)))

    def after(self, tokens):
        return Enough(self.most, ef.Memory(self.total.value + tokens))

    def reached(self, seen):
        return self.total.value >= self.most


def long_enough(seen):
    return seen.length >= 12


@pytest.mark.parametrize("draft", ["looks", "reads"])
def test_processors_and_stops_see_the_real_text_at_every_proposed_place(draft):
    other = nudged("small llama", 0.1)
    draft = ef.PromptLookup(1, 3) if draft == "looks" else ef.DraftModel(other, 3)
    sampler = Following() | ef.RepetitionPenalty(1.3) | ef.Greedy()
    stop = Enough(50) | ef.StopIds(2) | ef.StopWhen(long_enough)
    text, made = both("small llama", draft, sampler=sampler, stop=stop)
    assert made.tokens == text
    assert len({len(row) for row in text}) > 1
    assert 0 < made.accepted.sum() < made.proposed.sum()


def test_a_stop_inside_a_proposal_ends_the_row_there_and_others_go_on():
    """The draft is the model itself, whose proposals all fit until a row is finished."""
    draft, prompts = ef.DraftModel(built("small llama"), ahead=3), tokens(3, 4, seed=4)
    free, made = both("small llama", draft, prompts)
    np.testing.assert_array_equal(made.tokens, free)
    assert made.acceptance == 1
    assert made.passes == 3  # of 3 + 1 tokens, after the first, and the last of one less
    lengths = {int(t): _lengths(free, t) for t in np.unique(free)}
    # After the first token, passes of 3 + 1: a stop in the second place was proposed.
    stop = next(t for t, (first, *_) in lengths.items() if first == 2)
    made = ef.generate_speculative(
        built("small llama"), prompts, draft=draft, max_new_tokens=NEW, sampler=VARIED, stop=stop
    )
    assert max(lengths[stop]) > 4
    for row, length in enumerate(lengths[stop]):
        np.testing.assert_array_equal(made.tokens[row, :length], free[row, :length])
        assert (np.asarray(made.tokens[row, length:]) == stop).all()
    assert (made.accepted[0], made.proposed[0]) == (1, 3)


def _lengths(rows, stop):
    """How long each row is with its first `stop`."""
    found = np.asarray(rows) == stop
    return [int(np.argmax(row)) + 1 if row.any() else NEW for row in found]


class Stubborn(ef.Draft):
    """A draft of one's own, always of the same tokens."""

    ids: tuple[int, ...] = eqx.field(static=True)

    @property
    def ahead(self):
        return len(self.ids)

    def propose(self, memory, seen, room, sampler, keys):
        rows = seen.length.shape[0]
        proposal = jnp.broadcast_to(jnp.array(self.ids)[None], (rows, self.ahead))
        return ef.Proposal(proposal, jnp.full(rows, self.ahead), None), memory


def test_a_draft_of_ones_own_may_propose_what_there_is_not():
    text, made = both("small llama", Stubborn((3, VOCAB, 3)))
    assert made.tokens == text
    assert (made.proposed <= made.passes).all()  # one token a pass, up to the one that is none


class Listed(ef.Draft):
    """A draft of one's own that proposes what follows in a table, which it keeps."""

    following: jax.Array
    ahead: int = eqx.field(static=True, default=1)

    def begin(self, model, given, slots, new, chunk):
        return self.following

    def propose(self, memory, seen, room, sampler, keys):
        return ef.Proposal(memory[seen.newest()][:, None], room, None), memory


def test_what_a_draft_keeps_is_there_for_the_next_text_too():
    draft = Listed(jnp.asarray(np.arange(VOCAB, dtype=np.int32)[::-1]))
    first, again = (both("small llama", draft, max_new_tokens=4) for _ in range(2))
    assert first[1].tokens == again[1].tokens == first[0]
    np.testing.assert_array_equal(draft.following, np.arange(VOCAB)[::-1])


class Noted(ef.DraftModel):
    """A draft model of one's own that hands an array that it keeps to the loop as well."""

    note: jax.Array

    def __init__(self, model, ahead, note):
        super().__init__(model, ahead)
        self.note = note

    def begin(self, model, given, slots, new, chunk):
        return super().begin(model, given, slots, new, chunk), self.note

    def propose(self, memory, seen, room, sampler, keys):
        proposal, own = super().propose(memory[0], seen, room, sampler, keys)
        return proposal, (own, memory[1] + 1)

    def back_to(self, memory, length):
        return super().back_to(memory[0], length), memory[1]


def test_what_a_draft_model_of_ones_own_keeps_is_there_for_the_next_text_too():
    draft = Noted(nudged("small llama"), 3, jnp.zeros(3, jnp.int32))
    first, again = (both("small llama", draft, max_new_tokens=4) for _ in range(2))
    assert first[1].tokens == again[1].tokens == first[0]
    assert draft.note.tolist() == [0, 0, 0]


# Going back


@pytest.mark.parametrize("name", ["gemma", *OTHERS])
def test_what_is_taken_back_leaves_no_trace_in_any_layout(name):
    """Four tokens, five more of which 5, 1 and 3 are taken back, and others in their place."""
    ids, kept = np.asarray(tokens(3, 12)), np.array([4, 8, 6], np.int32)
    right = np.arange(4, 9)[None] < kept[:, None]
    second = np.where(right, ids[:, 4:9], tokens(3, 5, seed=1))
    rest = np.take_along_axis(ids, kept[:, None] + np.arange(4)[None], axis=1)
    cache = built(name).init_cache((3,), 12).emptied(5)
    _, cache = extend(built(name), jnp.asarray(ids[:, :4]), cache)
    _, cache = extend(built(name), jnp.asarray(second), cache)
    cache = cache.back_to(jnp.asarray(kept))
    np.testing.assert_array_equal(cache.length, kept)
    out, _ = extend(built(name), jnp.asarray(rest), cache)
    out, whole = np.asarray(out), np.asarray(logits(built(name), jnp.asarray(ids)))
    for row, begin in enumerate(kept.tolist()):
        close(out[row], whole[row, begin : begin + 4])


# Limits and mistakes


def test_neither_the_positions_of_the_model_nor_the_slots_are_passed():
    """A table of positions that ends where the text does: the twelfth new token is never read."""
    cut = eqx.tree_at(
        lambda m: m.embedding.positions.weight, built("small gpt"), replace_fn=lambda w: w[:16]
    )
    short = ef.rebuild(cut, shallow("gpt").edit("embedding.positions", length=16))
    options = {"draft": ef.DraftModel(short, ahead=3), "sampler": VARIED}
    text = ef.generate(built("small gpt"), PROMPTS, max_new_tokens=NEW, sampler=VARIED)
    made = ef.generate_speculative(short, PROMPTS, max_new_tokens=NEW, slots=17, **options)
    assert made.tokens == text
    assert made.acceptance == 1
    with pytest.raises(ValueError, match="has 16 positions, so that after 5 tokens"):
        ef.generate_speculative(short, PROMPTS, max_new_tokens=13, **options)
    with pytest.raises(ValueError, match="The draft's positions are 16; it has to read 17"):
        ef.generate_speculative(built("small gpt"), PROMPTS, max_new_tokens=13, **options)


@pytest.mark.parametrize("new", [0, 1])
def test_without_room_for_a_proposal_nothing_is_proposed(new):
    draft = ef.DraftModel(nudged("small llama"), ahead=3)
    text, made = both("small llama", draft, max_new_tokens=new)
    assert made.tokens == text
    assert made.proposed.tolist() == [0, 0, 0]
    assert (made.passes, made.acceptance) == (0, 0.0)


def test_a_row_without_a_token_to_choose_is_an_error():
    def forbid(logits, seen):
        return jnp.where((seen.length >= 7)[:, None], -jnp.inf, logits)

    with pytest.raises(ValueError, match="Row 0 has no token to choose"):
        ef.generate_speculative(
            built("small llama"),
            PROMPTS,
            draft=ef.PromptLookup(1, 3),
            max_new_tokens=3,
            sampler=ef.Process(forbid) | ef.Greedy(),
        )


class Counter(ef.AbstractBlock):
    """A block that remembers how many tokens there were, and cannot go back."""

    class Config(ef.AbstractBlock.Config):
        def build(self, dim, *, source_dim=None, key):
            return Counter()

    def run(self, x, context, *, cache=None, key=None):
        return x, None if cache is None else cache + x.shape[-2], None

    def init_cache(self, batch, slots, *, source=None, dtype=jnp.float32):
        return jnp.zeros(batch, jnp.int32)


def test_a_block_of_ones_own_that_cannot_go_back_is_not_implemented():
    own = filled(decoder(block({}), Counter.Config()))
    message = "Group 1 of the blocks remembers its tokens in `.*`, which cannot go back; supported"
    with pytest.raises(NotImplementedError, match=message):
        ef.generate_speculative(own, PROMPTS, draft=ef.PromptLookup(), max_new_tokens=3)


@pytest.mark.parametrize(
    ("name", "draft", "message"),
    [
        ("llama", "four ids", "The draft's vocabulary must be the model's; got 4 and 13 ids."),
        ("llama", "t5", "The draft is an encoder-decoder, and the model has no source."),
        ("t5", "transformer", "The draft's vocabulary must be the model's; got 11 and 13 ids."),
    ],
)
def test_a_draft_that_cannot_read_what_the_model_reads_is_refused(name, draft, message):
    other = filled(CHANCE) if draft == "four ids" else small(draft)
    options = {"draft": ef.DraftModel(other, ahead=3), "max_new_tokens": 3}
    options |= {"start": 1} if name == "t5" else {}
    with pytest.raises(ValueError, match=message):
        ef.generate_speculative(small(name), PROMPTS, **options)


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="`ahead` must be positive; got 0."):
        ef.PromptLookup(ahead=0)
    with pytest.raises(ValueError, match="`ahead` must be positive; got -1."):
        ef.DraftModel(built("small llama"), ahead=-1)
    with pytest.raises(ValueError, match="`ngram` must be positive; got 0."):
        ef.PromptLookup(ngram=0)
