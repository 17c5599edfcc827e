"""What several commands of one process have in common, traced and compiled once for all of them."""

import contextlib
import functools
import sys
from collections.abc import Iterator

import pytest

import eqxformer as ef
from eqxformer.training import callbacks, trainer
from eqxformer.training.recipes import language_model

_shapes = functools.cache(ef.shapes)
_make_step = functools.cache(trainer.make_step)
_evaluator = functools.cache(callbacks.evaluator)
_build = {kind: functools.cache(kind.build) for kind in (ef.AdamW, ef.SGD)}


@contextlib.contextmanager
def shared_programs() -> Iterator[None]:
    """Runs with equal losses, optimizers, numbers of steps and options take the same step.

    Each `Trainer` and each `Validate` makes functions of its own otherwise, which are traced and
    compiled anew though they say the same; and so are the shapes of a model, wherever they are
    asked for.
    """
    with pytest.MonkeyPatch.context() as patch:
        for kind, build in _build.items():
            patch.setattr(kind, "build", build)
        patch.setattr(trainer, "make_step", _make_step)
        patch.setattr(callbacks, "evaluator", _evaluator)
        patch.setattr(language_model, "evaluator", _evaluator)
        for name, module in list(sys.modules.items()):
            if name.startswith("eqxformer") and vars(module).get("shapes") is _shapes.__wrapped__:
                patch.setattr(module, "shapes", _shapes)
        yield
