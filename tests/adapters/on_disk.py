"""Adapters of a small Llama on disk, and what is asked of and done to their files."""

import functools
import json

from safetensors.numpy import load_file, save_file

import eqxformer as ef
from eqxformer.adapters.peft_format import known_as
from eqxformer.adapters.peft_reading import Adapted
from tests.adapters.made import KINDS, adapted
from tests.helpers.models import filled

LLAMA = filled(ef.families.llama(vocab=11, dim=8, layers=2, heads=2, hidden=5))
GPT2 = filled(ef.families.gpt(vocab=11, dim=8, layers=1, heads=2, context=8))
PREFIX = "base_model.model."
Q_PROJ = "model.layers.0.self_attn.q_proj"
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


@functools.cache
def made(kind="LoRA", to="**.attention"):
    return adapted(LLAMA, KINDS[kind], to)


def load(folder, model=LLAMA):
    return ef.load_adapters(model, folder, model_type="llama")


@functools.cache
def known():
    return known_as(LLAMA, "llama")


def account(folder):
    """What `load_adapters` does before it reads numbers, without tracing the model anew."""
    written = known().written
    opened = Adapted(folder, written.task.prefix, written.architecture.modules)
    opened.account(known().modules, known().bindings, known().tied)
    return opened.adapters(known().modules)


def settings(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def edit(folder, *removed, **changed):
    values = {k: v for k, v in {**settings(folder), **changed}.items() if k not in removed}
    (folder / "adapter_config.json").write_text(json.dumps(values))


def edit_tensors(folder, *removed, **changed):
    path = folder / "adapter_model.safetensors"
    tensors = {k: v for k, v in load_file(path).items() if k.removeprefix(PREFIX) not in removed}
    save_file({**tensors, **{PREFIX + k: v for k, v in changed.items()}}, path)
