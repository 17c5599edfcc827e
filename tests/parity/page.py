"""Writes `docs/architectures.md`: every architecture, and how far ours is from the reference.

    python -m tests.parity.page

The numbers are those of the tests beside this file, run anew.
"""

import importlib
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import jax
import torch
import transformers

import eqxformer as ef
from tests.helpers.parity import EPSILON, Error, errors
from tests.parity.cases import CASES
from tests.parity.live import Case, expected_of, store
from tests.parity.test_round_trip import assert_same_to_transformers

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
HEAD = """# Architectures

What `ef.from_pretrained` loads and `ef.save_pretrained` writes, by `model_type` in `config.json`.
This page is written by `python -m tests.parity.page`, which runs the comparisons of `tests/parity`.

Every row is a tiny model with random weights, made by transformers {transformers} and loaded here
from the files it wrote, on a batch with padding on the left, the right and both sides; where the
decoder reads what the encoder has read, on the right alone, as the reference needs it. *Logits* and
*gradients* are the largest error of any output, hidden state or parameter's gradient against the
reference in float64, as a multiple of the error that the reference itself makes in float32; the
tests allow 30. *Saves* says that transformers loads what we save with the same tensors and results;
*new* that models built here, with no checkpoint behind them, can be saved as this architecture.
Both are from JAX {jax} and torch {torch} on a CPU.

| `model_type` | what it is | loads | saves | new | logits | gradients | classes |
|---|---|---|---|---|---|---|---|
"""

FOOT = """
What is refused, each with an error that says so: quantised weights (`quantization_config`),
pickles, encoders used as decoders (`is_decoder`), relative positions in BERT
(`position_embedding_type`), the body of OPT-350m without its head, `Dense` modules and several
poolings at once of sentence-transformers.

Where a checkpoint has more than its model needs: `...ForPreTraining` loads its head for masked
tokens and is saved as `...ForMaskedLM`; the unused pooler of a sentence-transformers directory is
left out. In BERT, T5, BART and their kin the reference counts padding in positions unless it is
told them; ours count real tokens, which is the same with padding on the right.
"""


def main() -> None:
    """Measures every case and writes the page."""
    rows = {}
    for kind in ef.model_types():
        known = ef.architecture(kind)
        cases = {name: case for name, case in CASES.items() if case.model in known.tasks}
        measured = [m for name, case in cases.items() if (m := measure(name, case, kind))]
        if not measured:
            raise SystemExit(f"No case of tests/parity is a {kind}.")
        rows[kind] = row(kind, measured)
        print(rows[kind], flush=True)
    versions = {"transformers": transformers.__version__, "jax": jax.__version__}
    head = HEAD.format(**versions, torch=torch.__version__.partition("+")[0])
    PAGE.write_text(head + "\n".join(rows.values()) + "\n" + FOOT, encoding="utf-8")


def measure(name: str, case: Case, kind: str) -> tuple[float, float] | None:
    """The largest relative errors of outputs and of gradients in the cold and hot regimes."""
    outputs, gradients = 0.0, 0.0
    for regime in ("cold", "hot"):
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "theirs")
            model = case.reference(regime)
            store(model, source)
            if json.loads((source / "config.json").read_text())["model_type"] != kind:
                return None
            found = errors(source, expected_of(case, model))
            ef.save_pretrained(ef.from_pretrained(source), Path(folder, "ours"))
            assert_same_to_transformers(case, model, Path(folder, "ours"))
        outputs = max(outputs, worst(e for e in found if e.name.startswith("output.")))
        gradients = max(gradients, worst(e for e in found if e.name.startswith("gradient.")))
    return outputs, gradients


def worst(found: Iterable[Error]) -> float:
    """The largest error, in units of the reference's own."""
    return max(error.error / max(error.allowed / 30.0, EPSILON * 1e-30) for error in found)


def row(kind: str, measured: list[tuple[float, float]]) -> str:
    """The line of an architecture."""
    known = ef.architecture(kind)
    module = importlib.import_module(f"eqxformer.architectures.{kind.replace('-', '_')}")
    what = (module.__doc__ or "").strip().splitlines()[0].rstrip(".")
    what = what.partition(": ")[2] or what
    outputs, gradients = (max(column) for column in zip(*measured, strict=True))
    new = "yes" if known.describe is not None else "as loaded"
    cells = [f"`{kind}`", what, "yes", "yes", new, f"{outputs:.1f}", f"{gradients:.1f}"]
    return "| " + " | ".join([*cells, ", ".join(f"`{name}`" for name in known.tasks)]) + " |"


if __name__ == "__main__":
    main()
