"""Who proposes tokens that a model then checks several at a time: a smaller model, or the text."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from eqxformer.generation.decode import keys_of
from eqxformer.generation.following import joined, parted
from eqxformer.generation.prefill import Given, opened
from eqxformer.generation.processors import Seen, wide
from eqxformer.generation.samplers import Sampler, draw, likeliest
from eqxformer.generation.state import Model, decoder_config, positions_of
from eqxformer.layers.masks import Padding
from eqxformer.models.audio import AudioEncoder
from eqxformer.models.encoder_decoder import EncoderDecoder

Keys = Key[Array, " rows"]
PROPOSING, KEEPING, REPLACING = range(3)


class Proposal(eqx.Module):
    """Tokens that may follow in each row.

    Arguments:
        tokens: an id outside the vocabulary ends a row's proposal.
        count: how many of them are proposed.
        scores: the logits that each was drawn from; None for tokens that were not drawn.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> proposal = ef.Proposal(jnp.array([[7, 8, -1]]), count=jnp.array([2]), scores=None)
        >>> proposal.tokens.shape
        (1, 3)
    """

    tokens: Int[Array, "rows ahead"]
    count: Int[Array, " rows"]
    scores: Float[Array, "rows ahead vocab"] | None


class Draft(eqx.Module):
    """What proposes the next tokens. One of your own defines `propose`, and perhaps a memory.

    Whatever it proposes, the text stays that of the model: only the time depends on it.

    Arguments:
        ahead: how many tokens it proposes at the most.

    Example:
        >>> import equinox as eqx, eqxformer as ef, jax.numpy as jnp
        >>> class TheSameAgain(ef.Draft):
        ...     ahead: int = eqx.field(static=True, default=2)
        ...     def propose(self, memory, seen, room, sampler, keys):
        ...         newest = jnp.repeat(seen.newest()[:, None], self.ahead, axis=1)
        ...         return ef.Proposal(newest, room, None), memory
        >>> seen = ef.Seen.start(jnp.array([[1, 7]]), None, new=4)
        >>> TheSameAgain().propose(None, seen, jnp.array([2]), ef.Greedy(), None)[0].tokens
        Array([[7, 7]], dtype=int32)
    """

    ahead: eqx.AbstractVar[int]

    def begin(self, model: Model, given: Given, slots: int, new: int, chunk: int | None) -> Any:
        """What is remembered between proposals, a tree of arrays, once prompts are given.

        They are copied, so that they may be arrays that the draft holds.
        """
        return None

    @abc.abstractmethod
    def propose(
        self,
        memory: Any,
        seen: Seen,
        room: Int[Array, " rows"],
        sampler: Sampler,
        keys: Keys | None,
    ) -> tuple[Proposal, Any]:
        """At most `ahead` tokens that may follow, and what is remembered now; traced.

        Arguments:
            room: how many tokens there is room for, in each row.
            sampler: how the model's tokens are chosen, after the tokens so far.
            keys: a key per row, to be folded with a token's place; None if nothing is drawn.
        """

    def back_to(self, memory: Any, length: Int[Array, " rows"]) -> Any:
        """What is remembered of the first `length` tokens, behind which others follow."""
        return memory


class DraftModel(Draft):
    """A smaller model that proposes `ahead` tokens, one after the other (Leviathan et al. 2023).

    It chooses as the model does, with the same processors and temperature. Its vocabulary must be
    the model's. For an encoder-decoder it is another, which reads the same source, or a decoder
    that knows the target alone.

    Example:
        >>> import eqxformer as ef, jax
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=2, heads=2, context=32)
        >>> model = config.build(key=jax.random.key(0))
        >>> small = config.edit(blocks=config.blocks[:1]).build(key=jax.random.key(1))
        >>> draft = ef.DraftModel(small, ahead=3)
        >>> made = ef.generate_speculative(model, [[1, 2, 3]], draft=draft, max_new_tokens=6)
        >>> made.tokens == ef.generate(model, [[1, 2, 3]], max_new_tokens=6)
        True
    """

    model: Model
    ahead: int = eqx.field(static=True)

    def __init__(self, model: Model, ahead: int = 4):
        self.model, self.ahead = model, _positive("ahead", ahead)

    def begin(
        self, model: Model, given: Given, slots: int, new: int, chunk: int | None
    ) -> tuple[Any, Any]:
        check_draft(self.model, model, given, given.rows.longest + new)
        if isinstance(self.model, EncoderDecoder):
            # Arrays of its own: the loop writes over those of the model and those of the draft.
            given = given._replace(source_mask=jax.tree.map(jnp.copy, given.source_mask))
        else:
            given = Given(given.rows, None, None)
        state = opened(self.model, given, slots, chunk, self.ahead)
        return state.cache, state.source

    def propose(
        self,
        memory: tuple[Any, Any],
        seen: Seen,
        room: Int[Array, " rows"],
        sampler: Sampler,
        keys: Keys | None,
    ) -> tuple[Proposal, Any]:
        (cache, source), (memories, rest) = memory, parted(sampler)

        def step(carry: tuple[Any, Any, Any], number: Array) -> tuple[Any, Any]:
            seen, cache, memories = carry
            chooses = joined(memories, rest)
            reads = Padding(((room > 0) & (number <= room))[:, None])
            newest = seen.newest()[:, None]
            hidden, cache = self.model.read(newest, cache, mask=reads, source_mask=source)
            scores = chooses.process(wide(self.model.logits(hidden[:, 0])), seen)
            if keys is None:
                token = likeliest(scores)
            else:
                token = draw(scores, keys_for(PROPOSING, keys, seen))
            known = jnp.maximum(token, 0)
            carry = seen.add(known, where=number < room), cache, parted(chooses.after(known))[0]
            return carry, (token, None if keys is None else scores)

        # The last step only reads: otherwise, two tokens would be unread after all were kept.
        steps = jnp.arange(self.ahead + 1, dtype=jnp.int32)
        (_, cache, _), (tokens, scores) = jax.lax.scan(step, (seen, cache, memories), steps)
        scores = None if scores is None else jnp.swapaxes(scores[:-1], 0, 1)
        return Proposal(tokens[:-1].T, room, scores), (cache, source)

    def back_to(self, memory: tuple[Any, Any], length: Int[Array, " rows"]) -> tuple[Any, Any]:
        return memory[0].back_to(length), memory[1]


class PromptLookup(Draft):
    """What followed the last `ngram` tokens where they stood before, or fewer if they did not.

    Saxena 2023. Looked through are a row's own tokens and, for an encoder-decoder whose two sides
    have vocabularies of one size, its source. Of the longest matches the newest counts, and what
    runs into the end of the text begins anew. Costs nothing to make, and pays where a text repeats
    what it has: summaries, corrections, code.

    Example:
        >>> import eqxformer as ef, jax
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=2, heads=2, context=32)
        >>> model, draft = config.build(key=jax.random.key(0)), ef.PromptLookup(ngram=2, ahead=3)
        >>> made = ef.generate_speculative(model, [[1, 2, 3]], draft=draft, max_new_tokens=6)
        >>> made.tokens == ef.generate(model, [[1, 2, 3]], max_new_tokens=6)
        True
    """

    ngram: int = eqx.field(static=True)
    ahead: int = eqx.field(static=True)

    def __init__(self, ngram: int = 3, ahead: int = 8):
        self.ngram, self.ahead = _positive("ngram", ngram), _positive("ahead", ahead)

    def begin(
        self, model: Model, given: Given, slots: int, new: int, chunk: int | None
    ) -> tuple[Array, Array] | None:
        if not isinstance(model, EncoderDecoder) or given.source_mask is None:
            return None
        encoder = model.config.encoder
        if isinstance(encoder, AudioEncoder.Config) or encoder.vocab != model.config.decoder.vocab:
            return None
        length = given.source_mask.valid.sum(-1, dtype=jnp.int32)
        return given.source, length  # pyright: ignore[reportReturnType]

    def propose(
        self,
        memory: tuple[Array, Array] | None,
        seen: Seen,
        room: Int[Array, " rows"],
        sampler: Sampler,
        keys: Keys | None,
    ) -> tuple[Proposal, Any]:
        matched, found = self._look(seen.tokens, seen.length, seen, again=True)
        if memory is not None:
            also, other = self._look(*memory, seen, again=False)
            found = jnp.where((also > matched)[:, None], other, found)
            matched = jnp.maximum(also, matched)
        return Proposal(found, jnp.where(matched > 0, room, 0), None), memory

    def _look(
        self, text: Int[Array, "rows places"], length: Int[Array, " rows"], seen: Seen, again: bool
    ) -> tuple[Int[Array, " rows"], Int[Array, "rows ahead"]]:
        """How many tokens of each row's end stand in `text` too, and what follows them there."""
        places = jnp.arange(text.shape[1], dtype=jnp.int32)[None]
        same = jnp.broadcast_to(places < length[:, None] - 1, text.shape)
        matched = jnp.zeros(text.shape, jnp.int32)
        for back in range(self.ngram):
            at = seen.length[:, None] - 1 - back
            token = jnp.take_along_axis(seen.tokens, jnp.maximum(at, 0), axis=1)
            before = jnp.pad(text, ((0, 0), (back, 0)))[:, : text.shape[1]]
            there = jnp.broadcast_to((at >= 0) & (places >= back), text.shape)
            same = same & there & (before == jnp.broadcast_to(token, text.shape))
            matched = matched + same.astype(jnp.int32)
        longest = matched.max(-1)
        last = jnp.where(matched == longest[:, None], places, -1).max(-1, keepdims=True)
        steps = jnp.arange(self.ahead, dtype=jnp.int32)[None]
        rest = length[:, None] - 1 - last
        follow = last + 1 + (steps % jnp.maximum(rest, 1) if again else steps)
        tokens = jnp.take_along_axis(text, jnp.minimum(follow, text.shape[1] - 1), axis=1)
        return longest, jnp.where(follow < length[:, None], tokens, -1)


def as_draft(draft: Draft | Model) -> Draft:
    """A draft as it is; a model as `DraftModel`."""
    return draft if isinstance(draft, Draft) else DraftModel(draft)


def keys_for(purpose: int, keys: Keys, seen: Seen) -> Keys:
    """The keys of the next tokens' places for one of the things that are drawn there."""
    return jax.vmap(lambda key: jax.random.fold_in(key, purpose))(keys_of(keys, seen.length))  # pyright: ignore[reportArgumentType]


def check_draft(draft: Model, model: Model, given: Given, tokens: int) -> None:
    """Raises `ValueError` for a draft model that cannot read what the model reads."""
    sides = [(decoder_config(draft), decoder_config(model), tokens - 1, "")]
    if isinstance(draft, EncoderDecoder):
        if not isinstance(model, EncoderDecoder) or given.source is None:
            raise ValueError("The draft is an encoder-decoder, and the model has no source.")
        encoders = (draft.config.encoder, model.config.encoder)
        sides.append((*encoders, given.source.shape[1], "encoder's "))
    for own, main, needed, side in sides:
        vocabularies = [getattr(config, "vocab", None) for config in (own, main)]
        if vocabularies[0] != vocabularies[1]:
            raise ValueError(
                f"The draft's {side}vocabulary must be the model's; got {vocabularies[0]} and "
                f"{vocabularies[1]} ids."
            )
        room = None if vocabularies[0] is None else positions_of(own)
        if room is not None and needed > room:
            raise ValueError(f"The draft's {side}positions are {room}; it has to read {needed}.")


def _positive(name: str, number: int) -> int:
    if number < 1:
        raise ValueError(f"`{name}` must be positive; got {number}.")
    return number
