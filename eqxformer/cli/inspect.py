"""`eqxformer inspect`: what JAX and the compiler make of a model."""

import collections
import re
from pathlib import Path

import click

from eqxformer.cli.errors import explained
from eqxformer.cli.info import find
from eqxformer.cli.programs import Asked, asked
from eqxformer.inspect.compiler import Program
from eqxformer.inspect.table import size

_ROWS = 8  # of primitives and of buffers that are shown
_EXAMPLES = """\b
Examples:
  eqxformer inspect gpt2
  eqxformer inspect llama-3.1-8b --jaxpr --out seen
  eqxformer inspect t5-small --only gradient --memory --batch 4 --length 256
  eqxformer inspect runs/text-20250101-120000 --jaxpr --hlo --cost --memory --out seen
"""


@click.command(epilog=_EXAMPLES)
@click.argument("source", metavar="SOURCE")
@click.option("--jaxpr", is_flag=True, help="The equations, with the parts that they are of.")
@click.option("--hlo", is_flag=True, help="The instructions after optimisation.")
@click.option("--cost", is_flag=True, help="Operations and bytes, beside our own count.")
@click.option("--memory", is_flag=True, help="What is held at most, and the largest buffers.")
@click.option(
    "--only",
    type=click.Choice(["forward", "gradient", "decode"]),
    help="One of the three programs.",
)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Rows.")
@click.option("--length", type=click.IntRange(min=1), help="Tokens of a row.  [default: 128]")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="For whole texts.")
def inspect(
    source: str,
    jaxpr: bool,
    hlo: bool,
    cost: bool,
    memory: bool,
    only: str | None,
    batch: int,
    length: int | None,
    out: Path | None,
) -> None:
    """See what JAX and the compiler make of SOURCE: a forward pass, a gradient, a decoding step.

    SOURCE is as for `eqxformer info`. No weights are read or made: everything is traced on shapes,
    and compiled only for --hlo, --cost and --memory, on this machine. Without any of the four, the
    equations are counted. Whole texts of --jaxpr and --hlo go to files in --out, or else here.
    What is compiled again, and why, is told by `eqxformer recompilations`.
    """
    with explained():
        skeleton, there = find(source).skeleton, []
        for each in asked(skeleton, batch, length):
            there.append(each.name)
            if only in (None, each.name):
                click.echo("\n".join(_report(each, jaxpr, hlo, cost, memory, out)) + "\n")
        if only is not None and only not in there:
            raise ValueError(
                f"--only {only} is nothing that {type(skeleton).__name__} does; there is "
                f"{' and '.join(there)}."
            )


def _report(
    each: Asked, jaxpr: bool, hlo: bool, cost: bool, memory: bool, out: Path | None
) -> list[str]:
    """What is said of one program, in lines."""
    program = each.program
    lines = [f"{each.name}: {each.about}"]
    lines += [f"  gives       {_short(program.signature)}", f"  equations   {_counted(program)}"]
    lines += [f"  attention   {line}" for line in _backends(program)]
    for wanted, kind in ((jaxpr, "jaxpr"), (hlo, "hlo")):
        if wanted:
            lines += _text(each.name, kind, getattr(program, kind), out)
    lines += [f"  cost        {line}" for line in (_cost(each) if cost else ())]
    return lines + (_memory(program) if memory else [])


def _short(text: str) -> str:
    return text if len(text) <= 86 else f"{text[:85]}…"


def _counted(program: Program) -> str:
    counts = program.primitives()
    most = ", ".join(f"{name} {n}" for name, n in list(counts.items())[:_ROWS])
    return _short(f"{sum(counts.values()):,}: {most}")


def _backends(program: Program) -> list[str]:
    """Which backend serves which attentions, and why; those alike together."""
    found = collections.Counter(
        f"{choice.backend} ({choice.reason}): {_starred(path)}"
        for path, choice in program.backends.items()
    )
    return [f"{said} x {times}" for said, times in found.items()]


def _starred(path: str) -> str:
    return re.sub(r"(?<=[.\[])\d+(?=[\].])", "*", path)


def _text(name: str, kind: str, text: str, out: Path | None) -> list[str]:
    """A whole text in a file, or in lines."""
    if out is None:
        return [f"  {kind}", text]
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.{kind}.txt"
    path.write_text(text, encoding="utf-8")
    return [f"  {kind:<10}  {len(text.splitlines()):,} lines in {path}"]


def _cost(each: Asked) -> list[str]:
    cost = each.program.cost
    ours = "" if each.flops is None else f", {_operations(each.flops)} by our count of products"
    return [
        f"{_operations(cost['flops'])} by the compiler{ours}",
        f"{size(int(cost['bytes']))} read and written by instructions",
    ]


def _operations(number: float) -> str:
    """A number of operations for people: `3.62 GFLOP`."""
    for unit in ("FLOP", "kFLOP", "MFLOP", "GFLOP"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} TFLOP"


def _memory(program: Program) -> list[str]:
    found = program.memory
    parts = {
        "arguments": found.arguments,
        "outputs": found.outputs,
        "in between": found.temporary,
        "shared": -found.shared,
    }
    said = ", ".join(f"{name} {size(abs(n))}" for name, n in parts.items() if n)
    lines = [f"  memory      {size(found.peak)} at most: {said}"]
    alike = collections.Counter(
        (-b.size, b.kind, b.shape, _starred(re.sub(r"(?<=\.)(\d+)(?=[/)])", "*", b.place)))
        for b in found.buffers
    )
    for (bytes_, kind, shape, place), times in sorted(alike.items())[:_ROWS]:
        words = _short(f"{kind:<9}  {times:>3} x {shape}  {place}")
        lines.append(f"  {size(-bytes_):>10}  {words}")
    return lines
