"""The contract: a function that compares its arguments and its result with its annotations."""

import contextlib
import dataclasses
import functools
import inspect
import sys
import types
import typing
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
from jaxtyping import config, jaxtyped

from eqxformer.checks import ShapeError, _hints
from eqxformer.checks._explain import Fault, Named, fields, first_fault
from eqxformer.checks._where import module_path, tidy

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Class = TypeVar("_Class", bound=type)

_CACHE: weakref.WeakKeyDictionary[type, dict[str, Any]] = weakref.WeakKeyDictionary()


class _Violation(BaseException):
    """Carries a fault through `jaxtyped`, which puts a page of its own round every `Exception`."""

    def __init__(self, fault: Fault, owner: Any):
        super().__init__(fault)
        self.fault, self.owner = fault, owner


def checked(fn: _Function) -> _Function:
    """`fn`, raising `ShapeError` for arguments or a result that do not fit its annotations.

    Axis words are compared over the arguments, the result and, in a method of a module, over the
    module's own array fields. Generators and coroutines are left alone.
    """
    generator = inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn)
    if generator or inspect.iscoroutinefunction(fn):
        return fn
    guard = _guard(fn)
    # With the function's own globals, so that tools which ask where a function is from (doctest)
    # are answered as without checks. `_guard`'s inner function uses no globals for this reason.
    wrapper = types.FunctionType(
        guard.__code__, fn.__globals__, fn.__name__, None, guard.__closure__
    )
    return functools.update_wrapper(wrapper, fn)  # pyright: ignore[reportReturnType]


def checked_class(*, own_init: bool) -> Callable[[_Class], _Class]:
    """A decorator that checks what goes into a dataclass, and the array fields of a new module.

    Arguments:
        own_init: whether the class body defines `__init__`, which is then checked by itself.
    """

    def decorate(cls: _Class) -> _Class:
        changed: Any = cls
        if dataclasses.is_dataclass(cls) and not _speaks_for_itself(cls):
            if not own_init and "__init__" in vars(cls):
                changed.__init__ = checked(cls.__init__)
            if issubclass(cls, eqx.Module):
                changed.__check_init__ = _fields_first(cls, vars(cls).get("__check_init__"))
        return changed

    return decorate


def _speaks_for_itself(cls: type) -> bool:
    """Whether this is a `Config`, which compares its fields with their annotations at all times."""
    return any(c.__module__ == "eqxformer.config" and c.__name__ == "Config" for c in cls.__mro__)


def _guard(fn: Callable[..., Any]) -> Callable[..., Any]:
    contract, build, turn = None, _build, _as_shape_error
    violations, shape_errors = _Violation, ShapeError

    def guard(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        nonlocal contract
        if contract is None:  # at the first call, when every name in the annotations is known
            contract = build(fn)
        try:
            return contract(*args, **kwargs)
        except violations as violation:
            error = turn(violation, fn)
        except shape_errors as inner:
            error = turn(inner, fn)
        kept = error.__traceback__
        try:
            raise error from None
        except shape_errors:
            error.__traceback__ = kept  # without this frame, which a bare `raise` does not add
            raise

    return guard


def _as_shape_error(error: _Violation | ShapeError, fn: Callable[..., Any]) -> ShapeError:
    """The error to raise from the checked `fn`: one already made further in goes on as it is."""
    if not isinstance(error, _Violation):
        return error.with_traceback(tidy(error.__traceback__))
    name = fn.__qualname__.rpartition("<locals>.")[2].removesuffix(".__init__")
    path = module_path(error.owner)
    return ShapeError(error.fault.text(f"{path} ({name})" if path else name))


def _build(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` between a check of its arguments and one of its result, in a scope of axis words.

    What can be known before a call is found out here, since nearly every call is right; what is
    wrong with one that is not, `_refuse` finds out.
    """
    signature = _with_types(inspect.signature(fn), fn.__globals__)
    hints = [*(p.annotation for p in signature.parameters.values()), signature.return_annotation]
    fit, returned = _arguments_fit(signature), _hints.test(signature.return_annotation)
    asks = any(_hints.asks_for_arguments(array) for hint in hints for array in _hints.arrays(hint))
    binds = next(iter(signature.parameters), None) == "self"
    binds = binds and any(_hints.arrays(hint) for hint in hints)
    scope = contextlib.nullcontext if asks else functools.partial(jaxtyped, "context")

    def contract(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if config.jaxtyping_disable:
            return fn(*args, **kwargs)
        with scope():
            if binds:
                _bind_fields(args[0] if args else None)
            if not fit(args, kwargs):
                _refuse(signature, args, kwargs)
            result = fn(*args, **kwargs)
            if returned is not None and not returned(result):
                _refuse(signature, args, kwargs, result)
        return result

    return _in_scope_of_arguments(fn, contract, signature) if asks else contract


def _in_scope_of_arguments(
    fn: Callable[..., Any], contract: Callable[..., Any], signature: inspect.Signature
) -> Callable[..., Any]:
    """`contract` where `jaxtyped` knows the arguments, for `Float[Array, "{times}*seq"]`."""
    scoped = jaxtyped(functools.wraps(fn)(contract), typechecker=lambda probe: probe)

    def bound(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        fitting = _bound(signature, args, kwargs) is not None
        return (scoped if fitting else fn)(*args, **kwargs)

    return bound


def _bound(signature: inspect.Signature, args: Any, kwargs: Any) -> dict[str, Any] | None:
    """The arguments by name; None for a call that Python itself refuses, and says why."""
    try:
        return signature.bind(*args, **kwargs).arguments
    except TypeError:
        return None


def _with_types(signature: inspect.Signature, names: dict[str, Any]) -> inspect.Signature:
    """`signature` with types where annotations are strings."""
    parameters = [
        p.replace(annotation=_meant(p.annotation, names)) for p in signature.parameters.values()
    ]
    meant = _meant(signature.return_annotation, names)
    return signature.replace(parameters=parameters, return_annotation=meant)


def _meant(annotation: Any, names: dict[str, Any]) -> Any:
    """The type that an annotation means; `Any` where a name is known to type checkers only."""
    if isinstance(annotation, type):
        return annotation

    def probe(value: Any) -> None:
        del value

    probe.__annotations__ = {"value": annotation}
    try:
        return typing.get_type_hints(probe, names, include_extras=True)["value"]
    except Exception:
        return Any


def _arguments_fit(signature: inspect.Signature) -> Callable[[Any, Any], bool]:
    """Whether arguments fit their annotations, in the order of the signature.

    As `signature.bind` would tell what belongs to what, which takes longer than all the rest.
    """
    tests: list[tuple[int, str | None, _hints.Test]] = []
    rest: tuple[int, _hints.Test] | None = None
    others: _hints.Test | None = None
    parameters = signature.parameters
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = {name for name, parameter in parameters.items() if parameter.kind in by_name}
    for place, (name, parameter) in enumerate(parameters.items()):
        test, kind = _hints.test(parameter.annotation), parameter.kind
        if test is None:
            continue
        if kind is inspect.Parameter.VAR_POSITIONAL:
            rest = place, test
        elif kind is inspect.Parameter.VAR_KEYWORD:
            others = test
        else:
            place = sys.maxsize if kind is inspect.Parameter.KEYWORD_ONLY else place
            tests.append((place, name if name in named else None, test))

    def fit(args: Any, kwargs: Any) -> bool:
        count = len(args)
        for place, name, test in tests:
            if place < count:
                if not test(args[place]):
                    return False
            elif name in kwargs and not test(kwargs[name]):
                return False
        if rest is not None and not all(map(rest[1], args[rest[0] :])):
            return False
        return others is None or all(others(v) for k, v in kwargs.items() if k not in named)

    return fit


def _refuse(signature: inspect.Signature, args: Any, kwargs: Any, *result: Any) -> None:
    """Raises what does not fit: the first argument, or the result if there is one."""
    bound = _bound(signature, args, kwargs)
    if bound is None:
        return
    owner = args[0] if args and next(iter(signature.parameters)) == "self" else None
    own = [Named(f"self.{n}", h, v) for n, h, v in fields(owner, _array_fields(type(owner)))]
    given: list[Named] = []
    for name, value in bound.items():
        parameter = signature.parameters[name]
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            given += [Named(f"{name}[{i}]", parameter.annotation, v) for i, v in enumerate(value)]
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
            given += [Named(n, parameter.annotation, v) for n, v in value.items()]
        else:
            given.append(Named(name, parameter.annotation, value))
    given += [Named("result", signature.return_annotation, value) for value in result]
    fault = first_fault(given, own) or Fault("The call", "does not fit its annotations", [])
    raise _Violation(fault, owner)


def _array_fields(cls: type) -> dict[str, Any]:
    """The fields of a module whose annotation is an array, or may be one."""
    known = _CACHE.get(cls)
    if known is None:
        found: dict[str, Any] = {}
        if issubclass(cls, eqx.Module):
            hints = _resolved(cls)
            for field in dataclasses.fields(cls):  # pyright: ignore[reportArgumentType]
                hint = hints.get(field.name, field.type)
                if any(_hints.is_array_hint(option) for option in _hints.alternatives(hint)):
                    found[field.name] = hint
        known = _CACHE[cls] = found
    return known


def _resolved(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except Exception:  # a name known to type checkers only; what is not a string is still usable
        return {}


def _bind_fields(module: Any) -> None:
    """Binds the axis words of a module's array fields in the current scope.

    An array of another rank or dtype than its annotation's says nothing: stacked for a scan,
    quantised, replaced by an adapter, or a description of an array.
    """
    values = vars(module) if isinstance(module, eqx.Module) else {}
    for name, hint in _array_fields(type(module)).items():
        value = values.get(name)
        if isinstance(value, jax.Array):
            _hints.holds(value, hint)


def _fields_first(cls: type, own: Callable[[Any], None] | None) -> Callable[[Any], None]:
    """A `__check_init__` that compares the array fields of a new module with each other."""

    def check(self: Any) -> None:
        if type(self) is cls:
            with jaxtyped("context"):
                named = fields(self, _array_fields(cls))
                named = [n for n in named if not isinstance(n.value, jax.ShapeDtypeStruct)]
                fault = first_fault(named, [])
            if fault is not None:
                path = module_path(self)
                name = cls.__qualname__.rpartition("<locals>.")[2]
                raise ShapeError(fault.text(f"{path} ({name})" if path else name))
        if own is not None:
            own(self)

    return check
