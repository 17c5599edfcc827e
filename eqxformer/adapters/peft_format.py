"""Adapters by themselves on disk, in the format of PEFT, for a model of transformers.

`adapter_config.json` says what they are, `adapter_model.safetensors` has their numbers under the
names of transformers' modules. Files are read as strictly as checkpoints are: everything is
accounted for before any number is read.
"""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from eqxformer.adapters.choosing import is_linear, places
from eqxformer.adapters.lora import Adapter, DoRA, norms
from eqxformer.adapters.peft_config import CONFIG, settings_of
from eqxformer.adapters.peft_modules import Module, modules_of, renamed
from eqxformer.adapters.peft_reading import PREFIX, WEIGHTS, Adapted, saves
from eqxformer.adapters.peft_tied import TiedTable, tied_table
from eqxformer.adapters.surgery import adapters_of, over_stack, with_adapters
from eqxformer.checkpoints.errors import CheckpointError
from eqxformer.checkpoints.moves import Stacked
from eqxformer.checkpoints.names import leads_to, named_arrays, with_names
from eqxformer.checkpoints.placing import gathered, one_writes, place
from eqxformer.checkpoints.rebuild import expected, shapes, with_arrays
from eqxformer.checkpoints.rules import Binding
from eqxformer.checkpoints.tensor_files import replaced_directory, write_file
from eqxformer.config import Config
from eqxformer.layers.linear import AbstractLinear
from eqxformer.pretrained.express import Expression, expression
from eqxformer.pretrained.locate import locate
from eqxformer.sharding.mirror import on_mesh

_TASKS = {"CausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM"}
_TASKS |= {"ConditionalGeneration": "SEQ_2_SEQ_LM", "MTModel": "SEQ_2_SEQ_LM"}


class Known(NamedTuple):
    """A model in the words of its architecture."""

    written: Expression
    bindings: list[Binding]
    modules: dict[str, Module]
    tied: TiedTable | None


def save_adapters(
    model: Any,
    directory: str | os.PathLike[str],
    *,
    whole: tuple[str, ...] = (),
    model_type: str | None = None,
    base_model: str | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a model's adapters alone, in the format of PEFT, under the names of transformers.

    `PeftModel.from_pretrained(base, directory)` of peft puts them into the base model, with equal
    results, and `load_adapters` puts them into ours. Adapters beside maps that transformers holds
    as one (GPT-2's `c_attn`) are written as one of their ranks together, which computes the same.

    Arguments:
        model: an adapted model with a config.
        directory: where it goes; it appears whole or not at all.
        whole: paths of parts that are written whole, since they were trained beside the adapters: a
            new head, say. PEFT calls them `modules_to_save`.
        model_type: the architecture whose names are used; that of `save_pretrained` if None.
        base_model: what PEFT is told of where the base model is: an id of the Hub, say.
        overwrite: whether adapters in a directory that is not empty are replaced; all else that
            is in it stays.

    Raises `ValueError` for a model without adapters, for adapters of two kinds, and for parts that
    PEFT cannot hold whole, such as most tied token tables; `CheckpointError` for a model that no
    architecture expresses; `NotImplementedError` for adapters beside experts, and for experts in
    `whole` of which files have a tensor each, since they are no modules there; and
    `FileExistsError`.

    Example:
        >>> import eqxformer as ef, jax, tempfile
        >>> config = ef.families.llama(vocab=65, dim=16, layers=2, heads=2, hidden=32)
        >>> model = config.build(key=jax.random.key(0))
        >>> adapted = ef.add_lora(model, ef.LoRA(), to="**.query", key=jax.random.key(1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ef.save_adapters(adapted, f"{folder}/adapters")
        ...     again = ef.load_adapters(model, f"{folder}/adapters")
        >>> list(ef.adapters_of(again))
        ['blocks.0.attention.query', 'blocks.1.attention.query']
    """
    adapters = _at_hand(adapters_of(model))
    if not adapters:
        raise ValueError("The model has no adapters; `save` and `save_pretrained` write it whole.")
    if len({isinstance(adapter.config, DoRA) for adapter in adapters.values()}) > 1:
        raise ValueError("PEFT has one kind of adapter per model; this has `LoRA` and `DoRA`.")
    known = known_as(model, model_type)
    used = _modules_with(adapters, known)
    lengths = _lengths(model, adapters, used)
    found = {module.name: module.together(adapters, lengths) for module in used}
    stored, saved, about = _beside(model, whole, known)
    loras = {name: lora for name, (lora, _) in found.items()}
    about |= {"base_model_name_or_path": base_model, "task_type": _task(known.written.class_name)}
    turned = all(module.turned for module in used)
    settings = settings_of(loras, saved, turned=turned, about=about)
    for name, (_, tensors) in found.items():
        stored |= {f"{name}.{kind}": numbers for kind, numbers in tensors.items()}
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    with one_writes() as writes:
        if not writes:
            return
        with replaced_directory(directory, overwrite=overwrite) as folder:
            (folder / CONFIG).write_text(text, encoding="utf-8")
            write_file(folder / WEIGHTS, _sources(stored), {"format": "pt"})


def _at_hand(tree: Any) -> Any:
    """A tree whose numbers this process can read, wherever they lie."""
    leaves, structure = jax.tree.flatten(tree)
    found = gathered({str(i): leaf for i, leaf in enumerate(leaves)})
    return jax.tree.unflatten(structure, list(found.values()))


def load_adapters(
    model: Any,
    directory: str | os.PathLike[str],
    *,
    model_type: str | None = None,
    revision: str | None = None,
) -> Any:
    """The model with the adapters that PEFT or `save_adapters` wrote, and what was saved whole.

    An adapter on a projection that transformers holds as one and we as several becomes one for each
    of ours, which computes the same. `lora_dropout` is not carried over: it acts in training alone,
    and adapters here have none.

    Arguments:
        model: the base model, loaded or built, also with int8 weights; layers may be stacked.
        directory: where `adapter_config.json` and `adapter_model.safetensors` lie, or an id of the
            Hub.
        model_type: the architecture whose names they have; that of `save_pretrained` if None.
        revision: a branch, tag or commit on the Hub.

    Raises `CheckpointError` for everything that is wrong with the files, before numbers are read:
    settings that are not known, or not supported and not turned off, tensors that are missing, left
    over or misshapen, and a token table that is not replaced in the head tied to it. Other errors
    as in `with_adapters`.

    Example:
        >>> import eqxformer as ef, jax, tempfile
        >>> config = ef.families.llama(vocab=65, dim=16, layers=2, heads=2, hidden=32)
        >>> model = config.build(key=jax.random.key(0))
        >>> adapted = ef.add_lora(model, ef.LoRA(), to="**.query", key=jax.random.key(1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ef.save_adapters(adapted, f"{folder}/adapters")
        ...     again = ef.load_adapters(model, f"{folder}/adapters")
        >>> again.blocks[1].attention.query.lora.down.weight.shape
        (16, 8)
    """
    known = known_as(model, model_type)
    written = known.written
    folder = locate(directory, revision=revision, patterns=(CONFIG, WEIGHTS))
    files = Adapted(folder, written.task.prefix, written.architecture.modules)
    files.account(known.modules, known.bindings, known.tied)
    arrays = files.whole(known.bindings)
    adapters = files.adapters(known.modules)
    return with_adapters(_with_whole(model, arrays), adapters)


def known_as(model: Any, model_type: str | None) -> Known:
    """A model, adapted or not, as transformers has it; errors as in `save_adapters`."""
    config = getattr(model, "config", None)
    if not isinstance(config, Config) or not hasattr(config, "origin"):
        raise CheckpointError(f"{type(model).__name__} is no whole model, which has a config.")
    skeleton = shapes(config)
    arrays = expected(skeleton)
    written = expression(config, arrays, model_type)
    bindings = written.bindings(config, arrays)
    modules = modules_of(bindings, places(skeleton))
    return Known(written, bindings, modules, tied_table(config, written, bindings))


def _modules_with(adapters: Mapping[str, Adapter], known: Known) -> list[Module]:
    """The modules of transformers that have these adapters."""
    by_path = {path: module for module in known.modules.values() for path in module.paths}
    for path in adapters:
        if path not in by_path:
            holding = (b.theirs for b in known.bindings if f"{path}.weight" in b.ours)
            stored = [name for names in holding for name in names]
            raise NotImplementedError(
                f"`{path}` is no linear map by itself in a {known.written.class_name} of "
                f"transformers, where it is {', '.join(stored[:3])}: its adapter cannot be "
                "written alone. `merge` the model and save it whole."
            )
    return list({by_path[path].name: by_path[path] for path in adapters}.values())


def _lengths(
    model: Any, adapters: Mapping[str, Adapter], modules: list[Module]
) -> dict[str, np.ndarray]:
    """Of maps without an adapter whose neighbours in a module have magnitudes, the lengths."""
    wanted = {path for module in modules for path in module.paths if path not in adapters}
    if not any(isinstance(adapter.config, DoRA) for adapter in adapters.values()):
        return {}

    def of(names: tuple[str, ...], node: Any) -> Any:
        if not is_linear(node) or not wanted.intersection(names):
            return None
        return over_stack(_norms, node)

    found = named_arrays(with_names(of, model, is_leaf=is_linear))
    return {path: np.asarray(numbers) for path, numbers in gathered(found).items()}


def _norms(linear: AbstractLinear) -> Any:
    return norms(linear.plain().weight)


def _beside(
    model: Any, whole: tuple[str, ...], known: Known
) -> tuple[dict[str, np.ndarray], list[str], dict[str, Any]]:
    """The tensors of what is written whole, the names of their modules, and what else to say."""
    stored = dict(_whole_tensors(model, whole, known.bindings))
    saved = sorted({name.rpartition(".")[0] for name in stored})
    for name in (name for binding in known.bindings for name in binding.theirs):
        if name not in stored and saves(saved, name):
            raise ValueError(
                f"{', '.join(saved)} cannot be written whole without {name}, which PEFT takes to "
                "be one of these by its end; name its part in `whole` too."
            )
    tied = known.tied
    about: dict[str, Any] = {}
    if tied is not None and tied.name in stored:
        if tied.copy is None:
            raise ValueError(
                f"{tied.name} cannot be written whole beside adapters: this model uses it twice, "
                "and PEFT would replace one use alone. `merge` the model and save it whole."
            )
        stored[tied.copy] = stored[tied.name]
        about = {"ensure_weight_tying": True}
    words = known.written.architecture.modules
    stored = {renamed(name, words): numbers for name, numbers in stored.items()}
    return stored, [renamed(name, words) for name in saved], about


def _whole_tensors(
    model: Any, whole: tuple[str, ...], bindings: list[Binding]
) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of the parts that are written whole, by their names in transformers."""
    arrays = named_arrays(model) if whole else {}
    # In one order in all processes, each of which fetches them together with the others.
    wanted = [name for name in arrays if any(leads_to(path, name) for path in whole)]
    arrays |= gathered({name: arrays[name] for name in wanted})
    for path in whole:
        if not any(leads_to(path, name) for binding in bindings for name in binding.ours):
            raise ValueError(f"`{path}` leads to no array of the model.")
    for binding in bindings:
        asked = [name for name in binding.ours if any(leads_to(path, name) for path in whole)]
        if not asked:
            continue
        if isinstance(binding.move, Stacked):
            raise NotImplementedError(
                f"`{asked[0]}` cannot be written whole beside adapters: a model of transformers "
                f"has {binding.theirs[0]} and its like as one parameter, and PEFT takes modules. "
                "`merge` the model and save it whole."
            )
        lost = [name for name in binding.ours if name not in asked or name not in arrays]
        if lost:
            raise ValueError(
                f"`{asked[0]}` cannot be written whole, since `{lost[0]}`, which is stored with "
                "it, is not asked for, or has an adapter or int8 weights."
            )
        numbers = binding.move.write([np.asarray(arrays[name]) for name in binding.ours])
        yield from zip(binding.theirs, numbers, strict=True)


def _with_whole(model: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The model with arrays in place of its own, in the types of these."""
    if not arrays:
        return model
    known = named_arrays(model)
    for path, numbers in arrays.items():
        there = known.get(path)
        if there is None or there.shape != numbers.shape:
            raise ValueError(f"`{path}` cannot be replaced: it has an adapter or int8 weights.")
    new = {path: _like(known[path], numbers) for path, numbers in arrays.items()}
    return with_arrays(model, {**known, **new})


def _like(array: Any, numbers: np.ndarray) -> Any:
    """Numbers in the type of an array, and on the mesh that it lies on, if it does."""
    where = array.sharding if on_mesh(array) else None
    return place(numbers.astype(array.dtype, copy=False), where)


def _sources(tensors: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Any, Any, Any]]:
    for name, numbers in sorted(tensors.items()):
        yield PREFIX + name, lambda numbers=numbers: numbers, numbers.shape, numbers.dtype


def _task(class_name: str) -> str | None:
    """PEFT's word for what a class of transformers does, for those that change nothing."""
    return next((task for end, task in _TASKS.items() if class_name.endswith(end)), None)
