"""What `website.check_commands` does otherwise than a page says, each with its reason."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from website.given import GIVEN, STEPS
from website.shell import Command


class NotRun(NamedTuple):
    """Commands that a pattern finds are not run here; why, and what does run them."""

    pattern: str
    reason: str


class Changed(NamedTuple):
    """What a pattern finds in a command becomes something else; `reason` says what for."""

    pattern: str
    put: str
    reason: str


NOT_RUN = (
    NotRun(r"^pytest\b", "the tests; `.ci/run` runs all of them"),
    NotRun(
        r"^python -m tests\.parity\.page$",
        "takes half an hour; tests/parity makes the same comparisons, and `.ci/run` runs those",
    ),
    NotRun(r"^python -m mkdocs serve$", "does not end; `.ci/run` builds the same site"),
    NotRun(r"\b(?:SOURCE|COMMAND)\b", "a form to fill in"),
)

# What makes a benchmark short; behind what a page says, so that it holds.
SHORT = {
    "attention": "--lengths 16 --tokens 32 --repetitions 1",
    "call_overhead": "--layers 1 --repetitions 1",
    "compile_time": "--depths 1 2 --dim 48 --seq 16 --batch 2 --repetitions 1",
    "cross_entropy": "--vocab 65 --tokens 64 --dim 16 --repetitions 1",
    "forward": "--sizes vpj --batch 1 --repetitions 1",
    "generation": "--batches 1 --prompt 4 --new 4 --repetitions 1",
    "growth": "--axes length --lengths 8 16 --base 8 32 1 1 --repetitions 1",
    "loading": "--repetitions 1",
    "pretraining": "--steps 2",
    "shape_checks": "--repetitions 1",
    "speculative": "--rows 1 --repetitions 1",
    "training_step": "--sizes vpj --batch 1 --candidates eqxformer 'plain equinox' --repetitions 1",
}

CHANGED = (
    Changed(
        r"^pip install\b",
        "pip install --dry-run",
        "finds out what would be installed, and leaves this environment as it is",
    ),
    Changed(
        r"^(eqxformer train translate\b.*)$",
        r"\1 --steps 4 --set averaged=2 --set average_every=2"
        " --set optimizer.learning_rate.warmup=1 --set optimizer.learning_rate.cooldown=1",
        "hours of training",
    ),
    Changed(
        r"\beqxformer train\b(?! translate)(?!.*(?:--resume|--dry-run|--help))",
        f"eqxformer train --steps {STEPS} --set checkpoint_every=2",
        "minutes of training",
    ),
    Changed(
        r"^(?=eqxformer train .*--mesh )",
        "XLA_FLAGS=--xla_force_host_platform_device_count=8 ",
        "one CPU passes for eight devices",
    ),
    Changed(
        r"^srun (.*)--mesh fsdp=8,tensor=4",
        r"XLA_FLAGS=--xla_force_host_platform_device_count=2 srun \1--mesh fsdp=2,tensor=2",
        "`website/srun.py` starts two tasks, each with two devices; 32 would compile for an hour",
    ),
    *(
        Changed(rf"^(python benchmarks/{name}\.py\b.*)$", rf"\1 {short}", "hours of measuring")
        for name, short in SHORT.items()
    ),
    Changed(
        r"\beqxformer bench gpt2\b",
        "eqxformer bench gpt2 --batch 1 --seq 32 --question forward",
        "made for a GPU",
    ),
    Changed(
        r"\beqxformer bench\b",
        "eqxformer bench --repetitions 2 --no-ceilings",
        "what is measured here is of no interest",
    ),
    Changed(r"&(\n.*)$", r"&\1 && wait $!", "the command in the background must end well too"),
)

# What a command may print although it ends well, and yet has not done what the page says.
COMPLAINTS = (r"does not provide the extra",)


def reason_not_to_run(text: str) -> str | None:
    """Why a command is not run; None where it is."""
    return next((each.reason for each in NOT_RUN if re.search(each.pattern, text)), None)


def changed(text: str) -> str:
    """A command as it is run."""
    for each in CHANGED:
        text = re.sub(each.pattern, each.put, text)
    return text


def idle(commands: Iterable[Command]) -> list[str]:
    """The patterns of this file and of `given.py` that no command needs any more.

    What is not run is not changed either, and nothing is made for it.
    """
    texts = [each.text for each in commands]
    run = [text for text in texts if reason_not_to_run(text) is None]
    needed = [(each.pattern, texts) for each in NOT_RUN]
    needed += [(each.pattern, run) for each in (*CHANGED, *GIVEN)]
    return [
        pattern for pattern, among in needed if not any(re.search(pattern, text) for text in among)
    ]
