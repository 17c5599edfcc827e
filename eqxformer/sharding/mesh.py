"""Meshes of devices from a spelling such as `fsdp=4,tensor=2`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from eqxformer.config import nearest
from eqxformer.constraints import MESH_AXES


def make_mesh(spelling: str, *, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of all devices that `spelling` describes: names of axes and their sizes.

    Arguments:
        spelling: such as `data=8` or `fsdp=4,tensor=2`, in any order. What each axis is for stands
            in `MESH_AXES`. The last of them there, `tensor`, gets the devices that are nearest to
            one another.
        devices: those to take, if not all.

    Raises `ValueError` for an axis that does not exist, and for sizes whose product is not the
    number of devices.

    Example:
        >>> import eqxformer as ef, jax
        >>> dict(ef.make_mesh("data=1", devices=jax.devices()[:1]).shape)
        {'data': 1}
    """
    sizes = parse_mesh(spelling)
    devices = jax.devices() if devices is None else list(devices)
    product = math.prod(sizes.values())
    if product != len(devices):
        written = " x ".join(map(str, sizes.values()))
        equation = written if len(sizes) == 1 else f"{written} = {product}"
        raise ValueError(
            f"The mesh `{spelling}` is of {equation} devices; there are {len(devices)}. "
            "To try a mesh on a CPU, set XLA_FLAGS=--xla_force_host_platform_device_count="
            f"{product} before JAX is imported."
        )
    kinds = (AxisType.Auto,) * len(sizes)  # said, since newer versions of JAX mean `Explicit`
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds, devices=devices)


def abstract_mesh(spelling: str) -> AbstractMesh:
    """The same without devices: for planning on a machine that has none of them.

    Example:
        >>> from eqxformer.sharding import abstract_mesh
        >>> abstract_mesh("fsdp=64,tensor=4").size
        256
    """
    sizes = parse_mesh(spelling)
    kinds = (AxisType.Auto,) * len(sizes)
    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds)


def parse_mesh(spelling: str) -> dict[str, int]:
    """The axes of a mesh and their sizes, in the order of `MESH_AXES`.

    Raises `ValueError` for axes that do not exist or stand twice, and sizes below one.
    """
    sizes: dict[str, int] = {}
    for part in spelling.split(","):
        name, equals, size = (word.strip() for word in part.partition("="))
        if not (equals and name and size.isascii() and size.isdigit() and int(size)):
            raise ValueError(
                f"A mesh must look like fsdp=4,tensor=2, each size at least 1; got `{spelling}`."
            )
        if name not in MESH_AXES:
            raise ValueError(
                f"A mesh has no axis `{name}`.{nearest(name, MESH_AXES)} "
                f"Its axes are {', '.join(MESH_AXES)}."
            )
        if name in sizes:
            raise ValueError(f"The axis `{name}` stands twice in the mesh `{spelling}`.")
        sizes[name] = int(size)
    return {name: sizes[name] for name in MESH_AXES if name in sizes}


def spelled(sizes: Mapping[str, int]) -> str:
    """The spelling of a mesh with these axes."""
    return ",".join(f"{name}={size}" for name, size in sizes.items())
