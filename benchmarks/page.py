"""Writes `docs/benchmarks.md` from what the scripts have found: CPU and GPU side by side.

    python benchmarks/page.py

Every script in this folder is a question, whose first line says it; `results/*.json` are the
answers. Nothing is measured here. Plots are drawn where matplotlib is installed.
"""

import ast
import importlib.util
import json
import os
import pathlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

HERE = pathlib.Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
PLATFORMS = {"cpu": "CPU", "gpu": "GPU"}
HEAD = """# Benchmarks

This page is written by `python benchmarks/page.py` from `benchmarks/results/*.json`, and each of
those by the script that its section names. Candidates run in processes of their own, which are
asked for one repetition in turn, which is a call or as many as take a while; times are medians,
with the first and third quartile behind them where they are known. `compile_time` and `loading`
start a new process for every repetition, and of the starts of `compile_time` the quickest stands
here; `speculative` takes turns in one process, and `pretraining` times nothing.
`eqxformer bench` measures eqxformer alone, on any machine, without a checkout of the scripts.
"""
FIRST = ("training_step", "forward", "generation", "attention")  # sections, then the others
ON_CPU = ("loading", "pretraining", "speculative")  # run there wherever they are started
HIDDEN = {"ceilings", "size", "sizes", "candidates"}  # keys that are no part of a row's name
LABELS = {"generation": "batch {}", "compile_time": "{} layers"}  # what a number in a name is


class Column(NamedTuple):
    """A column of a table: its title, the key of its numbers, and how they are written."""

    title: str
    key: str
    kind: str


COLUMNS: dict[str, tuple[Column, ...]] = {
    "generation": (
        Column("a token", "step_seconds", "seconds"),
        Column("to the first token", "first_token_seconds", "seconds"),
        Column("of the memory bound", "share_of_bandwidth_bound", "share"),
    ),
    "compile_time": (
        Column("in all", "total", "seconds"),
        Column("import", "import", "seconds"),
        Column("build", "build", "seconds"),
        Column("first step", "first", "seconds"),
        Column("second", "second", "seconds"),
        Column("before the first step's work", "ready", "seconds"),
        Column("programs", "programs", "number"),
    ),
    "call_overhead": (
        Column("a call", "call_seconds", "seconds"),
        Column("more than on a list of arrays", "overhead_seconds", "seconds"),
    ),
    "loading": (
        Column("time", "seconds", "seconds"),
        Column("memory / weights", "memory", "multiple"),
    ),
    "speculative": (
        Column("a token without", "plain_ms_per_token", "milliseconds"),
        Column("with it", "speculative_ms_per_token", "milliseconds"),
        Column("times faster", "times_faster", "multiple"),
        Column("drafts kept", "acceptance", "share"),
    ),
    "pretraining": (
        Column("steps", "steps", "number"),
        Column("first loss", "first_loss", "loss"),
        Column("last loss", "last_loss", "loss"),
        Column("torch's last loss", "torch_last_loss", "loss"),
        Column("apart at first", "early_difference", "difference"),
        Column("apart at most", "largest_difference", "difference"),
    ),
    "growth": (
        Column("over", "range", "range"),
        Column("time grows as", "time", "exponent"),
        Column("between the last two", "time_of_the_last_two", "exponent"),
        Column("operations grow as", "operations", "exponent"),
    ),
}
USUAL = (
    Column("time", "median", "spread"),
    Column("first step", "first_step_seconds", "seconds"),
    Column("tokens/s", "tokens_per_second", "number"),
    Column("of the product", "model_flops_utilisation", "share"),
    Column("temporaries", "temporary_bytes", "bytes"),
    Column("peak", "peak_bytes", "bytes"),
)


def main() -> None:
    """Writes the page, and the plots where they can be drawn."""
    found = read(HERE / "results")
    (DOCS / "benchmarks.md").write_text(page(found, questions(HERE)), encoding="utf-8")
    print(f"written to {DOCS / 'benchmarks.md'}")
    if importlib.util.find_spec("matplotlib") is None:
        return print("matplotlib is not installed: the plots stay as they are")
    wanted = {
        DOCS / drawn: (name, result["results"])
        for name, platforms in found.items()
        for platform, result in platforms.items()
        if (drawn := plot_of(name, platform, result))
    }
    for path in set((DOCS / "benchmarks").glob("*.svg")) - set(wanted):
        path.unlink()  # of results that are no more
    for path, (name, results) in wanted.items():
        draw(name, results, path)


def read(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The results by name and platform; `training_step-bfloat16-gpu.json` is of a GPU."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        name, _, platform = path.stem.rpartition("-")
        if platform in PLATFORMS:
            result = json.loads(path.read_text(encoding="utf-8"))
            found.setdefault(name, {})[platform] = {**result, "results": named(result["results"])}
    return found


def named(results: Any) -> Mapping[str, Any]:
    """Results by name; those in a list are named after the sizes that stand in them."""
    if isinstance(results, Mapping):
        return results
    names = (
        ", ".join(f"{k} {v:,}" for k, v in part.items() if isinstance(v, int)) for part in results
    )
    return dict(zip(names, results, strict=True))


def questions(folder: pathlib.Path) -> dict[str, str]:
    """What each script asks: the first line of its text, by its name."""
    asked = {}
    for path in sorted(folder.glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        if path.name != pathlib.Path(__file__).name:
            asked[path.stem] = text.partition("\n")[0]
    return {name: asked[name] for name in (*FIRST, *asked) if name in asked}


def page(found: Mapping[str, Mapping[str, Any]], asked: Mapping[str, str]) -> str:
    """The whole page."""
    sections = [HEAD]
    for script, question in asked.items():
        variants = sorted(name for name in found if name.partition("-")[0] == script)
        sections.append(f"## {script.replace('_', ' ').capitalize()}\n\n{question}\n")
        for name in variants or [script]:
            if name != script:
                sections.append(f"### {name.partition('-')[2].replace('_', ' ')}\n")
            sections.append(section(script, name, found.get(name, {})))
    return "\n".join(sections)


def section(script: str, name: str, platforms: Mapping[str, Any]) -> str:
    """One question's table, its plots, and what was measured where, with which command."""
    parts = [table(script, platforms)] if platforms else []
    for platform, result in platforms.items():
        if drawn := plot_of(name, platform, result):
            parts.append(f"![{script.replace('_', ' ')}, {PLATFORMS[platform]}]({drawn})\n")
    parts.append("\n".join(measured(script, p, platforms.get(p)) for p in PLATFORMS) + "\n")
    return "\n".join(parts)


def measured(script: str, platform: str, result: Mapping[str, Any] | None) -> str:
    """The hardware, the versions and the command of a platform's results, as an item of a list."""
    if platform != "cpu" and script in ON_CPU:
        return f"- {PLATFORMS[platform]}: a question of the CPU alone."
    command = f"`python benchmarks/{script}.py`"
    if result is None:
        return f"- {PLATFORMS[platform]}: not measured; {command} on such a machine does it."
    machine = result["machine"]
    given = machine.get("command", [])[1:]
    command = f"`python benchmarks/{script}.py{''.join(f' {shlex.quote(g)}' for g in given)}`"
    name = machine["processor"] or "unknown processor"
    device = name if platform == "cpu" else f"{machine['device']} beside {name}"
    known = machine.get("versions") or {
        package: machine[package] for package in ("jax", "equinox", "numpy") if package in machine
    }
    versions = ", ".join(f"{package} {version}" for package, version in known.items())
    flags = "".join(f", `{key}={value}`" for key, value in machine.get("flags", {}).items())
    cores, note = f"{machine['cores']} cores", machine.get("note")
    return (
        f"- {PLATFORMS[platform]}: {device}, {cores}; Python {machine['python']}, "
        f"{versions}{flags}; {command}{f'; {note}' if note else ''}."
    )


def table(script: str, platforms: Mapping[str, Any]) -> str:
    """A row per thing that was measured, a group of columns per platform."""
    rows = {p: dict(rows_of(script, result["results"])) for p, result in platforms.items()}
    names = list(dict.fromkeys(name for found in rows.values() for name in found))
    depth = max(map(len, names), default=1)
    head, lines = [""] * depth, [[*name, *[""] * (depth - len(name))] for name in names]
    for platform, title in PLATFORMS.items():
        if platform not in rows:
            head.append(title)
            for line in lines:
                line.append("not measured")
            continue
        for column in columns_of(script, list(rows[platform].values())):
            head.append(f"{title}: {column.title}")
            for name, line in zip(names, lines, strict=True):
                line.append(cell(column, rows[platform].get(name)))
    rule = ["---"] * depth + ["---:"] * (len(head) - depth)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines)) + "\n"


def rows_of(script: str, tree: Any, name: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any]]:
    """Every dictionary with a number of the table in it, with the names that lead to it."""
    keys = {column.key for column in COLUMNS.get(script, USUAL)}
    facts = {**tree, **tree.get("exponents", {})} if script == "growth" else tree
    if name and keys & facts.keys():
        yield name, facts
        return
    for key, value in tree.items():
        if not isinstance(value, Mapping) or key in HIDDEN - {"candidates"}:
            continue
        label = LABELS.get(script, "{}").format(key) if key.isdigit() else key
        yield from rows_of(script, value, name if key in HIDDEN else (*name, label))


def columns_of(script: str, rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The columns that have a number in any row, and one for each candidate that is a base."""
    columns = list(COLUMNS.get(script, USUAL))
    bases = dict.fromkeys(base for row in rows for base in row.get("time_relative_to", {}))
    columns += [Column(f"x {base}'s time", base, "relative") for base in bases]
    return [each for each in columns if any(cell(each, row) for row in rows)]


def cell(column: Column, row: Mapping[str, Any] | None) -> str:
    """A number as people read it; empty where there is none."""
    if row is None:
        return "not measured"
    value = (row.get("time_relative_to", {}) if column.kind == "relative" else row).get(column.key)
    if column.kind == "range" and value:
        return "{:,} - {:,}".format(*value)
    if not isinstance(value, int | float):
        return ""
    if column.kind == "spread" and row.get("quartiles"):
        low, high = (seconds(each) for each in row["quartiles"])
        low = low.removesuffix(f" {high.split()[-1]}")  # the unit once, where it is the same
        return f"{seconds(value)} ({low} - {high})"
    if column.kind in ("spread", "seconds"):
        return seconds(value)
    if column.kind == "milliseconds":
        return seconds(value / 1e3)
    if column.kind == "bytes":
        return f"{value / 1e6:,.1f} MB"
    formats = {"share": "{:.0%}", "number": "{:,.0f}", "exponent": "n^{:.2f}"}
    formats |= {"loss": "{:.4f}", "difference": "{:.0e}"}
    return formats.get(column.kind, "{:.2f}").format(value)


def seconds(value: float) -> str:
    """Seconds with three digits: `1.24 s`, `27.1 ms`, `850 us`."""
    scale, unit = next((s for s in ((1.0, "s"), (1e-3, "ms")) if value >= s[0]), (1e-6, "us"))
    shown = value / scale
    return f"{shown:.{2 if shown < 10 else 1 if shown < 100 else 0}f} {unit}"


def plot_of(name: str, platform: str, result: Mapping[str, Any]) -> str | None:
    """The plot of a result, relative to the page; None where candidates are not compared."""
    compared = panels(result["results"])
    return f"benchmarks/{name}-{platform}.svg" if compared else None


def panels(results: Mapping[str, Any]) -> dict[str, Any]:
    """The candidates of every question of a script, where there are at least two."""
    found = {
        name: part["candidates"]
        for name, part in results.items()
        if isinstance(part, Mapping) and len(part.get("candidates", ())) > 1
    }
    return {name: each for name, each in found.items() if all("median" in c for c in each.values())}


def draw(name: str, results: Mapping[str, Any], path: pathlib.Path) -> None:
    """Lines over sizes for growth and attention, bars for others; the same bytes every time."""
    os.environ["SOURCE_DATE_EPOCH"] = "0"
    import matplotlib

    path.parent.mkdir(exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "eqxformer"}):
        script = name.partition("-")[0]
        if script in ("growth", "attention"):
            lines(*(growth if script == "growth" else attention)(panels(results)), path)
        else:
            from eqxformer.bench import plot

            plot.bars(panels(results), path, "torch")
    print(f"drawn in {path}")


Curves = dict[str, dict[str, list[tuple[float, float]]]]


def growth(found: Mapping[str, Any]) -> tuple[Curves, str]:
    """A panel per axis, with one curve."""
    points = {
        axis: {"eqxformer": [(float(size), f["median"]) for size, f in each.items()]}
        for axis, each in found.items()
    }
    return points, ""


def attention(found: Mapping[str, Any]) -> tuple[Curves, str]:
    """A panel per pass, with a curve per candidate over lengths."""
    curves: Curves = {}
    for name, candidates in found.items():
        length, _, title = name.partition(", ")
        for who, facts in candidates.items():
            point = (float(length), facts["median"])
            curves.setdefault(title, {}).setdefault(who, []).append(point)
    return curves, "length"


def lines(curves: Curves, axis: str, path: pathlib.Path) -> None:
    """A panel per question, times over sizes, both in logarithms."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"font.size": 9, "svg.fonttype": "none"}):
        width = 2.6 * len(curves) + 1.0
        figure, row = plt.subplots(
            1, len(curves), figsize=(width, 2.8), squeeze=False, layout="constrained"
        )
        for axes, (title, each) in zip(row[0], curves.items(), strict=True):
            for who, points in each.items():
                sizes, times = zip(*points, strict=True)
                axes.plot(sizes, [1e3 * t for t in times], marker="o", markersize=3, label=who)
            axes.loglog(base=2)
            axes.set_xticks(sizes, [f"{each:.0f}" for each in sizes], fontsize=7.5)
            axes.yaxis.set_major_formatter("{x:g}")
            axes.minorticks_off()
            axes.set_title(title, loc="left", fontsize=9.5, fontweight="bold")
            axes.set_xlabel(axis or title)
            axes.spines[["top", "right"]].set_visible(False)
        row[0, 0].set_ylabel("milliseconds")
        row[0, 0].legend(frameon=False)
        figure.savefig(path)
        plt.close(figure)


if __name__ == "__main__":
    main()
