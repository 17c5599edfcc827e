"""Whether two config trees are of models that compute the same from the same weights."""

from typing import Any

from eqxformer.config import Config

# What a config says that leaves the computed function of the weights as it is.
_FREE = ("init", "dropout", "drop_path", "backend", "origin")
# What a checkpoint says of an encoder's pooling in files of its own.
_IN_FILES = ("take", "unit_length")
OTHER_KIND = "the model is of another kind"


def differences(a: Config, b: Config) -> list[str]:
    """Lines that say where two trees differ in what they compute; none where they agree.

    A size that is left open counts as what it stands for; what an encoder's pooling takes, which
    checkpoints say in files of their own, and all that concerns training alone are left out.

    Example:
        >>> import eqxformer as ef
        >>> from eqxformer.pretrained.compare import differences
        >>> config = ef.families.llama(vocab=5, dim=8, layers=2, heads=2, hidden=16)
        >>> differences(config, config.edit("blocks.*.attention", kv_heads=2, head_dim=4))
        []
        >>> differences(config, config.edit("blocks.1.attention", softcap=5.0))
        ['blocks.1.attention.softcap: 5.0, not None']
    """
    return _differences(_plain(a), _plain(b), "")


def _plain(config: Config) -> Any:
    """A tree as plain values, every open size filled in, without what is free."""
    found = _kept(config.to_dict(), 0)
    pooling = found.get("pooling", {"dense": ()})
    if pooling["dense"] is None:
        found["pooling"] = {key: each for key, each in pooling.items() if key not in _IN_FILES}
    return found


def _kept(value: Any, dim: int) -> Any:
    if isinstance(value, list):
        return [_kept(each, dim) for each in value]
    if not isinstance(value, dict):
        return value
    dim = value.get("dim", dim)
    found = {key: _kept(each, dim) for key, each in value.items() if key not in _FREE}
    if "blocks" in found:
        found.pop("layout", None)  # how the blocks are stored; that of rotary positions counts
    if found["type"] == "Attention":
        found["kv_heads"] = found["kv_heads"] or found["heads"]
        found["head_dim"] = found["head_dim"] or dim // found["heads"]
        found["value_dim"] = found["value_dim"] or found["head_dim"]
        found["scale"] = found["scale"] or found["head_dim"] ** -0.5
    return found


def _differences(a: Any, b: Any, path: str) -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [line for key in a for line in _differences(a[key], b[key], f"{path}.{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [line for i, (x, y) in pairs for line in _differences(x, y, f"{path}.{i}")]
    where = path.removeprefix(".") or OTHER_KIND
    return [] if a == b else [f"{where}: {_brief(b)}, not {_brief(a)}"]


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("type", "..."))
    return f"{len(value)} of them" if isinstance(value, list) else repr(value)
