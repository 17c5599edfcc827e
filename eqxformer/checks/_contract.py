"""The contract: a function that compares its arguments and its result with its annotations."""

import dataclasses
import functools
import inspect
import itertools
import traceback
import types
import typing
import warnings
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
from beartype import beartype, roar
from jaxtyping import jaxtyped

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
    contract, build, turn, failed_to_bind = None, _build, _as_shape_error, _failed_to_bind
    violations, shape_errors, type_errors = _Violation, ShapeError, TypeError

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
        except type_errors as mistake:
            if not failed_to_bind(mistake):
                raise
            error = None
        if error is None:
            return fn(*args, **kwargs)  # raises Python's own message, which names the function
        kept = error.__traceback__
        try:
            raise error from None
        except shape_errors:
            error.__traceback__ = kept  # without this frame, which a bare `raise` does not add
            raise

    return guard


def _build(fn: Callable[..., Any]) -> Callable[..., Any]:
    return jaxtyped(fn, typechecker=_typechecker)


def _as_shape_error(error: _Violation | ShapeError, fn: Callable[..., Any]) -> ShapeError:
    """The error to raise from the checked `fn`: one already made further in goes on as it is."""
    if not isinstance(error, _Violation):
        return error.with_traceback(tidy(error.__traceback__))
    name = fn.__qualname__.rpartition("<locals>.")[2].removesuffix(".__init__")
    path = module_path(error.owner)
    return ShapeError(error.fault.text(f"{path} ({name})" if path else name))


def _failed_to_bind(error: TypeError) -> bool:
    """Whether `jaxtyped` could not match the arguments to the signature, of which it tells less."""
    frames = [frame for frame, _ in itertools.islice(traceback.walk_tb(error.__traceback__), 3)]
    return len(frames) == 3 and frames[2].f_code is inspect.Signature.bind.__code__


def _typechecker(fn: Callable[..., Any]) -> Callable[..., Any]:
    """What `jaxtyped` calls to compare values with hints: `beartype`, and modules' own fields.

    `fn` has the signature and annotations of a checked function, and does nothing. Called within
    the scope in which `jaxtyped` holds the axis words of one call: once for the arguments, and
    once more with the result, which is then all that is left to compare.
    """
    signature = inspect.signature(fn)
    output = _output(signature)
    fit = _arguments_fit(fn, signature) if output is None else _result_fits(fn, output)
    is_method = next(iter(signature.parameters), None) == "self"

    def compare(*args: Any, **kwargs: Any) -> None:
        owner = args[0] if is_method and args else None
        if output is None and isinstance(owner, eqx.Module):
            _bind_fields(owner)
        try:
            fault = None if fit(args, kwargs) else _find(signature, args, kwargs, owner)
        except roar.BeartypeCallHintViolation as violation:
            fault = _find(signature, args, kwargs, owner) or _unfound(violation)
        if fault is not None:
            raise _Violation(fault, owner)

    return compare


def _output(signature: inspect.Signature) -> str | None:
    """The name under which `jaxtyped` hands the result over; None where it asks for arguments."""
    if signature.return_annotation in (Any, inspect.Signature.empty):
        return None
    # One more keyword, behind all that have a name.
    return [n for n, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY][-1]


def _arguments_fit(fn: Callable[..., Any], signature: inspect.Signature) -> Callable[..., bool]:
    strict = _decorate(fn)
    containers = {n: hint for n, hint in fn.__annotations__.items() if _hints.has_items(hint)}

    def fit(args: Any, kwargs: Any) -> bool:
        strict(*args, **kwargs)
        # Of a container, `beartype` has looked at one item, at random.
        return all(
            _hints.holds(value, hint)
            for name, hint in containers.items()
            for value in _given(signature, name, args, kwargs)
        )

    return fit


def _result_fits(fn: Callable[..., Any], output: str) -> Callable[..., bool]:
    hint = fn.__annotations__["return"]  # without strings, which a signature may have

    def result(value: Any) -> Any:
        return value

    result.__annotations__ = {"return": hint}
    strict = _decorate(result)
    has_items = _hints.has_items(hint)

    def fit(_args: Any, kwargs: Any) -> bool:
        strict(kwargs[output])
        return not has_items or _hints.holds(kwargs[output], hint)

    return fit


def _decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` under `beartype`, with `Any` for the annotations that it cannot check."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", roar.BeartypeWarning)
        try:
            return beartype(conf=_hints.CONF)(fn)
        except roar.BeartypeException:
            hints = fn.__annotations__.items()
            fn.__annotations__ = {n: hint if _checkable(hint) else Any for n, hint in hints}
            return beartype(conf=_hints.CONF)(fn)


def _checkable(hint: Any) -> bool:
    def probe(value: Any) -> None:
        del value

    probe.__annotations__ = {"value": hint}
    try:
        beartype(conf=_hints.CONF)(probe)
    except roar.BeartypeException:
        return False
    return True


def _given(signature: inspect.Signature, name: str, args: Any, kwargs: Any) -> tuple[Any, ...]:
    """What was given for a parameter, which may be nothing or, for `*args` and `**kwargs`, much.

    As `signature.bind` would tell, which takes longer than all the rest of a check.
    """
    kind = signature.parameters[name].kind
    place = list(signature.parameters).index(name)
    if kind is inspect.Parameter.VAR_POSITIONAL:
        return args[place:]
    if kind is inspect.Parameter.VAR_KEYWORD:
        return tuple(value for key, value in kwargs.items() if key not in signature.parameters)
    if kind is not inspect.Parameter.KEYWORD_ONLY and place < len(args):
        return (args[place],)
    return (kwargs[name],) if name in kwargs else ()


def _find(signature: inspect.Signature, args: Any, kwargs: Any, owner: Any) -> Fault | None:
    """The first argument that does not fit, or the result if there is one."""
    bound = signature.bind(*args, **kwargs)
    own = [Named(f"self.{n}", h, v) for n, h, v in fields(owner, _array_fields(type(owner)))]
    given: list[Named] = []
    for name, value in bound.arguments.items():
        parameter = signature.parameters[name]
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            given += [Named(f"{name}[{i}]", parameter.annotation, v) for i, v in enumerate(value)]
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
            given += [Named(n, parameter.annotation, v) for n, v in value.items()]
        else:
            given.append(Named(name, parameter.annotation, value))
    if (output := _output(signature)) is not None:
        given = [named for named in given if named.label != output]
        given.append(Named("result", signature.return_annotation, bound.arguments[output]))
    known = [named for named in given if named.hint is not inspect.Parameter.empty]
    return first_fault(known, own)


def _unfound(violation: BaseException) -> Fault:
    return Fault("The call", " ".join(str(violation).split())[:400].rstrip("."), [])


def _array_fields(cls: type) -> dict[str, Any]:
    """The fields of a module whose annotation is an array, or may be one."""
    if cls not in _CACHE:
        found: dict[str, Any] = {}
        if issubclass(cls, eqx.Module):
            hints = _resolved(cls)
            for field in dataclasses.fields(cls):  # pyright: ignore[reportArgumentType]
                hint = hints.get(field.name, field.type)
                if any(_hints.is_array_hint(option) for option in _hints.alternatives(hint)):
                    found[field.name] = hint
        _CACHE[cls] = found
    return _CACHE[cls]


def _resolved(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except Exception:  # a name known to type checkers only; what is not a string is still usable
        return {}


def _bind_fields(module: eqx.Module) -> None:
    """Binds the axis words of a module's array fields in the current scope.

    An array of another rank or dtype than its annotation's says nothing: stacked for a scan,
    quantised, replaced by an adapter, or a description of an array.
    """
    values = vars(module)
    for name, hint in _array_fields(type(module)).items():
        value = values.get(name)
        if isinstance(value, jax.Array):
            _hints.fits(value, hint)


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
