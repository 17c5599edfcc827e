"""How does the cost of a model grow with length, width, depth and batch?

    python benchmarks/growth.py                          all four, of a training step
    python benchmarks/growth.py --question forward --axes length --lengths 256 512 1024 2048

From one base, one size at a time is doubled again and again; all points of a row are asked in turn.
An exponent is the slope of a straight line through the logarithms, `cost ~ size^exponent`, over all
points and between the last two. Beside that of the time stands that of the operations, which the
time would follow on a machine that is equally good at every size: above it, something is lost.
"""

import argparse
import json
import math
from collections.abc import Sequence
from typing import Any

from eqxformer.bench import harness

HEAD_DIM, VOCAB = 32, 256
BASE = {"length": 128, "width": 128, "depth": 4, "batch": 8}
OPTIONS = {
    "length": "--lengths",
    "width": "--widths",
    "depth": "--depths",
    "batch": "--batches",
}
POINTS: dict[str, list[int]] = {
    "length": [64, 128, 256, 512, 1024],
    "width": [64, 128, 256, 512],
    "depth": [2, 4, 8, 16],
    "batch": [2, 4, 8, 16, 32],
}


def main() -> None:
    """Measures every axis, or, with `--candidate`, one point of one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--question", choices=("train", "forward"), default="train")
    parser.add_argument("--axes", nargs="+", choices=POINTS, default=list(POINTS))
    for axis, points in POINTS.items():
        parser.add_argument(OPTIONS[axis], nargs="+", type=int, default=points, dest=axis)
    parser.add_argument("--base", nargs=4, type=int, default=list(BASE.values()), metavar="SIZE")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--candidate", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.candidate:
        return serve(options.candidate, options)
    base = dict(zip(BASE, options.base, strict=True))
    for axis in options.axes:
        if len(points := getattr(options, axis)) < 2 or min(points) < 1:
            parser.error(f"{OPTIONS[axis]} must be at least two positive sizes; got {points}.")
    for width in [base["width"], *(options.width if "width" in options.axes else ())]:
        if width % HEAD_DIM:
            parser.error(f"A width must be a multiple of the heads' {HEAD_DIM}; got {width}.")
    name = "growth" if options.question == "train" else f"growth-{options.question}"
    name += "" if options.dtype == "float32" else f"-{options.dtype}"
    about = {"head_dim": HEAD_DIM, "vocab": VOCAB, "question": options.question}
    results: dict[str, Any] = {"sizes": {**base, **about, "dtype": options.dtype}}
    for axis in options.axes:
        results[axis] = measure(axis, base, options)
        path = harness.write(__file__, name, results)  # stays, whatever becomes of the others
    print(f"\nwritten to {path}")


def measure(axis: str, base: dict[str, int], options: argparse.Namespace) -> dict[str, Any]:
    """The points of one axis, and the exponents of its growth."""
    points = sorted(set(getattr(options, axis)))
    shared = [__file__, "--question", options.question, "--dtype", options.dtype, "--candidate"]
    found = harness.compare(
        {str(point): [*shared, json.dumps({**base, axis: point})] for point in points},
        repetitions=options.repetitions,
    )
    others = ", ".join(f"{name} {size}" for name, size in base.items() if name != axis)
    print(f"\n{axis} at {others}, {options.question}", flush=True)
    for point, result in found.items():
        low, high = result["quartiles"]
        print(
            f"  {point:>6}{1e3 * result['median']:10.2f} ms ({1e3 * low:.2f}-{1e3 * high:.2f})"
            f"{result['flops'] / result['median'] / 1e9:10,.1f} GFLOP/s"
        )
    times = [found[str(point)]["median"] for point in points]
    flops = [found[str(point)]["flops"] for point in points]
    exponents = {
        "time": slope(points, times),
        "time_of_the_last_two": slope(points[-2:], times[-2:]),
        "operations": slope(points, flops),
    }
    whole, last, counted = exponents.values()
    print(
        f"  time ~ {axis}^{whole:.2f} over {points[0]}-{points[-1]}, ^{last:.2f} between the last "
        f"two; operations ~ {axis}^{counted:.2f}"
    )
    return {"range": [points[0], points[-1]], "exponents": exponents, "candidates": found}


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The exponent of `cost ~ size^exponent` that fits best: least squares of the logarithms."""
    x, y = ([math.log(each) for each in values] for values in (sizes, costs))
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    products = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True))
    return products / sum((a - middle_x) ** 2 for a in x)


def serve(point: dict[str, int], options: argparse.Namespace) -> None:
    """One point: a GPT of these sizes, asked on demand."""
    import eqxformer as ef
    from eqxformer.bench.questions import Setting, prepare, repeated

    config = ef.families.gpt(
        vocab=VOCAB,
        dim=point["width"],
        layers=point["depth"],
        heads=point["width"] // HEAD_DIM,
        context=point["length"],
    )
    work = prepare(
        options.question, Setting(config, point["batch"], point["length"], options.dtype)
    )
    repeat, calls = repeated(work)
    harness.serve(repeat, calls=calls, flops=work.flops)


if __name__ == "__main__":
    main()
