"""The table of parts: shapes that go in and out, found without computing anything."""

import threading

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import eqxformer as ef
from eqxformer.inspect.observe import METHODS, named_parts, run_observed
from tests.helpers.models import DECODERS, SEQ2SEQ, block, decoder, filled

EVERY = {**DECODERS, **SEQ2SEQ}


def _rows(text):
    """The columns of every line by the names down to it."""
    rows, names = {}, []
    for line in text.splitlines():
        level = (len(line) - len(line.lstrip())) // 2
        words = line.split()
        if not rows:
            rows[""] = words
            continue
        names[level - 1 :] = [words[0]]
        rows[".".join(names)] = words[1:]
    return rows


def _inputs(model, length=5):
    return ef.inspect.input_shapes(model, batch=2, length=length)


@pytest.mark.parametrize("name", ["experts and sinks", "t5"])
def test_what_is_shown_of_the_whole_is_what_a_run_gives(name):
    model = filled(EVERY[name])
    inputs = [jnp.ones(x.shape, x.dtype) for x in _inputs(model)]
    out = eqx.filter_eval_shape(model, *inputs)
    rows = _rows(ef.tabulate(model, *inputs))
    shape = ",".join(map(str, out.shape))
    assert rows[""][-2:] == [f"f32[{shape}]", f"{ef.count(model):,}"]
    assert ef.tabulate(ef.shapes(EVERY[name]), *_inputs(model)) == ef.tabulate(model, *inputs)


def test_every_part_has_its_own_shapes():
    config = ef.families.llama(vocab=11, dim=12, layers=3, heads=3, kv_heads=1, hidden=14)
    rows = _rows(ef.tabulate(ef.shapes(config), *_inputs(ef.shapes(config))))
    assert rows["embedding.tokens"] == ["Embedding", "i32[2,5]", "f32[2,5,12]", "132"]
    assert rows["blocks.0..2.attention.key"] == ["Linear", "f32[2,5,12]", "f32[2,5,4]", "144"]
    assert rows["blocks.0..2.feed_forward.down"] == ["Linear", "f32[2,5,14]", "f32[2,5,12]", "504"]
    assert rows["head"] == ["LinearHead", "f32[2,5,12]", "f32[2,5,11]", "132"]


def test_cross_attention_is_given_the_source_as_well():
    model = ef.shapes(SEQ2SEQ["transformer"])
    source, target = (jax.ShapeDtypeStruct((2, n), jnp.int32) for n in (7, 5))
    rows = _rows(ef.tabulate(model, source, target))
    (row,) = (words for path, words in rows.items() if path.endswith(".cross_attention"))
    dim = model.config.decoder.dim
    assert row[1:4] == [f"f32[2,5,{dim}],", f"f32[2,7,{dim}]", f"f32[2,5,{dim}]"]


def test_a_mixture_in_a_block_is_shown_with_its_tokens_and_not_with_what_is_real():
    experts = ef.Experts.Config(count=3, top=2, expert=ef.GatedMLP.Config(hidden=5))
    model = ef.shapes(decoder(block({}, feed_forward=experts)))
    for mask in (None, ef.Padding(jnp.ones((2, 5), bool))):
        rows = _rows(ef.tabulate(model, *_inputs(model), mask=mask))
        assert rows["blocks.0.feed_forward"][:3] == ["Experts", "f32[2,5,12]", "f32[2,5,12]"]


def test_the_numbers_of_blocks_are_those_of_all_that_are_alike():
    config = decoder(*[block({})] * 3, block({"kv_heads": 1}))
    model = ef.shapes(config)
    rows = _rows(ef.tabulate(model, *_inputs(model)))
    counts = [ef.count(each) for each in model.blocks]
    assert rows["blocks.0..2"][-1] == f"{sum(counts[:3]):,}"
    assert rows["blocks.3"][-1] == f"{counts[3]:,}"


def test_the_layout_makes_no_difference():
    config = DECODERS["llama"]
    layout = ef.Scanned("nothing_saved")
    model, scanned = ef.shapes(config), ef.shapes(config.edit(layout=layout))
    assert ef.tabulate(scanned, *_inputs(model)) == ef.tabulate(model, *_inputs(model))


def test_a_depth_leaves_out_what_is_further_in():
    model = ef.shapes(DECODERS["gpt"])
    rows = _rows(ef.tabulate(model, *_inputs(model), depth=1))
    assert {len(path.split(".")) for path in rows if not path.startswith("blocks")} == {1}
    assert rows[""][-1] == f"{ef.count(model):,}"


def test_a_part_of_ones_own_is_shown_like_any_other():
    class Twice(eqx.Module):
        inner: ef.Linear

        def __call__(self, x):
            return self.inner(self.inner(x))

    part = Twice(ef.Linear(4, 4, key=jax.random.key(0)))
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), part)
    rows = _rows(ef.tabulate(halves, jnp.ones((3, 4), jnp.bfloat16)))
    assert rows == {
        "": ["Twice", "bf16[3,4]", "bf16[3,4]", "20"],
        "inner": ["Linear", "bf16[3,4]", "bf16[3,4]", "20"],
    }


def test_the_inputs_fit_the_positions_that_a_model_has():
    shapes = ef.shapes(ef.preset("whisper-tiny"))
    frames, tokens = ef.inspect.input_shapes(shapes)
    assert (frames.shape, tokens.shape) == ((1, 3000, 80), (1, 128))
    small = ef.shapes(ef.families.gpt(vocab=5, dim=4, layers=1, heads=1, context=6))
    assert ef.inspect.input_shapes(small)[0].shape == (1, 6)
    with pytest.raises(ValueError, match="must be positive"):
        ef.inspect.input_shapes(small, batch=0)


def _methods(kinds):
    return {(kind, m): vars(kind).get(m) for kind in kinds for m in METHODS}


def test_classes_are_as_before_also_after_an_error():
    mlp = ef.MLP(4, hidden=8, key=jax.random.key(0))
    kinds = {owner for _, part in named_parts(mlp) for owner in type(part).__mro__}
    before = _methods(kinds)

    def fail(visit):
        raise RuntimeError(visit.path)

    with pytest.raises(RuntimeError):
        run_observed(lambda part: part(jnp.ones((2, 4))), mlp, fail)
    assert _methods(kinds) == before


def test_another_thread_is_not_observed_nor_disturbed():
    mlp = ef.MLP(4, hidden=8, key=jax.random.key(0))
    x, seen, results = jnp.ones((2, 4)), [], []
    expected = mlp(x)

    def observer(visit):
        if visit.path == "up":  # in the middle of the observed run
            other = threading.Thread(target=lambda: results.append(mlp(x)))
            other.start()
            other.join()
        seen.append(visit.path)
        return visit.go_on()

    run_observed(lambda part: part(x), mlp, observer)
    assert sorted(seen) == ["", "down", "up"]
    assert (results[0] == expected).all()


def test_two_threads_may_observe_at_once_each_its_own():
    parts = [ef.MLP(4, hidden=8, key=jax.random.key(i)) for i in range(2)]
    meet, seen = threading.Barrier(2), ([], [])

    def watch(i):
        def observer(visit):
            if visit.path == "up":
                meet.wait(timeout=30)
            out = visit.go_on()
            seen[i].append(visit.path)
            return out

        run_observed(lambda part: part(jnp.ones((2, 4))), parts[i], observer)

    threads = [threading.Thread(target=watch, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == (["up", "down", ""],) * 2
