"""The keys and values of a beam search, none of which moves when beams change places.

The beams of a row share the tokens of its prompt, and each has tokens of its own, of which all
beams write one a step, side by side. A beam that goes on from another goes on from its tokens too.
They stay where they are: a table says of each beam and step whose token is meant. Three beams after
two steps, the last of which goes on from beam 0 of the first step:

    slot            0  1  2    3  4  5    6  7  8
    token of        prompt     step 0     step 1
    written by      all beams  0  1  2    0  1  2
    beam 2 sees     ■  ■  ■    ■  ·  ·    ·  ·  ■
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from eqxformer.layers.cache import Cache, FullCache, RingCache, Seen, slot_places


class Seating(eqx.Module):
    """Whose tokens each beam goes on from, which all layers share.

    Arguments:
        owners: the beam that has written the token of each step, for each beam.
        step: the step whose tokens are read next, from 0.
        prompt: how many tokens a row's prompt has.
    """

    owners: Int[Array, "rows beams steps"]
    step: Int[Array, ""]
    prompt: Int[Array, " rows"]


class BeamCache(Cache):
    """The prompt's keys and values once a row, and those of each beam and step.

    With a batch of `[rows, beams]`, it holds `shared + steps * beams` slots a row, and its arrays
    have an axis of 1 in the place of the beams: one read of them serves all beams of a row. Layers
    with a window keep no more steps than that.

    Arguments:
        shared: slots of the prompt.
        beams: beams of a row.
        seating: whose tokens each beam goes on from; None while nothing is read.
    """

    keys: Float[Array, "rows 1 kv_heads slots head_dim"]
    values: Float[Array, "rows 1 kv_heads slots value_dim"]
    seating: Seating | None
    shared: int = eqx.field(static=True)
    beams: int = eqx.field(static=True)

    @staticmethod
    def of(cache: FullCache | RingCache, *, beams: int, shared: int, steps: int) -> "BeamCache":
        """The cache of prompts with at most `shared` tokens, and room for `steps` of every beam."""
        slots = cache.keys.shape[-2]
        shared = min(shared, slots)
        steps = min(steps, slots) if isinstance(cache, RingCache) else steps

        def spread(x: Array) -> Array:
            empty = jnp.zeros((*x.shape[:-2], steps * beams, x.shape[-1]), x.dtype)
            return jnp.concatenate([x[..., :shared, :], empty], axis=-2)[:, None]

        return BeamCache(spread(cache.keys), spread(cache.values), None, shared, beams)

    def places(self, seq: int, valid: Bool[Array, "*batch seq"] | None) -> Int[Array, "*batch seq"]:
        seating = self._seated(seq)
        at = seating.prompt[:, None, None] + seating.step
        return jnp.broadcast_to(at, (at.shape[0], self.beams, 1))

    def extend(
        self,
        keys: Float[Array, "rows beams kv_heads seq head_dim"],
        values: Float[Array, "rows beams kv_heads seq value_dim"],
        valid: Bool[Array, "rows beams seq"] | None,
    ) -> tuple["BeamCache", Seen]:
        seating = self._seated(keys.shape[-2])
        steps = (self.keys.shape[-2] - self.shared) // self.beams
        at = self.shared + seating.step % steps * self.beams
        new = _put(self.keys, keys, at), _put(self.values, values, at)
        places = self._slot_places(seating, steps)
        return BeamCache(*new, seating, self.shared, self.beams), Seen(*new, places)

    def poison(self, y: Float[Array, "*batch seq dim"]) -> Float[Array, "*batch seq dim"]:
        return y  # there is a slot for every step that is made

    def _seated(self, seq: int) -> Seating:
        if self.seating is None or seq != 1:
            raise NotImplementedError(
                "A beam search reads one token of every beam at a time, by a seating; "
                f"got {seq} tokens{' and no seating' * (self.seating is None)}."
            )
        return self.seating

    def _slot_places(self, seating: Seating, steps: int) -> Int[Array, "rows beams slots"]:
        """The place of what is in each slot; -1 where it is not what the beam goes on from."""
        rows, beams = seating.owners.shape[:2]
        prompt = slot_places(seating.prompt, self.shared)[:, None]
        prompt = jnp.broadcast_to(prompt, (rows, beams, self.shared))
        made = slot_places(seating.step + 1, steps)  # the step that each slot is of
        owners = jnp.take(seating.owners, jnp.maximum(made, 0), axis=2)
        shape = (rows, beams, steps, beams)
        writers = jnp.arange(beams, dtype=jnp.int32)[None, None, None]
        own = jnp.broadcast_to(owners[..., None], shape) == writers
        place = seating.prompt[:, None, None, None] + made[None, None, :, None]
        place = jnp.broadcast_to(place, shape)
        there = own & jnp.broadcast_to((made >= 0)[:, None], shape)
        made_places = jnp.where(there, place, -1).reshape(rows, beams, steps * beams)
        return jnp.concatenate([prompt, made_places], axis=-1)


def _put(
    slots: Float[Array, "rows 1 kv_heads slots size"],
    new: Float[Array, "rows beams kv_heads 1 size"],
    at: Int[Array, ""],
) -> Float[Array, "rows 1 kv_heads slots size"]:
    """`slots` with the tokens of all beams written side by side, the first of them at `at`."""
    beside = jnp.swapaxes(new[..., 0, :], 1, 2)[:, None].astype(slots.dtype)
    return jax.lax.dynamic_update_slice_in_dim(slots, beside, at, axis=-2)
