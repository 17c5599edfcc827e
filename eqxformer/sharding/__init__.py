"""Models on many devices: a mesh, rules from axis words to its axes, and what lies where."""

from eqxformer.constraints import MESH_AXES
from eqxformer.sharding.mesh import abstract_mesh, make_mesh
from eqxformer.sharding.placement import Placement
from eqxformer.sharding.rules import BY_EXPERT, BY_FSDP, BY_TENSOR, Cut, Rules

__all__ = [
    "BY_EXPERT",
    "BY_FSDP",
    "BY_TENSOR",
    "MESH_AXES",
    "Cut",
    "Placement",
    "Rules",
    "abstract_mesh",
    "make_mesh",
]
