"""Meshes from their spellings, and the mistakes that these can have."""

import jax
import pytest
from jax.sharding import AxisType, Mesh

import eqxformer as ef


def test_axes_stand_in_one_order_and_are_left_to_the_partitioner():
    mesh = ef.make_mesh(" tensor=2, fsdp=4")
    assert dict(mesh.shape) == {"fsdp": 4, "tensor": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert mesh.devices.shape == (4, 2)
    assert dict(ef.abstract_mesh("tensor=4,fsdp=64").shape) == {"fsdp": 64, "tensor": 4}


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("fsdp=4,tensor=4", r"`fsdp=4,tensor=4` is of 4 x 4 = 16 devices; there are 8"),
        ("data=3", r"is of 3 devices; there are 8.*device_count=3 before JAX"),
        ("fsdp=4,tensr=2", r"no axis `tensr`. Did you mean `tensor`\? Its axes are data, fsdp"),
        ("fsdp=4,fsdp=2", r"`fsdp` stands twice"),
        ("fsdp", r"must look like fsdp=4,tensor=2, each size at least 1; got `fsdp`"),
        ("fsdp=0", r"each size at least 1; got `fsdp=0`"),
        ("fsdp=-8", r"each size at least 1"),
        ("fsdp=2.5", r"each size at least 1"),
        ("", r"each size at least 1"),
        ("data=8,", r"each size at least 1"),
    ],
)
def test_mistakes_are_named(spelling, message):
    with pytest.raises(ValueError, match=message):
        ef.make_mesh(spelling)


def test_a_mesh_of_other_axes_or_of_another_kind_is_no_placement():
    devices = jax.devices()[:1]
    for names, kinds in ((("rows",), AxisType.Auto), (("data",), AxisType.Explicit)):
        mesh = jax.make_mesh((1,), names, axis_types=(kinds,), devices=devices)
        assert isinstance(mesh, Mesh)
        with pytest.raises(ValueError, match="must be among data, fsdp.* of the type `Auto`"):
            ef.Placement(mesh)
