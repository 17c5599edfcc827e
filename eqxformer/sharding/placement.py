"""Models, their training states and batches, laid on a mesh by rules."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from eqxformer.axes import leaf_axes, leaf_copies, leaf_counts
from eqxformer.checkpoints.names import is_array, unrolled
from eqxformer.constraints import MESH_AXES, ROWS
from eqxformer.sharding.mesh import spelled
from eqxformer.sharding.mirror import Path, mirrored, parts
from eqxformer.sharding.moving import moved
from eqxformer.sharding.rules import Place, Rules


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh of devices, and the rules by which arrays are cut over it.

    Arguments:
        mesh: as `make_mesh` makes it, or `abstract_mesh`, which is enough for what is on paper.
        rules: which axis of the mesh cuts which axis of an array.

    Example:
        >>> import eqxformer as ef, jax
        >>> placement = ef.Placement(ef.make_mesh("fsdp=1", devices=jax.devices()[:1]))
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=1, heads=2, context=8)
        >>> model = placement.init(lambda key: config.build(key=key), jax.random.key(0))
        >>> placement.batch(ef.TokenBatch(jax.numpy.zeros((2, 9), int))).tokens.shape
        (2, 9)
    """

    mesh: Mesh | AbstractMesh
    rules: Rules = dataclasses.field(default_factory=Rules)

    def __post_init__(self) -> None:
        unknown = set(self.mesh.axis_names) - set(MESH_AXES)
        if unknown or any(kind != AxisType.Auto for kind in self.mesh.axis_types):
            raise ValueError(
                f"The axes of a mesh must be among {', '.join(MESH_AXES)}, and of the type `Auto`, "
                f"as `make_mesh` makes them; got {self.mesh}."
            )

    def init(self, make: Callable[..., Any], *args: Any) -> Any:
        """What `make(*args)` returns, made where it belongs: no device ever holds an array whole.

        Arguments:
            make: a function of arrays, such as `lambda key: config.build(key=key)`, that returns a
                model or a `TrainState`.
        """
        skeleton = eqx.filter_eval_shape(make, *args)
        arrays = jax.jit(
            lambda *args: eqx.filter(make(*args), eqx.is_array),
            out_shardings=self.shardings(skeleton),
        )
        return eqx.combine(arrays(*args), eqx.filter(skeleton, is_array, inverse=True))

    def put(self, tree: Any) -> Any:
        """A model or a `TrainState` that is there already, moved to where it belongs."""
        return jax.tree.map(
            lambda leaf, where: leaf if where is None else moved(leaf, where),
            tree,
            self.shardings(tree),
        )

    def abstract(self, tree: Any) -> Any:
        """The shapes of a model or a `TrainState` with the shardings that they belong to.

        What restores a checkpoint reads each array straight to its devices when it is given these.
        """
        return jax.tree.map(
            lambda leaf, where: (
                leaf
                if where is None
                else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
            ),
            tree,
            self.shardings(tree),
        )

    def shardings(self, tree: Any) -> Any:
        """The sharding of every array of a model or a `TrainState`, None in place of all else.

        What belongs to a parameter, such as its moments in an optimizer, lies as it does.

        Raises `ValueError` for arrays that the rules cannot cut; see `Rules.uneven`.
        """
        # A model may have a part of that name as well, but no optimizer beside it.
        model = getattr(tree, "model", tree) if hasattr(tree, "optimizer") else tree
        specs = mirrored(tree, dict(self._checked(model)))
        return jax.tree.map(self._sharding, specs, is_leaf=_is_spec)

    def by_name(self, model: Any) -> Callable[[str, tuple[int, ...]], NamedSharding]:
        """The sharding of each array of a model by its name and shape, as `from_pretrained` asks.

        Layers have names of their own also where they are stacked, and are then stacked on their
        devices.
        """
        places = {".".join(path): place for path, place in self._checked(unrolled(model))}
        return lambda name, shape: self._sharding(places[name].spec)

    def batch(self, batch: Any) -> Any:
        """A batch, its rows dealt out to the devices; every process gives the whole of it.

        Raises `ValueError` for rows that are not a multiple of the devices that share them.
        """
        return jax.tree.map(self._rows, batch)

    def check_rows(self, rows: int) -> None:
        """Raises `ValueError` for rows that are not a multiple of the devices that share them."""
        if rows % self.row_shares:
            axes = spelled({axis: self.sizes[axis] for axis in ROWS if axis in self.sizes})
            raise ValueError(
                f"The rows of a batch must be a multiple of the {self.row_shares} devices that "
                f"share them, {axes}; got {rows}."
            )

    def set(self) -> Any:
        """A context in which what a model computes is laid on the mesh, as within a training step.

        Example:
            >>> import eqxformer as ef, jax
            >>> placement = ef.Placement(ef.make_mesh("data=1", devices=jax.devices()[:1]))
            >>> with placement.set():
            ...     logits = ef.MLP(8, hidden=16, key=jax.random.key(0))(jax.numpy.ones((2, 8)))
        """
        return jax.set_mesh(self.mesh)  # pyright: ignore[reportArgumentType]

    def batch_of_process(self, batch: Any) -> Any:
        """A batch of which every process gives rows of its own, those of process 0 first."""

        def global_rows(x: Any) -> Any:
            if not isinstance(x, (jax.Array, np.ndarray)) or not x.ndim:
                return self._rows(x)
            shape = (x.shape[0] * jax.process_count(), *x.shape[1:])
            where = self._row_sharding(shape[0])
            mine = where.addressable_devices_indices_map(shape).values()
            here = len({index[0].indices(shape[0]) for index in mine if index is not None})
            if here * jax.process_count() != self.row_shares:
                raise ValueError(
                    f"The mesh {spelled(self.sizes)} deals rows out to {self.row_shares} groups of "
                    f"devices, of which this one of {jax.process_count()} processes holds {here}, "
                    "so processes cannot bring rows of their own. Give every process the whole "
                    "batch, `placement.batch(batch)`, or choose row axes that divide evenly."
                )
            return jax.make_array_from_process_local_data(where, np.asarray(x), shape)

        return jax.tree.map(global_rows, batch)

    def whole(self, model: Any) -> list[str]:
        """A line for every reason why an axis of the mesh does not cut arrays that it should."""
        reasons: dict[str, dict[str, None]] = {}
        for path, each in self.places(unrolled(eqx.filter_eval_shape(lambda: model))):
            for problem in each.problems:
                starred = ".".join("*" if part.isdigit() else part for part in path)
                reasons.setdefault(problem, {})[starred] = None
        return [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]

    def places(self, model: Any) -> list[tuple[Path, Place]]:
        """How the rules cut every array of a model, or of its shapes, by the parts of its path."""
        words, counts, copies = leaf_axes(model), leaf_counts(model), leaf_copies(model)
        found = []
        for path, leaf in jax.tree_util.tree_leaves_with_path(model):
            if is_array(leaf):
                name = ".".join(parts(path))
                own = words.get(name, ())
                known = len(own) == leaf.ndim
                place = self.rules.place(
                    own if known else ("?",) * leaf.ndim,
                    leaf.shape,
                    self.sizes,
                    counts.get(name, {}),
                    copies.get(name) if known else None,
                )
                found.append((parts(path), place))
        return found

    @property
    def row_shares(self) -> int:
        """How many devices, or groups of them, the rows of a batch are dealt out to."""
        return math.prod(self.sizes[axis] for axis in ROWS if axis in self.sizes)

    @property
    def sizes(self) -> dict[str, int]:
        """The axes of the mesh and their sizes."""
        return dict(zip(self.mesh.axis_names, self.mesh.axis_sizes, strict=True))

    def _checked(self, model: Any) -> list[tuple[Path, Place]]:
        places = self.places(model)
        if self.rules.uneven == "refuse" and any(place.problems for _, place in places):
            lines = "\n  ".join(self.whole(model))
            raise ValueError(
                f"The mesh {spelled(self.sizes)} cannot cut these arrays:\n  {lines}\n"
                "Choose other sizes, or keep them whole on every device: `Rules(uneven='whole')`."
            )
        return places

    def _sharding(self, spec: PartitionSpec) -> NamedSharding:
        return NamedSharding(self.mesh, spec)  # pyright: ignore[reportArgumentType]

    def _rows(self, x: Any) -> Any:
        if not isinstance(x, (jax.Array, np.ndarray)):
            return x
        return moved(
            x, self._row_sharding(x.shape[0]) if x.ndim else self._sharding(PartitionSpec())
        )

    def _row_sharding(self, rows: int) -> NamedSharding:
        self.check_rows(rows)
        return self._sharding(PartitionSpec(tuple(axis for axis in ROWS if axis in self.sizes)))


def _is_spec(node: Any) -> bool:
    return isinstance(node, PartitionSpec)
