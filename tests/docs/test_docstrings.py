"""Every public name has a docstring, and every example in one runs and prints what it says."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import eqxformer as ef
from eqxformer import architectures

MODULES = sorted(
    name
    for _, name, is_package in pkgutil.walk_packages(ef.__path__, "eqxformer.")
    if not name.endswith("__main__") and not name.startswith("eqxformer.checks")
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name, monkeypatch):
    monkeypatch.setattr(architectures, "_own", dict(architectures._own))  # one registers another
    module = importlib.import_module(name)
    failures = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE, verbose=False)
    for example in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        runner.run(example, out=failures.append)
    assert not failures, "".join(failures)


def test_every_public_name_says_what_it_is():
    silent = [n for n in public_names() if not (inspect.getdoc(getattr(ef, n)) or "").strip()]
    assert not silent


def test_every_public_name_has_an_example():
    """But the errors, whose page shows them raised, and the names of types."""
    exempt = {name for name in public_names() if _is_error(getattr(ef, name))}
    exempt |= {"Answer", "Question", "Step"}
    without = [n for n in public_names() if ">>>" not in (getattr(ef, n).__doc__ or "")]
    assert not set(without) - exempt


def _is_error(part):
    return inspect.isclass(part) and issubclass(part, BaseException)


def test_every_public_method_says_what_it_is():
    """An override may leave that to the method it implements, which `getdoc` finds."""
    silent = [
        f"{name}.{attribute}"
        for name in public_names()
        if inspect.isclass(part := getattr(ef, name)) and part.__module__.startswith("eqxformer")
        for attribute, found in vars(part).items()
        for value in [getattr(found, "__func__", getattr(found, "fget", found))]
        if callable(value) and not attribute.startswith("_") and not inspect.getdoc(value)
        if name != "Tokenizer"  # a protocol, which says in its own docstring what its parts are
        if not inspect.getdoc(getattr(part, attribute))
    ]
    assert not silent


def public_names():
    """Functions and classes that people reach as `eqxformer.name`."""
    found = [n for n in dir(ef) if not n.startswith("_") and n not in ("Any", "TYPE_CHECKING")]
    return [
        n for n in found if inspect.isroutine(getattr(ef, n)) or inspect.isclass(getattr(ef, n))
    ]
