"""What exactly does not fit, found once something does not: the text of a `ShapeError`."""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Shaped

from eqxformer.checks import _hints as hints

_NO_BRACES = str.maketrans("", "", "{}")


class Named(NamedTuple):
    """A value with its annotation and with what it is called where the user wrote it."""

    label: str
    hint: Any
    value: Any


class Fault(NamedTuple):
    """What does not fit (`x`), what is wrong with it, and the arrays that show it."""

    subject: str
    problem: str
    details: list[str]

    def text(self, place: str) -> str:
        """The message, given where the annotation stands."""
        return "\n  ".join([f"{self.subject} of {place}: {self.problem}.", *self.details])


def first_fault(checked: Iterable[Named], known: Iterable[Named]) -> Fault | None:
    """The fault of the first of `checked` that does not fit; None if all of them fit.

    To be called in the scope in which it did not fit: what is `known` has set its axis words there.
    """
    before = list(known)
    for named in checked:
        if not hints.holds(named.value, named.hint):
            inner = _innermost(named)
            subject = f"`{inner.label}`" if named.label != "result" else "The result"
            if inner.label.startswith("result["):
                subject = f"The {inner.label}"
            return Fault(subject, *_explain(inner, before))
        before.append(named)
    return None


def _innermost(named: Named) -> Named:
    """The item of a container that does not fit, or what was given if it is not a container."""
    for option in hints.alternatives(named.hint):
        for index, hint, item in hints.elements(option, named.value):
            if not hints.holds(item, hint):
                return _innermost(Named(f"{named.label}{index}", hint, item))
    return named


def _explain(named: Named, before: list[Named]) -> tuple[str, list[str]]:
    """What is wrong with one value: its type, its dtype, its rank or one of its axes."""
    options = [o for o in hints.alternatives(named.hint) if hints.is_array_hint(o)]
    got = hints.describe(named.value)
    details = [f"{named.label}: {got}, annotated {hints.show(named.hint)}"]
    if not options or not hints.is_array(named.value):
        return f"must be {hints.show(named.hint)}; got {got}{_instead(named)}", []
    kinds = [o for o in options if o.array_type is Any or isinstance(named.value, o.array_type)]
    if not kinds:
        wanted = f"an array of type {hints.array_type(options[0])}"
        if options[0].array_type is jax.Array:
            wanted = "a JAX array (jax.numpy.asarray makes one)"
        return f"must be {wanted}; got {got}", details
    typed = [o for o in kinds if hints.fits(named.value, o.dtype[o.array_type, "..."])]
    if not typed:
        names = [option.dtype.__name__ for option in kinds]
        wanted = ["a key from jax.random.key"] if "Key" in names else dict.fromkeys(names)
        return f"must be {' or '.join(wanted)}; got {named.value.dtype}", details
    ranked = [o for o in typed if hints.line_up(o, named.value.shape) is not None]
    if not ranked:
        ranks = " or ".join(dict.fromkeys(hints.ranks(option) for option in typed))
        return f"must have {ranks}; got {len(named.value.shape)}", details
    problem, sources = _axis(Named(named.label, ranked[0], named.value), before)
    return problem, details + sources


def _instead(named: Named) -> str:
    """What a class says of those who pass an array where it is wanted."""
    classes = hints.alternatives(named.hint) if hints.is_array(named.value) else ()
    return next((f"; {c.of_array}" for c in classes if hasattr(c, "of_array")), "")


def _axis(named: Named, before: list[Named]) -> tuple[str, list[str]]:
    """The axis that does not fit, and the arrays that fixed the size it should have."""
    parts = hints.line_up(named.hint, named.value.shape) or []
    # Words for many axes last, since the others are compared first by jaxtyping too.
    for word, sizes in sorted(parts, key=lambda part: hints.takes_many(part[0])):
        stand_in = jax.ShapeDtypeStruct(sizes, jnp.float32)
        if hints.fits(stand_in, Shaped[jax.ShapeDtypeStruct, word]):
            continue
        expected, sources = _expected(word, [*before, named])
        many = hints.takes_many(word)
        got = sizes if many else sizes[0]
        verb = "broadcast to" if hints.broadcasts(word) else "be"
        wanted = "does not fit" if expected is None else f"must {verb} {expected}"
        return f"{'axes' if many else 'axis'} `{word}` {wanted}; got {got}", [
            f"{s.label}: {hints.describe(s.value)}, annotated {hints.show(s.hint)}; sets {text}"
            for s, text in sources
            if s is not named
        ][:3]
    return "its axes do not fit", []


def _expected(word: str, known: list[Named]) -> tuple[Any, list[tuple[Named, str]]]:
    """The size that `word` must have, or None if it cannot be told, and who fixed it."""
    name, many = hints.bare(word), hints.takes_many(word)
    if name.isdecimal():
        return int(name), []
    found = {n: _source(n, many, known) for n in dict.fromkeys(re.findall(r"[A-Za-z_]\w*", name))}
    sizes = {n: size for n, (size, _) in found.items() if size is not None}
    sizes |= {k.label: k.value for k in known if isinstance(k.value, int)}  # `{times}*seq`
    sources = [(source, f"{n}={size}") for n, (size, source) in found.items() if source is not None]
    if name in sizes:
        return sizes[name], sources
    try:
        return eval(name.translate(_NO_BRACES), {"__builtins__": {}}, sizes), sources
    except Exception:
        return None, sources


def _source(name: str, many: bool, known: list[Named]) -> tuple[Any, Named | None]:
    """The first array that has an axis of this name, and the size of it there."""
    for named in known:
        for option in hints.alternatives(named.hint):
            array = hints.is_array_hint(option) and hints.is_array(named.value)
            parts = hints.line_up(option, named.value.shape) if array else None
            for word, sizes in parts or []:
                if hints.bare(word) == name and hints.takes_many(word) == many:
                    return (sizes if many else sizes[0]), named
    return None, None


def fields(module: Any, names: dict[str, Any]) -> list[Named]:
    """The array fields of a module as they are now, under the names of their annotations."""
    values = vars(module) if isinstance(module, eqx.Module) else {}
    return [Named(n, h, values[n]) for n, h in names.items() if hints.is_array(values.get(n))]
