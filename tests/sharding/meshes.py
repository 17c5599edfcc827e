"""Meshes of the eight virtual devices, and what lies on each of them."""

import math

import equinox as eqx
import jax

import eqxformer as ef


def placed(spelling, **rules):
    """A placement on as many of the virtual devices as the mesh has."""
    size = math.prod(ef.abstract_mesh(spelling).axis_sizes)
    return ef.Placement(ef.make_mesh(spelling, devices=jax.devices()[:size]), ef.Rules(**rules))


def share(tree):
    """The largest part of a tree's bytes that one device holds, and all of its bytes."""
    arrays = [x for x in jax.tree.leaves(tree) if eqx.is_array(x)]
    held = {}
    for x in arrays:
        for shard in x.addressable_shards:
            held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    total = sum(x.nbytes for x in arrays)
    return max(held.values()) / total, total


def where(tree):
    """The shardings of a tree's arrays."""
    return [x.sharding for x in jax.tree.leaves(tree) if eqx.is_array(x)]
