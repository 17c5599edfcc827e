"""Rotary positions from a `config.json`, in the words of transformers 4 and of transformers 5.

Version 4 writes `rope_theta` and `rope_scaling` beside each other, version 5 one `rope_parameters`,
which may hold one entry per type of layer. Both are read, and whatever stands in them is accounted
for just like the keys of the file itself.
"""

from collections.abc import Mapping
from typing import Any, Literal

from eqxformer.checkpoints.settings import Settings
from eqxformer.layers.rotary import (
    DynamicNTK,
    LinearScaling,
    Llama3Scaling,
    LongRoPE,
    Rotary,
    Scaling,
    YaRN,
)

_FRACTION = "partial_rotary_factor"


def rotary(
    settings: Settings,
    *,
    layer_type: str | None = None,
    base: float = 10_000.0,
    base_key: str = "rope_theta",
    fraction: float | None = None,
    fraction_key: str = "partial_rotary_factor",
    scaled: bool = True,
    layout: Literal["half", "interleaved"] = "half",
) -> Rotary:
    """The rotary positions of all layers, or of those of one type.

    Arguments:
        layer_type: as in `rope_parameters`, where it has one entry per type.
        base: of the frequencies, where nothing says another.
        base_key: what version 4 calls the base, for this type of layer.
        fraction: how much of a head is turned, where nothing says another; None for architectures
            that turn all of it, whatever their settings say.
        fraction_key: what version 4 calls that.
        scaled: whether version 4's `rope_scaling` is about this type of layer.
        layout: how the numbers of a head are paired.

    Raises `CheckpointError` for a kind of scaling, or a key of it, that is not known.

    Example:
        >>> from eqxformer.checkpoints import Settings
        >>> from eqxformer.checkpoints.rope import rotary
        >>> rotary(Settings({"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2}}))
        Rotary(base=500.0, scaling=LinearScaling(factor=2.0))
    """
    words = _words(settings, layer_type, {"rope_theta": base_key, _FRACTION: fraction_key}, scaled)
    kind = words.get("rope_type", words.get("type", "default"))
    if kind not in _KINDS:
        raise words.wrong("rope_type", f"one of {', '.join(_KINDS)}", kind)
    if fraction is None:
        words.only(_FRACTION, 1.0)
    found = Rotary(
        base=words.number("rope_theta", base),
        fraction=words.number(_FRACTION, fraction or 1.0),
        layout=layout,
        scaling=_KINDS[kind](words, settings),
    )
    words.check_all_read("this kind of rotary positions")
    return found


def _words(
    settings: Settings, layer_type: str | None, keys: Mapping[str, str], scaled: bool
) -> Settings:
    """What is said of rotary positions, in the words of version 5, wherever it stands.

    Arguments:
        keys: what version 4 calls some of them, at the top level.
        scaled: whether its `rope_scaling` is about this type of layer.
    """
    old = {key: settings.number(name, None) for key, name in keys.items()}
    scaling, given = (_object(settings, key) for key in ("rope_scaling", "rope_parameters"))
    given = _of_layer_type(settings, given, layer_type)
    scaling = scaling if scaled else {}
    for key in scaling.keys() & given.keys():
        if scaling[key] != given[key]:
            raise settings.wrong("rope_scaling", "what `rope_parameters` says", scaling)
    values = {**{k: v for k, v in old.items() if v is not None}, **scaling, **given}
    return Settings(values, where=f"{settings.where}, rope_parameters")


def _object(settings: Settings, key: str) -> dict[str, Any]:
    found = settings.get(key, {})
    if not isinstance(found, dict):
        raise settings.wrong(key, "an object", found)
    return found


def _of_layer_type(
    settings: Settings, given: dict[str, Any], layer_type: str | None
) -> dict[str, Any]:
    """The entry of a type of layer, which may be lacking; all of what is not divided by types."""
    divided = {key for key, value in given.items() if isinstance(value, dict)}
    if not divided and not (layer_type and given):
        return given
    nulls = {key for key, value in given.items() if value is None}
    if layer_type is None or divided | nulls != given.keys():
        expected = "one object per type of layer" if layer_type else "one object for all layers"
        raise settings.wrong("rope_parameters", expected, given)
    return given.get(layer_type) or {}


def _original(words: Settings, settings: Settings) -> int:
    """The length of the texts that the model was first trained on; the file's own word is first."""
    own = words.size("original_max_position_embeddings", None)
    outer = settings.size("original_max_position_embeddings", None)
    return outer or own or settings.size("max_position_embeddings")


def _plain(words: Settings, settings: Settings) -> None:
    words.skip("factor", "original_max_position_embeddings")


def _linear(words: Settings, settings: Settings) -> Scaling:
    words.skip("original_max_position_embeddings")
    return LinearScaling(words.number("factor"))


def _dynamic(words: Settings, settings: Settings) -> Scaling:
    words.skip("original_max_position_embeddings")
    length = settings.size("max_position_embeddings")
    return DynamicNTK(words.number("factor"), length)


def _llama3(words: Settings, settings: Settings) -> Scaling:
    return Llama3Scaling(
        words.number("factor"),
        words.number("low_freq_factor"),
        words.number("high_freq_factor"),
        _original(words, settings),
    )


def _factor(words: Settings, settings: Settings, original: int) -> float:
    given = words.number("factor", None)
    return settings.size("max_position_embeddings") / original if given is None else given


def _yarn(words: Settings, settings: Settings) -> Scaling:
    words.skip("finetuned")  # whether the model was trained with it
    original = _original(words, settings)
    factor = _factor(words, settings, original)
    ours = YaRN(
        factor,
        original,
        fast=words.number("beta_fast", 32.0),
        slow=words.number("beta_slow", 1.0),
        rounded=words.flag("truncate", True),
        attention_factor=words.number("attention_factor", None),
    )
    part, whole = words.number("mscale", None), words.number("mscale_all_dim", None)
    if ours.attention_factor is None and part and whole:
        growth = ours.magnitude() - 1.0  # 0.1 ln(factor), or nothing
        return ours.edit(attention_factor=(part * growth + 1.0) / (whole * growth + 1.0))
    return ours


def _longrope(words: Settings, settings: Settings) -> Scaling:
    original = _original(words, settings)
    divisors: Mapping[str, tuple[float, ...]] = {
        key: tuple(map(float, words.items(key))) for key in ("short_factor", "long_factor")
    }
    return LongRoPE(
        divisors["short_factor"],
        divisors["long_factor"],
        original,
        _factor(words, settings, original),
        attention_factor=words.number("attention_factor", None),
    )


_KINDS = {
    "default": _plain,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,  # what LongRoPE was called first
}


def describe_rotary(rotary: Rotary) -> dict[str, Any]:
    """The `rope_parameters` that say what these rotary positions are, the inverse of `rotary`.

    Those whose base grows with the text need `describe_length` beside it. Raises `ValueError` for
    a scaling that no `config.json` has words for.
    """
    words: dict[str, Any] = {"rope_type": "default", "rope_theta": rotary.base}
    if rotary.fraction != 1.0:
        words[_FRACTION] = rotary.fraction
    match rotary.scaling:
        case None:
            return words
        case LinearScaling(factor):
            return {**words, "rope_type": "linear", "factor": factor}
        case DynamicNTK(factor):
            return {**words, "rope_type": "dynamic", "factor": factor}
        case Llama3Scaling(factor, low, high):
            ends = {"low_freq_factor": low, "high_freq_factor": high}
            words |= {"rope_type": "llama3", "factor": factor, **ends}
        case YaRN(factor, _, fast, slow, rounded, magnitude):
            ramp = {"beta_fast": fast, "beta_slow": slow, "truncate": rounded}
            words |= {"rope_type": "yarn", "factor": factor, **ramp, **_magnitude(magnitude)}
        case LongRoPE(short, long, _, factor, magnitude):
            divisors = {"short_factor": list(short), "long_factor": list(long)}
            words |= {"rope_type": "longrope", "factor": factor, **divisors}
            words |= _magnitude(magnitude)
        case other:
            raise ValueError(f"no `config.json` has words for {other}")
    return {**words, "original_max_position_embeddings": rotary.scaling.original_length}


def _magnitude(given: float | None) -> dict[str, float]:
    """The factor of cosines and sines, where it is not the one that follows from the rest."""
    return {} if given is None else {"attention_factor": given}


def describe_length(rotary: Rotary | None) -> dict[str, int]:
    """The longest text that scaled rotary positions are meant for; nothing where they have none.

    The kind called dynamic starts to grow there.
    """
    match None if rotary is None else rotary.scaling:
        case DynamicNTK(_, original):
            return {"max_position_embeddings": original}
        case Llama3Scaling() | YaRN() | LongRoPE() as scaling:
            return {"max_position_embeddings": round(scaling.factor * scaling.original_length)}
        case _:
            return {}
