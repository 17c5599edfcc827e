"""How much time does speculative decoding save, and what of the proposals is kept?

    python benchmarks/speculative.py

A Llama of 23 million random weights continues one text greedily, alone and with drafts: looking up
a prompt that repeats itself, and its own first layer. The others change little, as later
layers of trained models do, by a factor that settles how often the draft is right. Ordinary and
speculative decoding take turns in one process; the time of the prompt is taken off both.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from eqxformer.bench import harness

SIZES = {"vocab": 2000, "dim": 384, "layers": 12, "heads": 6, "hidden": 1056}
PROMPT, NEW = 100, 64
FIRST = 1
LATER = {"others at 0.01": 0.01, "others at 0.02": 0.02}


def main() -> None:
    """Measures every draft at every batch size, and writes what was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4])
    options = parser.parse_args()
    results = {
        f"{name}, {rows} rows": measure(*made, rows, options.repetitions)
        for name, made in candidates().items()
        for rows in options.rows
    }
    show(results)
    print(f"\nwritten to {harness.write(__file__, 'speculative', {'sizes': SIZES, **results})}")


def candidates() -> dict[str, tuple[Any, Any]]:
    """Models, each with a draft."""
    import jax

    import eqxformer as ef

    model = ef.families.llama(**SIZES).build(key=jax.random.key(0))
    found = {
        f"prompt look-up, {ahead} ahead": (model, ef.PromptLookup(ngram=3, ahead=ahead))
        for ahead in (4, 8)
    }
    for name, factor in LATER.items():
        quiet = with_quiet_layers(model, factor)
        found[f"first layers, {name}"] = quiet, ef.DraftModel(first_layers(quiet), ahead=4)
    return found


def with_quiet_layers(model: Any, factor: float) -> Any:
    """The model whose later blocks add `factor` times what they would."""
    import eqxformer as ef
    from eqxformer.checkpoints.rebuild import with_arrays

    arrays = dict(ef.named_arrays(model))
    for layer in range(FIRST, SIZES["layers"]):
        for end in ("attention.out.weight", "feed_forward.down.weight"):
            name = f"blocks.{layer}.{end}"
            arrays[name] = arrays[name] * factor
    return with_arrays(ef.shapes(model.config), arrays)


def first_layers(model: Any) -> Any:
    """The first blocks of a model, between its embedding and its head."""
    import eqxformer as ef
    from eqxformer.checkpoints.rebuild import with_arrays

    config = model.config.edit(blocks=model.config.blocks[:FIRST])
    return with_arrays(ef.shapes(config), ef.named_arrays(model))


def measure(model: Any, draft: Any, rows: int, repetitions: int) -> dict[str, Any]:
    """Seconds for the new tokens either way, and how often the draft was right."""
    import numpy as np

    import eqxformer as ef

    phrase = np.random.default_rng(0).integers(0, SIZES["vocab"], (rows, PROMPT // 5))
    prompts = np.tile(phrase, (1, 5)).tolist()

    def plain(new: int) -> Any:
        return ef.generate(model, prompts, max_new_tokens=new, slots=PROMPT + NEW)

    def speculative(new: int) -> Any:
        return ef.generate_speculative(
            model, prompts, draft=draft, max_new_tokens=new, slots=PROMPT + NEW
        )

    text, made = plain(NEW), speculative(NEW)
    found: dict[tuple[str, int], list[float]] = {}
    for _ in range(repetitions):
        for name, call in {"plain": plain, "speculative": speculative}.items():
            for new in (1, NEW):
                found.setdefault((name, new), []).append(seconds(call, new))
    middle = {each: statistics.median(times) for each, times in found.items()}
    took = {name: middle[name, NEW] - middle[name, 1] for name in ("plain", "speculative")}
    return {
        "plain_ms_per_token": 1e3 * took["plain"] / (NEW - 1),
        "speculative_ms_per_token": 1e3 * took["speculative"] / (NEW - 1),
        "times_faster": took["plain"] / took["speculative"],
        "acceptance": made.acceptance,
        "passes": made.passes,
        "same_text": made.tokens == text,
    }


def seconds(call: Callable[[int], Any], new: int) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call(new)
    return time.perf_counter() - start


def show(results: dict[str, Any]) -> None:
    """The table."""
    print(f"\n{'':44}{'ms/token':>9}{'with it':>9}{'faster':>8}{'kept':>7}{'passes':>8}{'same':>6}")
    for name, r in results.items():
        print(
            f"{name:44}{r['plain_ms_per_token']:9.2f}{r['speculative_ms_per_token']:9.2f}"
            f"{r['times_faster']:7.2f}x{r['acceptance']:7.0%}{r['passes']:8}"
            f"{'yes' if r['same_text'] else 'no':>6}"
        )


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
