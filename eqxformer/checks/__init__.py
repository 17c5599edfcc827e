"""Shape contracts: every annotation compared with the values that arrive, when asked for.

Off by default, and then nothing of it is there: functions are the plain functions of the source.
`EQXFORMER_CHECKS=1` in the environment, or `eqxformer.check_shapes()` before the first part is
used, compares every annotated argument, result and array field of `eqxformer` (and of packages of
your own) with what it gets, each time a function runs as Python: eagerly, or while JAX traces it.
A compiled step is the same program with and without.
"""

import os
import sys
import warnings

VARIABLE = "EQXFORMER_CHECKS"

_ON = frozenset({"1", "true", "on", "yes"})
_OFF = frozenset({"", "0", "false", "off", "no"})
_NEVER_CHECKED = ("eqxformer.__about__", "eqxformer.checks")


class ShapeError(TypeError):
    """An argument, a result or a field that does not fit its annotation.

    The message names the place in the model, the function, the argument and the axis; what was
    expected and what came; and the array that fixed the expected size. Wrong dtypes, wrong ranks
    and wrong types of plain arguments are reported the same way.
    """

    __module__ = "eqxformer"  # as users write it


def check_shapes(*packages: str) -> None:
    """Turns the run-time checks on for `eqxformer` and for `packages`, for the whole process.

    Arguments:
        packages: names of further packages whose functions and dataclasses are to be checked,
            such as `"mypackage"`; their subpackages are included.

    Raises `RuntimeError` if modules of one of them are loaded already, since a function is checked
    from the moment its module is loaded; `ValueError` for a name that cannot be a package.

    Example:
        >>> import eqxformer as ef
        >>> ef.check_shapes()  # doctest: +SKIP
        >>> model = ef.Linear(8, 16, key=jax.random.key(0))  # doctest: +SKIP
        >>> model(jnp.ones((2, 7)))  # doctest: +SKIP
        Traceback (most recent call last):
        ...
        ShapeError: `x` of Linear.__call__: axis `in_dim` must be 8; got 7.
          x: float32[2,7], annotated Float[Array, "*batch in_dim"]
          self.weight: float32[8,16], annotated Float[Array, "in_dim out_dim"]; sets in_dim=8
    """
    wanted = _new(("eqxformer", *packages), "a package given to `check_shapes`")
    for package in wanted:
        if loaded := _loaded(package):
            raise RuntimeError(
                f"`check_shapes` must run before {package} is loaded; {_few(loaded)} already is. "
                "Call it directly after `import eqxformer`, before anything else of it is used or "
                f"imported, or start Python with {VARIABLE}={','.join(('eqxformer', *packages))}."
            )
    _install(wanted)


def install_from_environment() -> None:
    """Does what `check_shapes` does if the environment asks for it; `import eqxformer` calls it.

    `EQXFORMER_CHECKS=1` is for `eqxformer`; a list such as `eqxformer,mypackage` for more. Modules
    of `mypackage` that were loaded before `eqxformer` stay unchecked, which a warning says.
    """
    words = [word.strip() for word in os.environ.get(VARIABLE, "").split(",")]
    if all(word.lower() in _OFF for word in words):
        return
    names = [word for word in words if word.lower() not in _ON | _OFF]
    wanted = _new(("eqxformer", *names), f"a package named by {VARIABLE}")
    unchecked = [module for package in wanted for module in _loaded(package)]
    if unchecked:
        warnings.warn(
            f"{VARIABLE} came too late for {_few(unchecked)}: loaded before eqxformer, and so not "
            "checked. Put `import eqxformer` first.",
            stacklevel=2,
        )
    _install(wanted)


def _new(packages: tuple[str, ...], what: str) -> list[str]:
    """Those of `packages` that are not checked yet."""
    for package in packages:
        if not all(part.isidentifier() for part in package.split(".")):
            raise ValueError(f"{what} must be a name such as `mypackage`; got {package!r}.")
    hook = sys.modules.get("eqxformer.checks._hook")
    return [name for name in dict.fromkeys(packages) if hook is None or not hook.covers(name)]


def _loaded(package: str) -> list[str]:
    """Modules of `package` that are loaded and would stay unchecked."""
    return [
        name
        for name in sys.modules
        if (name == package or name.startswith(f"{package}."))
        and name != "eqxformer"
        and not name.startswith(_NEVER_CHECKED)
    ]


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _install(packages: list[str]) -> None:
    if packages:
        from eqxformer.checks import _hook  # here, since nothing is loaded while checks are off

        _hook.install(packages)
