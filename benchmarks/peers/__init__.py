"""The same models in other libraries, each as its users write it: one file a peer.

A peer offers `step(task)`, which gives a function that makes one training step and returns its
loss. All begin with the same weights and see the same batch; what may differ is only how the same
numbers are computed.
"""

import importlib
from collections.abc import Callable
from typing import NamedTuple

from peers.task import Task

DECODERS, ALL = ("gpt", "llama"), ("gpt", "llama", "seq2seq")


class Peer(NamedTuple):
    """The file here, the kinds of model it has, and the modules that must be installed."""

    file: str
    kinds: tuple[str, ...]
    modules: tuple[str, ...] = ()


PEERS: dict[str, Peer] = {
    "eqxformer": Peer("ours", ALL),
    "torch": Peer("torch_eager", ALL, ("torch",)),
    "torch.compile": Peer("torch_compiled", ALL, ("torch",)),
    "transformers": Peer("transformers_models", DECODERS, ("torch", "transformers")),
    "plain equinox": Peer("plain_equinox", ("gpt",)),
    "flax nnx": Peer("flax_nnx", ("gpt",), ("flax",)),
    "haiku": Peer("dm_haiku", ("gpt",), ("haiku",)),
    "levanter": Peer("levanter_gpt", ("gpt",), ("levanter", "haliax")),
    "eqx-zoo": Peer("eqx_zoo_llama", ("llama",), ("eqx_zoo",)),
}


def step(name: str, task: Task) -> Callable[[], float]:
    """The training step of a peer, ready to run."""
    return importlib.import_module(f"peers.{PEERS[name].file}").step(task)
