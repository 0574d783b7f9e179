"""Channel masks as graph inputs: one coalition a row, multiplied in where a channel is summed away.

Masked there, a removed channel is gone exactly: no bias, BatchNormalization shift or Sigmoid(0) behind it leaks. What
it leaves behind is nothing, or its calibration mean: the mean times the consumer's weights is added to the consumer's
output, row by row, just as the rewrite folds it into the consumer's bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from onnxshap.arguments import checked
from onnxshap.codes import INTEGERS
from onnxshap.core import Array, FloatArray
from onnxshap.errors import ModelError
from onnxshap.graph import array, tensor, weights, writing
from onnxshap.graph.loops import closed
from onnxshap.graph.structure import refill
from onnxshap.groups import MASKS, Group
from onnxshap.labels import Site, Weight
from onnxshap.labels.kernels import block_diagonal, in_first
from onnxshap.shapes.constants import static_values
from onnxshap.shapes.folding import Shape
from onnxshap.shapes.images import Images
from onnxshap.tracing import Traced, trace

_CODES = frozenset({TensorProto.INT8, TensorProto.UINT8})
SiteKey = tuple[int, int]
"""Node index and input number of a site."""
Means = Mapping[SiteKey, FloatArray]
"""Site -> float64[n], calibration mean of every position of the axis that is summed away."""


Probe = Mapping[tuple[str, int], Array]
"""Tensor and axis -> what a mask adds to it instead of scaling it: `x + (1 - mask) * probe`, for derivatives."""


@checked
def mask_name(group: Group) -> str:
    """Return the name of a group's mask input."""
    return MASKS + group.name


@checked
def insert_masks(
    model: str | Path | bytes | ModelProto | Traced,
    groups: Sequence[Group] | None = None,
    means: Means | None = None,
    probe: Probe | None = None,
) -> ModelProto:
    """Return the model with one more input a group: float32[rows, n_units], 1 = stays, 0 = removed.

    `rows` is 1, or the number of images fed: every image then has a coalition of its own. Values between 0 and 1 scale
    a channel (for gradients).

    Args:
        model: anything `trace` takes.
        groups: groups of that model; default all.
        means: what removed channels leave behind (`calibrate.site_means`); default nothing, zeros.
        probe: masks add it instead of removing anything; with it, `means` are not used.

    Raises:
        ModelError: a group is not one of the model's.
    """
    traced = trace(model)  # holds the values while they are put in
    return writing.put_in(masked_model(traced, groups, means, probe))


def masked_model(
    traced: Traced,
    groups: Sequence[Group] | None = None,
    means: Means | None = None,
    probe: Probe | None = None,
    kept: weights.Kept | None = None,
) -> ModelProto:
    """Return what `insert_masks` does, the large initializers taken out.

    Args:
        traced, groups, means, probe: as in `insert_masks`.
        kept: takes what the means leave, which of all groups is as much as the weights; None = it is put in.
    """
    chosen = traced.groups if groups is None else list(groups)
    known = {g.name: g for g in traced.groups}
    for group in chosen:
        if group.name not in known or not np.array_equal(known[group.name].units, group.units):
            raise ModelError(f"group {group.name!r} is not a group of this model; take it from trace(model).groups")
    return closed(_Masks(traced, chosen, {} if probe else means or {}, probe, kept).model())


def row_wise(traced: Traced, groups: Iterable[Group]) -> bool:
    """Return whether rows of masks can go with rows of images at every site of the groups."""
    sites = traced.sites(groups)
    outputs = [(traced.shaped.graph.nodes[s.node].output[0], s.weight.out) for s in sites if s.weight is not None]
    places = [_images_beside(traced, name, axis) for name, axis in (*((s.tensor, s.axis) for s in sites), *outputs)]
    return images_apart(traced) and all(place is not None for place in places)


def _images_beside(traced: Traced, name: str, axis: int) -> Images | None:
    """Return where the images lie in a tensor, None where that is not known, or on the axis to be masked.

    Neither are they told from what they are merged with in a tensor whose axis to be masked has any size, too.
    """
    place = traced.images(name)
    if place is None or place.axis == axis:
        return None
    return None if traced.sized and not place.alone and (name, axis) in traced.shaped.varying else place


def images_apart(traced: Traced) -> bool:
    """Return whether the images of a batch give what they give alone, as far as the ops tell."""
    trace = traced.labels.trace
    mixed = any((at := traced.images(n)) is None or at.axis == axis for n, axis in trace.mixed)
    met = (*trace.crossed, *((site.tensor, site.axis) for site in trace.sites))
    mixed = mixed or any((at := traced.images(n)) is not None and at.axis == axis for n, axis in met)
    return not (mixed or trace.mixes_rows or trace.shares_ranges)


def responses(traced: Traced, sites: Iterable[Site]) -> dict[Site, Callable[[], FloatArray]]:
    """Return, for sites with constant weights, what gives float64[n, m]: what 1 at a position adds to each output.

    Every other axis of the weights is summed over, as if the input were constant in space, away from the border. All of
    them at once would take twice as much as the weights do.
    """
    model, nodes = traced.shaped.graph.model, traced.shaped.graph.nodes
    foldable = [(s, s.weight, nodes[s.node].input[s.weight.input]) for s in sites if s.weight is not None]
    stored = {t.name: t for t in model.graph.initializer}
    computed = static_values(model, traced.backend, list(dict.fromkeys(n for _, _, n in foldable if n not in stored)))

    def table(w: Weight, name: str) -> FloatArray:
        values = array(stored[name]) if name in stored else computed[name]
        kernel = in_first(values.astype(np.float64), w)
        found = kernel.reshape(*kernel.shape[:2], -1).sum(axis=2) * w.scale * w.spread
        return block_diagonal(found, w) if w.groups > 1 else found

    return {site: partial(table, w, name) for site, w, name in foldable}


@dataclass(frozen=True)
class Blocks:
    """Units along an axis of any size: the axis is so many equal runs of one unit each, or the units over and over.

    Attributes:
        units: int[k, slots], the units of the runs, or those that come again and again.
        inner: whether they come again and again.
    """

    units: NDArray[np.intp]
    inner: bool

    def shapes(self, shape: Shape, axis: int) -> tuple[list[int], list[int]]:
        """Return what a tensor is reshaped to so that the units have an axis for themselves, and back."""
        pair = [-1, len(self.units)] if self.inner else [len(self.units), -1]
        return [*[0] * axis, *pair, *shape[axis + 1 :]], [*[0] * axis, -1, *shape[axis + 1 :]]


def blocks_of(units: NDArray[np.intp]) -> Blocks | None:
    """Return the fewest blocks of units int[n, slots] along an axis, None where it is not made of several.

    >>> blocks_of(np.array([[4], [4], [7], [7]])).units.ravel().tolist()
    [4, 7]
    >>> blocks_of(np.array([[4], [7], [4], [7]])).inner
    True
    """
    for count in (k for k in range(1, len(units)) if len(units) % k == 0):
        for inner in (False, True):
            apart = units.reshape(-1, count, units.shape[1]) if inner else units.reshape(count, -1, units.shape[1])
            along = 0 if inner else 1
            if (apart == apart.take([0], along)).all():
                return Blocks(np.asarray(apart.take(0, along), np.intp), inner)
    return None


@dataclass
class _Masks:
    """The masked model under construction."""

    traced: Traced
    groups: list[Group]
    means: Means
    probe: Probe | None = None
    kept: weights.Kept | None = None
    head: list[NodeProto] = field(default_factory=list)
    before: dict[int, list[NodeProto]] = field(default_factory=dict)
    after: dict[int, list[NodeProto]] = field(default_factory=dict)
    constants: list[TensorProto] = field(default_factory=list)
    made: dict[tuple[object, ...], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = self.traced.shaped.graph.names(map(mask_name, self.groups))
        self.owner, self.place = np.full((2, self.traced.labels.n_units + 1), -1)  # no unit is the last
        for number, group in enumerate(self.groups):
            self.owner[group.units], self.place[group.units] = number, np.arange(len(group))

    def model(self) -> ModelProto:
        """Return the masked model."""
        masked = ModelProto()
        masked.CopyFrom(self.traced.shaped.graph.model)
        touched = self.traced.sites(self.groups)
        tables = responses(self.traced, [s for s in touched if (s.node, s.input) in self.means])
        for site in touched:
            table = tables.get(site)
            self._mask(masked.graph.node[site.node], site, None if table is None else table())
        nodes = [*self.head]
        for index, node in enumerate(masked.graph.node):
            nodes += [*self.before.get(index, ()), node, *self.after.get(index, ())]
        refill(masked.graph.node, nodes)
        masked.graph.initializer.extend(self.constants)
        masked.graph.input.extend(
            # a name of its own: one mask may be for many images, and onnxruntime shares memory by these names
            helper.make_tensor_value_info(mask_name(g), TensorProto.FLOAT, ["onnxshap.masks", len(g)])
            for g in self.groups
        )
        return masked

    def _constant(self, wish: str, values: Array) -> str:
        name = self.names.new(wish)
        sizes = values.dtype.kind == "i"  # onnxruntime reads them before it has what is kept
        if self.kept is None or sizes:
            self.constants.append(tensor(name, values))
        else:
            self.constants.append(weights.initializer(name, values, self.kept))
        return name

    def _node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
        return helper.make_node(kind, list(inputs), [output], name=self.names.node(MASKS + output), **attributes)

    def _put(self, kind: str, inputs: Sequence[str], wish: str, **attributes: Any) -> str:
        """Add a node that computes something of masks, return the name of that."""
        output = self.names.new(wish)
        self.head.append(self._node(kind, inputs, output, **attributes))
        return output

    def _mask(self, node: NodeProto, site: Site, table: FloatArray | None) -> None:
        """Multiply the mask into a site's input and, for mean filling, add what the means leave to its output."""
        if self.probe is not None and (site.stored or self._kind(site.tensor) == TensorProto.BOOL):
            return  # weights alone, or choices: nothing of the images is scaled there
        blocks = self._blocks(site) if table is None else None
        row = self._axis_mask(site.tensor, site.axis, blocks)
        source = node.input[site.input]  # masked already where another of its axes is summed over here too
        zero = node.input[site.zero] if site.zero is not None and site.zero < len(node.input) else ""
        key = ("masked", source, str(site.axis), zero)
        if key not in self.made:
            output = self.names.new(f"{source}.masked{site.axis}" + (f".{zero}" if zero else ""))
            self.made[key] = output
            shaped = self._broadcast(row, site.tensor, site.axis, f"{row}.for.{output}", blocks)

            def apply(x: str, y: str) -> list[NodeProto]:
                return self._apply(site, x, shaped, y, zero)

            if blocks is None:
                nodes = self._apart(site.tensor, site.axis, source, output, row, apply)
            else:
                shape = self.traced.shaped.shapes[site.tensor]
                nodes = self._between(source, output, *blocks.shapes(shape, site.axis), apply)
            self.before.setdefault(site.node, []).extend(nodes)
        node.input[site.input] = self.made[key]
        if table is None or site.weight is None:
            return
        result, raw = node.output[0], self.names.new(f"{node.output[0]}.raw")
        filled = self.means[site.node, site.input][:, None] * table
        rows = self._constant(f"{result}.left{site.input}.rows", filled.astype(np.float32))
        removed = self._put("Sub", [self._one(), row], f"{result}.removed{site.input}")
        left = self._put("MatMul", [removed, rows], f"{result}.left{site.input}")
        shaped = self._broadcast(left, result, site.weight.out, f"{left}.shaped")
        node.output[0] = raw
        self.after.setdefault(site.node, []).extend(
            self._apart(result, site.weight.out, raw, result, left, lambda x, y: [self._node("Add", [x, shaped], y)])
        )

    def _apart(
        self, name: str, axis: int, source: str, output: str, row: str,
        nodes: Callable[[str, str], list[NodeProto]],
    ) -> list[NodeProto]:  # fmt: skip
        """Return nodes from `source` to `output`, between which the images have an axis for themselves.

        Where sizes are free, that axis is as long as `row` [rows, n]: 1 of all images, what one is merged with besides.
        """
        place, shape = _images_beside(self.traced, name, axis), self.traced.shaped.shapes[name]
        if place is None or place.alone:
            return nodes(source, output)
        if self.traced.sized and self.probe is None:
            return self._apart_by_rows(place, source, output, row, nodes)
        whole = [-1 if axis == place.axis else size for axis, size in enumerate(shape)]
        return self._between(source, output, place.split(shape), whole, nodes)

    def _between(
        self, source: str, output: str, apart_as: Sequence[int], whole: Sequence[int],
        nodes: Callable[[str, str], list[NodeProto]],
    ) -> list[NodeProto]:  # fmt: skip
        """Return nodes from `source` to `output` with a Reshape in front of them and one behind."""
        split = self._constant(f"{output}.split", np.array(apart_as, np.int64))
        merged = self._constant(f"{output}.merged", np.array(whole, np.int64))
        apart, done = self.names.new(f"{output}.apart"), self.names.new(f"{output}.done")
        return [
            self._node("Reshape", [source, split], apart),
            *nodes(apart, done),
            self._node("Reshape", [done, merged], output),
        ]

    def _apart_by_rows(
        self, place: Images, source: str, output: str, row: str, nodes: Callable[[str, str], list[NodeProto]]
    ) -> list[NodeProto]:
        """Return the same at any sizes: the axis of the images is split into one, the rows, and what remains."""
        ends = [self._constant(f"{output}.{k}", np.array([k])) for k in (0, 1, place.axis, place.axis + 1)]
        far = self._constant(f"{output}.far", np.array([np.iinfo(np.int64).max]))
        rest = self._constant(f"{output}.rest", np.array([-1]))
        made = [self.names.new(f"{output}.{wish}") for wish in ("sizes", "rows", "count", "before", "behind", "split")]
        sizes, rows, count, before, behind, split = made
        apart, done = self.names.new(f"{output}.apart"), self.names.new(f"{output}.done")
        return [
            self._node("Shape", [source], sizes),
            self._node("Shape", [row], rows),
            self._node("Slice", [rows, ends[0], ends[1]], count),
            self._node("Slice", [sizes, ends[0], ends[2]], before),
            self._node("Slice", [sizes, ends[3], far], behind),
            self._node("Concat", [before, ends[1], count, rest, behind], split, axis=0),
            self._node("Reshape", [source, split], apart),
            *nodes(apart, done),
            self._node("Reshape", [done, sizes], output),
        ]

    def _apply(self, site: Site, source: str, mask: str, output: str, zero: str) -> list[NodeProto]:
        kind = self._kind(site.tensor)
        if kind in _CODES:
            return self._apply_to_codes(source, mask, output, zero, kind)
        if self.probe is None:
            return [self._node("And" if kind == TensorProto.BOOL else "Mul", [source, mask], output)]
        added, place = self.probe[site.tensor, site.axis], _images_beside(self.traced, site.tensor, site.axis)
        if place is not None and not place.alone:
            added = added.reshape(place.split(added.shape))
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        one = self._constant(f"{output}.one", np.ones((), dtype))
        signs = self._constant(f"{output}.probe", added.astype(dtype))
        minus, plus = self.names.new(f"{output}.minus"), self.names.new(f"{output}.added")
        return [
            self._node("Sub", [one, mask], minus),
            self._node("Mul", [minus, signs], plus),
            self._node("Add", [source, plus], output),
        ]

    def _apply_to_codes(self, source: str, mask: str, output: str, zero: str, kind: int) -> list[NodeProto]:
        """Return the nodes of (codes - zero point) * mask + zero point; there is no arithmetic on 8-bit integers."""
        made = list[NodeProto]()

        def put(kind: str, inputs: Sequence[str], wish: str, **attributes: Any) -> str:
            made.append(self._node(kind, inputs, self.names.new(f"{output}.{wish}"), **attributes))
            return str(made[-1].output[0])

        whole = put("Cast", [source], "float", to=TensorProto.FLOAT)
        if zero:
            lowest = put("Cast", [zero], "zero", to=TensorProto.FLOAT)
            scaled = put("Mul", [put("Sub", [whole, lowest], "apart"), mask], "scaled")
            whole = put("Add", [scaled, lowest], "whole")
        else:
            whole = put("Mul", [whole, mask], "whole")
        return [*made, self._node("Cast", [whole], output, to=kind)]

    def _kind(self, name: str) -> int:
        return self.traced.shaped.kinds.get(name, TensorProto.FLOAT)

    def _one(self) -> str:
        if ("one",) not in self.made:
            self.made["one",] = self._constant(f"{MASKS}1", np.ones((1, 1), np.float32))
        return self.made["one",]

    def _blocks(self, site: Site) -> Blocks | None:
        """Return how a mask goes along an axis whose size follows the inputs, None where it is as long as it was."""
        shaped, images = self.traced.shaped, self.traced.images(site.tensor)
        behind = range(site.axis + 1, len(shaped.shapes[site.tensor]))
        free = (site.tensor, site.axis) in shaped.varying and self.probe is None
        merged = images is not None and not images.alone and self.traced.sized
        alone = images is None or merged or (images.alone and images.axis < site.axis)
        if not free or not alone or any((site.tensor, k) in shaped.varying for k in behind):
            return None
        return blocks_of(self.traced.labels.units(site.tensor, site.axis))

    def _axis_mask(self, name: str, axis: int, blocks: Blocks | None) -> str:
        """Return the tensor float32[rows, n] that masks an axis, or its blocks: the product of its units' masks.

        mask = prod over slots of 1 + (m - 1) S, where S selects the unit of each position: exact for 0 and 1, and one
        small MatMul instead of a gather for each group.
        """
        units = self.traced.labels.units(name, axis) if blocks is None else blocks.units
        key = ("mask", units.tobytes(), units.shape)
        if key in self.made:
            return self.made[key]
        base = f"{MASKS}{name}.{axis}"
        factors = []
        for slot in range(units.shape[1]):
            terms, owners = [], self.owner[units[:, slot]]
            for number in np.unique(owners[owners >= 0]).tolist():
                group, where = self.groups[number], np.where(owners == number, self.place[units[:, slot]], -1)
                if units.shape[1] == 1 and np.array_equal(where, np.arange(len(group))):
                    self.made[key] = mask_name(group)
                    return self.made[key]
                terms.append(self._spread(group, where, f"{base}.{slot}.{group.name}"))
            if terms:
                total = terms[0]
                for k, term in enumerate(terms[1:]):
                    total = self._put("Add", [total, term], f"{base}.{slot}.sum{k}")
                factors.append(self._put("Add", [total, self._one()], f"{base}.{slot}"))
        result = factors[0]
        for k, factor in enumerate(factors[1:]):
            result = self._put("Mul", [result, factor], f"{base}.product{k}")
        self.made[key] = result
        return result

    def _spread(self, group: Group, where: NDArray[np.intp], wish: str) -> str:
        """Return (m - 1) S: float32[rows, n], 0 where the position is none of the group's."""
        key = ("minus", group.name)
        if key not in self.made:
            self.made[key] = self._put("Sub", [mask_name(group), self._one()], f"{MASKS}{group.name}.minus1")
        if np.array_equal(where, np.arange(len(group))):  # of 3072 units, hidden ones of a BERT, S takes 38 MB
            return self.made[key]
        selector = np.zeros((len(group), len(where)), np.float32)
        selector[where[where >= 0], np.flatnonzero(where >= 0)] = 1
        chosen = self._constant(f"{wish}.select", selector)
        return self._put("MatMul", [self.made[key], chosen], wish)

    def _broadcast(self, row: str, name: str, axis: int, wish: str, blocks: Blocks | None = None) -> str:
        """Return `row` [rows, n] shaped and typed to multiply an axis of a tensor, rows on its batch axis."""
        shaped, place = self.traced.shaped, _images_beside(self.traced, name, axis)
        rank, batch, size = len(shaped.shapes[name]), None if place is None else place.axis, shaped.shapes[name][axis]
        if place is not None and not place.alone:
            rank, batch, axis = rank + 2, place.axis + 1, axis + 2 * (axis > place.axis)
        if blocks is not None:
            rank, axis, size = rank + 1, axis + blocks.inner, len(blocks.units)
        wanted = [1] * rank
        wanted[axis] = -1 if batch is None else size
        if batch is not None:
            wanted[batch] = -1
            if batch > axis:
                row = self._put("Transpose", [row], f"{wish}.turned", perm=[1, 0])
        target = self._constant(f"{wish}.shape", np.array(wanted, np.int64))
        output = self._put("Reshape", [row, target], wish)
        kind = self._kind(name)
        if kind in INTEGERS - _CODES:  # means are rounded, as `rewrite` does
            half = self._constant(f"{output}.half", np.array(0.5, np.float32))
            above = self._put("Add", [output, half], f"{output}.above")
            output = self._put("Floor", [above], f"{output}.rounded")
        if kind != TensorProto.FLOAT and kind not in _CODES:
            output = self._put("Cast", [output], f"{output}.cast", to=kind)
        return output
