"""The import hook: puts `checked` on the functions and classes of chosen packages as they load."""

import ast
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

from eqxformer.checks import ShapeError

# Part of the names of cached bytecode. Raise it when the transformation below changes.
_VERSION = "checks1"

_FUNCTION = "_eqxformer_checked"
_CLASS = "_eqxformer_checked_class"
_IMPORT = (
    f"from eqxformer.checks._contract import checked as {_FUNCTION}, checked_class as {_CLASS}"
)


class _Finder(MetaPathFinder):
    """Finds what the other finders find, and gives modules of `packages` the loader below."""

    def __init__(self) -> None:
        self.packages: list[str] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not covers(fullname) or fullname.startswith("eqxformer.checks"):
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = None if finder is self or find is None else find(fullname, path, target)
            if spec is not None:
                # Exactly this loader: a subclass compiles in a way of its own, as pytest's does.
                if type(spec.loader) is SourceFileLoader:
                    spec.loader = _Loader(spec.loader.name, spec.loader.path)
                return spec
        return None


_FINDER = _Finder()


def install(packages: Sequence[str]) -> None:
    """Checks the modules of `packages` that are loaded from now on."""
    _FINDER.packages.extend(packages)
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
        sys.excepthook = _told_shortly(sys.excepthook)


def _told_shortly(before: Callable[..., Any]) -> Callable[..., Any]:
    """What prints an error that ends the process, with the user's own frames alone of a shape's.

    Frames of Equinox lie between a user's call and the function that has refused it.
    """

    def excepthook(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
        if isinstance(error, ShapeError):
            from eqxformer.checks._where import tidy  # here, where Equinox is loaded already

            traceback = tidy(traceback)
            error = error.with_traceback(traceback)
        before(kind, error, traceback)

    return excepthook


def covers(module: str) -> bool:
    """Whether `module` is in one of the packages that are checked."""
    return any(module == name or module.startswith(f"{name}.") for name in _FINDER.packages)


class _Loader(SourceFileLoader):
    """Loads a source file with `checked` put in; its bytecode is cached under a name of its own."""

    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> CodeType:  # pyright: ignore[reportIncompatibleMethodOverride]
        tree = ast.parse(importlib.util.decode_source(data), path)
        return compile(instrument(tree), path, "exec", dont_inherit=True, optimize=_optimize)

    def get_data(self, path: str) -> bytes:
        return super().get_data(_own(path))

    def set_data(self, path: str, data: Any, **options: Any) -> None:
        super().set_data(_own(path), data, **options)


def _own(path: str) -> str:
    return path.removesuffix(".pyc") + f".{_VERSION}.pyc" if path.endswith(".pyc") else path


def instrument(tree: ast.Module) -> ast.Module:
    """`tree` with the decorators put in, and their import after docstring and `__future__`."""
    tree = _Instrument().visit(tree)
    place = 0
    for place, statement in enumerate([*tree.body, ast.Pass()]):  # noqa: B007
        docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        future = isinstance(statement, ast.ImportFrom) and statement.module == "__future__"
        if not (docstring or future):
            break
    tree.body[place:place] = ast.parse(_IMPORT).body
    return ast.fix_missing_locations(tree)


class _Instrument(ast.NodeTransformer):
    """Puts the decorator nearest each annotated function, and farthest from each class.

    Nearest the function: what stands above it (`jax.custom_vjp`, `property`, `staticmethod`) then
    wraps the checked function and keeps its own methods. Farthest from the class: `dataclass` has
    then made its `__init__`. What `typing.no_type_check` marks is left alone.
    """

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if _no_type_check(node):
            return node
        if _annotated(node):
            node.decorator_list.append(_at(node, _FUNCTION))
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        if _no_type_check(node):
            return node
        own = any(isinstance(s, ast.FunctionDef) and s.name == "__init__" for s in node.body)
        call = ast.Call(_at(node, _CLASS), [], [ast.keyword("own_init", ast.Constant(own))])
        node.decorator_list.insert(0, ast.copy_location(call, node))
        return self.generic_visit(node)


def _at(node: ast.stmt, name: str) -> ast.expr:
    return ast.copy_location(ast.Name(name, ast.Load()), node)


def _annotated(node: ast.FunctionDef) -> bool:
    a = node.args
    every = [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg]
    return node.returns is not None or any(arg is not None and arg.annotation for arg in every)


def _no_type_check(node: ast.FunctionDef | ast.ClassDef) -> bool:
    return any(ast.unparse(d).endswith("no_type_check") for d in node.decorator_list)
