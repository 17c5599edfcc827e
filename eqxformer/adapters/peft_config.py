"""PEFT's `adapter_config.json`: what it says of the adapters beside it, read and written."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from eqxformer.adapters.lora import DoRA, LoRA
from eqxformer.checkpoints.settings import Settings

CONFIG = "adapter_config.json"

# Keys that say nothing about what an adapted model computes; dropout acts in training alone.
_INERT = (
    *("auto_mapping", "base_model_name_or_path", "eva_config", "fan_in_fan_out", "inference_mode"),
    *("layers_pattern", "lora_dropout", "megatron_core", "merge_weights", "peft_version"),
    *("qalora_group_size", "revision", "runtime_config", "task_type"),
)
# Keys of other methods and of other initialisations, some of which change the weights of the base;
# with the values that turn them off.
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "eva", "gaussian", "orthogonal"),
    "loftq_config": ({},),
    "target_parameters": ([],),
    **dict.fromkeys(("lora_bias", "use_bdlora", "use_qalora"), (False,)),
    **dict.fromkeys(
        (
            *("alora_invocation_tokens", "arrow_config", "corda_config", "enable_lora"),
            *("kasa_config", "layer_replication", "lora_ga_config"),
            *("megatron_config", "monteclora_config", "trainable_token_indices", "velora_config"),
        ),
        (None,),
    ),
}
_RESTRICTING = ("exclude_modules", "layers_to_transform")
_NAME = re.compile(r"\^?(?:[\w-]|\\?\.)+", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Described:
    """What an `adapter_config.json` says.

    Arguments:
        lora: the adapter of a module of which nothing else is said.
        ranks, alphas: what else is said, by the end of a module's name.
        targets: the ends of names of modules with adapters; None where it is not a list of them.
        saved: the ends of names of modules that are stored whole.
        restricted: whether some targets have no adapter, since they are in other layers, say.
        tied: whether a token table that is saved whole is replaced in the head too.
    """

    lora: LoRA
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    targets: tuple[str, ...] | None
    saved: tuple[str, ...]
    restricted: bool
    tied: bool

    def of(self, module: str) -> LoRA:
        """The adapter of a module."""
        ranks, alphas = _by_end(self.ranks, module), _by_end(self.alphas, module)
        return self.lora.edit(
            rank=self.lora.rank if ranks is None else ranks,
            alpha=self.lora.alpha if alphas is None else alphas,
        )


def described(values: Mapping[str, Any], where: str) -> Described:
    """What the values of an `adapter_config.json` say, every one of them accounted for.

    Raises `CheckpointError` for adapters of another kind, and for a key that could change what they
    compute and that is not known or not supported.
    """
    settings = Settings(values, where=where)
    settings.choice("peft_type", ("LORA",))
    settings.skip(*_INERT)
    for key, allowed in _ONLY.items():
        settings.only(key, *allowed)
    kind = DoRA if settings.flag("use_dora", False) else LoRA
    restricting = [settings.get(key, None) for key in _RESTRICTING]
    found = Described(
        kind(
            rank=settings.size("r", 8),
            alpha=_positive(settings, "lora_alpha", settings.number("lora_alpha", 8.0)),
            scale="alpha/sqrt(rank)" if settings.flag("use_rslora", False) else "alpha/rank",
        ),
        _pattern(settings, "rank_pattern", _rank),
        _pattern(settings, "alpha_pattern", _positive),
        _names(settings, "target_modules"),
        _names(settings, "modules_to_save") or (),
        any(each is not None for each in restricting),
        settings.flag("ensure_weight_tying", False),
    )
    settings.check_all_read("adapters of LoRA")
    return found


def settings_of(
    modules: Mapping[str, LoRA], saved: list[str], *, turned: bool, about: Mapping[str, Any]
) -> dict[str, Any]:
    """The values of an `adapter_config.json` for adapters by the names of their modules.

    Arguments:
        saved: the names of modules that are stored whole.
        turned: whether the base stores its weights as [in, out].
        about: what else is said.
    """
    rooted = all(lora.scale == "alpha/sqrt(rank)" for lora in modules.values())
    ranks = {name: lora.rank for name, lora in modules.items()}
    alphas = {name: _whole(_alpha(lora, rooted)) for name, lora in modules.items()}
    rank, alpha = (_commonest(each.values()) for each in (ranks, alphas))
    return {
        "alpha_pattern": {name: each for name, each in alphas.items() if each != alpha},
        "bias": "none",
        "fan_in_fan_out": turned,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": saved or None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {name: each for name, each in ranks.items() if each != rank},
        "target_modules": sorted(modules),
        "use_dora": all(isinstance(lora, DoRA) for lora in modules.values()),
        "use_rslora": rooted,
        **about,
    }


def ends(module: str) -> set[str]:
    """A module's name, and all that it ends with, by which PEFT may call it."""
    words = module.split(".")
    return {".".join(words[i:]) for i in range(len(words))}


def _alpha(lora: LoRA, rooted: bool) -> float:
    """What makes the same factor, over the rank or over its root."""
    said = (lora.scale == "alpha/sqrt(rank)") == rooted
    return lora.alpha if said else lora.factor * lora.rank


def _commonest(values: Iterable[Any]) -> Any:
    return collections.Counter(values).most_common(1)[0][0]


def _whole(number: float) -> float | int:
    return int(number) if number == int(number) else number


def _by_end(values: Mapping[str, Any], module: str) -> Any:
    """The first of the values whose name a module's ends with; None if there is none."""
    found = [name for name in ends(module) | {f"^{module}"} if name in values]
    if len(found) > 1:
        found = [name for name in values if name in found]
    return values[found[0]] if found else None


def _pattern(settings: Settings, key: str, check: Any) -> dict[str, Any]:
    """Values by names of modules. PEFT takes these as regular expressions; here they are names."""
    found = settings.get(key, {})
    if not isinstance(found, dict):
        raise settings.wrong(key, "an object", found)
    for name in found:
        if not _NAME.fullmatch(name):
            raise settings.wrong(key, "by names of modules, not by regular expressions", name)
    return {name.replace("\\", ""): check(settings, key, value) for name, value in found.items()}


def _rank(settings: Settings, key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise settings.wrong(key, "of whole numbers from 1 on", value)
    return value


def _positive(settings: Settings, key: str, value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0.0 < value < float("inf"):
        raise settings.wrong(key, "above 0 and finite", value)
    return float(value)


def _names(settings: Settings, key: str) -> tuple[str, ...] | None:
    """A list of names, which PEFT writes in any order; None for null and for a text."""
    found = settings.get(key, None)
    if found is None or (key == "target_modules" and isinstance(found, str)):
        return None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise settings.wrong(key, "a list of names", found)
    return tuple(found)
