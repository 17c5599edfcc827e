"""What was measured, as text: a table, or one paragraph a question where that is too wide."""

from collections.abc import Mapping
from typing import Any

from eqxformer.inspect.table import size

_TITLES = ("", "median", "quartiles", "tokens/s", "of the ceiling", "memory")
_NUMBERS = (3,)  # columns that end under each other
_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
_RATES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))


def report(found: Mapping[str, Mapping[str, Any]], machine: Mapping[str, Any], width: int) -> str:
    """The table of what `asking.ask` gave, no wider than `width` if it can be, and the machine.

    Example:
        >>> from eqxformer.bench.report import report
        >>> step = {"of": "step", "median": 0.2, "quartiles": [0.19, 0.22]}
        >>> step = {**step, "repetitions": 7, "tokens_per_second": 3840.0}
        >>> machine = {"platform": "cpu", "device": "cpu", "processor": "a chip", "cores": 2}
        >>> print(report({"train": step}, machine, width=80))
               median         quartiles   tokens/s
        train  200 ms a step  190-220 ms     3,840
        <BLANKLINE>
        medians of 7 on cpu (a chip, 2 cores)
    """
    rows = [_TITLES, *(_row(question, facts) for question, facts in found.items())]
    columns = [i for i in range(len(_TITLES)) if i == 0 or any(row[i] for row in rows[1:])]
    widths = {i: max(len(row[i]) for row in rows) for i in columns}
    if sum(widths.values()) + 2 * (len(columns) - 1) <= width:
        body = "\n".join(
            "  ".join(
                f"{row[i]:{'>' if i in _NUMBERS else '<'}{widths[i]}}" for i in columns
            ).rstrip()
            for row in rows
        )
    else:
        body = "\n".join(
            "\n".join([row[0], *(f"  {_TITLES[i]}: {row[i]}" for i in columns[1:] if row[i])])
            for row in rows[1:]
        )
    return f"{body}\n\n{_foot(found, machine)}"


def _row(question: str, facts: Mapping[str, Any]) -> tuple[str, ...]:
    unit, middle = facts["of"], facts["median"]
    low, high = facts["quartiles"]
    memory = facts.get("peak_memory_bytes")
    return (
        question,
        f"{duration(middle)} a {unit}",
        f"{duration(low, middle).split()[0]}-{duration(high, middle)}",
        f"{facts['tokens_per_second']:,.0f}",
        _share(facts),
        "" if memory is None else size(memory),
    )


def _share(facts: Mapping[str, Any]) -> str:
    if "share_of_ceiling" not in facts:
        return ""
    unit = "B/s" if "bytes_per_second" in facts else "FLOP/s"
    return f"{facts['share_of_ceiling']:.0%} of {rate(facts['ceiling'], unit)}"


def _foot(found: Mapping[str, Mapping[str, Any]], machine: Mapping[str, Any]) -> str:
    numbers = sorted({facts["repetitions"] for facts in found.values()})
    lines = [f"medians of {' to '.join(map(str, numbers[:1] + numbers[1:][-1:]))} on "]
    lines[0] += hardware(machine)
    versions = machine.get("versions")
    if versions:
        names = ("jax", "jaxlib", "equinox")
        text = ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
        lines.append(f"python {machine['python']}, {text}")
    return "\n".join(lines)


def hardware(machine: Mapping[str, Any]) -> str:
    """The device, and the processor that feeds it."""
    device, cores = machine["device"], f"{machine['cores']} cores"
    name = machine["platform"] if device == machine["platform"] else f"{device}"
    return f"{name} ({machine['processor'] or 'processor unknown'}, {cores})"


def duration(seconds: float, like: float | None = None) -> str:
    """Seconds to three digits with a unit, that of `like` if it is given.

    Example:
        >>> from eqxformer.bench.report import duration
        >>> duration(1.5), duration(0.0234), duration(1.234e-05)
        ('1.50 s', '23.4 ms', '12.3 us')
    """
    scale, unit = next((each for each in _TIMES if (like or seconds) >= each[0]), _TIMES[-1])
    value = seconds / scale
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f} {unit}"


def rate(value: float, unit: str) -> str:
    """So much a second, to three digits: `251 GFLOP/s`."""
    scale, letter = next((each for each in _RATES if value >= each[0]), (1.0, ""))
    return f"{value / scale:.3g} {letter}{unit}"
