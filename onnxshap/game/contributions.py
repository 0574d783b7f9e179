"""What every unit of a group adds to the output of a linear op that sums over it, image by image.

The op itself tells: run with one group a unit, a convolution keeps apart what each unit adds; a matrix product does by
rows of its matrix. Then the output without some units is the whole output less what they add, to within rounding: a
walk that removes one unit after the other takes one subtraction a row instead of the op.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from onnxshap.backend import Session
from onnxshap.core import Array
from onnxshap.graph import Names, tensor
from onnxshap.groups import Group
from onnxshap.labels import Site
from onnxshap.labels.kernels import block_diagonal, in_first, shares_inputs
from onnxshap.masking import Means, responses
from onnxshap.shapes.constants import static_values
from onnxshap.shapes.images import Images
from onnxshap.tracing import Traced

_GROUPED = frozenset({"Conv", "ConvTranspose"})
"""Ops whose attribute `group` keeps blocks of channels apart."""
_PRODUCTS = frozenset({"Gemm", "MatMul", "FusedMatMul", "TransposeMatMul"})
"""Ops that multiply the rows of a tensor by a matrix."""


@dataclass(frozen=True)
class Adder:
    """One op.

    Attributes:
        x: tensor that the group's units are positions of.
        y: what the op makes, or that and what is the same in every row.
        outputs: channels of `y`.
        work: multiplications of the op for each number it makes.
        axis: of `x`, that is summed away, where the images come first (`Images.front`).
        places: intp[units there, positions of one].
        present: intp[units there], which units these are.
        matrix: float32[units there, positions of one, outputs], None of a convolution.
        session: of a convolution, one group a unit.
        left: float32[units there, outputs], what a removed unit leaves.
        alone: whether all that `y` has of an image are the units' parts: without them it is the same for every image.
    """

    x: str
    y: str
    outputs: int
    work: float
    axis: int
    places: NDArray[np.intp]
    present: NDArray[np.intp]
    matrix: Array | None
    session: Session | None
    left: Array | None
    alone: bool

    def added(self, x: Array, n_units: int) -> Array:
        """Return float32[n_units, numbers of y]: what each unit adds to the output of the one image of `x`.

        `x` has the image on axis 0, the numbers are those of `y` with it there.
        """
        count, each = self.places.shape
        chosen = np.take(x, self.places.ravel(), axis=self.axis)
        if self.matrix is None:
            assert self.session is not None
            found = self.session.run({self.x: chosen})[0].reshape(count, self.outputs, -1)
            left = None if self.left is None else self.left[:, :, None]
        else:
            rows = np.moveaxis(chosen[0], self.axis - 1, 0).reshape(count, each, -1).transpose(0, 2, 1)
            found = rows * self.matrix if each == 1 else rows @ self.matrix  # a product of matrices costs more
            left = None if self.left is None else self.left[:, None, :]
        if left is not None:  # in place where that rounds no more than the difference does
            found = np.subtract(found, left, out=found if found.dtype == left.dtype else None)
        flat = np.ascontiguousarray(found, np.float32).reshape(count, -1)
        if count == n_units and (self.present == np.arange(n_units)).all():
            return flat
        whole = np.zeros((n_units, flat.shape[1]), np.float32)
        whole[self.present] = flat
        return whole


def find_adders(traced: Traced, group: Group, sites: Sequence[Site], means: Means) -> list[Adder] | None:
    """Return the ops that sum over a group's units at some sites, None where one of them is not linear in each unit.

    Args:
        traced: the model.
        group: of it.
        sites: places where the group's units are summed away, none behind another one.
        means: what removed channels leave behind.
    """
    nodes = traced.shaped.graph.nodes
    if len({site.node for site in sites}) < len(sites):
        return None  # its units meet there in products
    linear = set(traced.labels.trace.linear)
    places = [_places(traced, group, site) for site in sites]
    if any(site not in linear or not _plain(traced, site) for site in sites) or any(p is None for p in places):
        return None
    names = [nodes[s.node].input[s.weight.input] for s in sites if s.weight is not None]
    values = static_values(traced.shaped.graph.model, traced.backend, list(dict.fromkeys(names)))
    tables = responses(traced, [s for s in sites if (s.node, s.input) in means])
    found = []
    for site, name, place in zip(sites, names, places, strict=True):
        table = tables.get(site)
        filled = None if table is None else means[site.node, site.input][:, None] * table()
        assert place is not None
        found.append(_adder(traced, site, values[name], *place, filled))
    return found


def _plain(traced: Traced, site: Site) -> bool:
    """Return whether an op is one of those that can be taken apart: of float32, images in one place before and behind.

    That is axis 0 of a convolution, of a product of matrices any but the last.
    """
    node, y, kinds = traced.shaped.graph.nodes[site.node], traced.shaped.graph.nodes[site.node].output[0], {1}
    weight, shapes = site.weight, traced.shaped.shapes
    if weight is None or site.zero is not None or node.input[site.input] != site.tensor:
        return False
    if {traced.shaped.kinds.get(name, 0) for name in (site.tensor, y)} != kinds:
        return False
    place = traced.images(site.tensor)
    if place is None or traced.images(y) != place:
        return False
    if node.op_type in _GROUPED:
        return place == Images(0) and site.axis == weight.out == 1
    last = len(shapes[site.tensor]) - 1
    if place.axis == last:
        return False
    rank = len(shapes.get(node.input[weight.input], ()))
    return node.op_type in _PRODUCTS and rank == 2 and site.axis == weight.out == last == len(shapes[y]) - 1


def _places(traced: Traced, group: Group, site: Site) -> tuple[NDArray[np.intp], NDArray[np.intp]] | None:
    """Return the positions of every unit and which units these are; None where units overlap or differ in size."""
    number = np.full(traced.labels.n_units + 1, -1)
    number[group.units] = np.arange(len(group))
    slots = number[traced.labels.units(site.tensor, site.axis)]
    if (np.count_nonzero(slots >= 0, axis=1) > 1).any():
        return None
    unit = slots.max(axis=1)
    order = np.argsort(unit, kind="stable")[np.count_nonzero(unit < 0) :]
    present, counts = np.unique(unit[order], return_counts=True)
    if len(set(counts.tolist())) != 1:
        return None
    return order.reshape(len(present), -1), present


def _adder(
    traced: Traced,
    site: Site,
    values: Array,
    places: NDArray[np.intp],
    present: NDArray[np.intp],
    filled: Array | None,
) -> Adder:
    node, weight = traced.shaped.graph.nodes[site.node], site.weight
    assert weight is not None
    y = node.output[0]
    kernel = in_first(values, weight) * np.float32(weight.scale)
    work = kernel.size / kernel.shape[1] * weight.spread / (1 if shares_inputs(weight) else weight.groups)
    if weight.groups > 1:
        kernel = block_diagonal(kernel, weight)
    chosen = kernel[places]  # units there, positions of one, outputs, taps
    matrix, session = None, None
    if node.op_type in _GROUPED:
        model = _apart(traced, node, site, chosen)
        session = traced.backend.session(model)
    else:
        matrix = np.ascontiguousarray(chosen, np.float32)
    left = None
    if filled is not None:
        left = filled.astype(np.float32)[places].sum(axis=1, dtype=np.float32)
    place = traced.images(site.tensor)
    behind = 0 if place is None or place.alone else 2  # what shares the images' axis has two of its own
    others = {name for k, name in enumerate(node.input) if name and k != site.input}
    alone = places.size == traced.shaped.shapes[site.tensor][site.axis] and others <= traced.shaped.constants
    axis = site.axis + behind
    return Adder(site.tensor, y, chosen.shape[2], work, axis, places, present, matrix, session, left, alone)


def _apart(traced: Traced, node: NodeProto, site: Site, chosen: Array) -> ModelProto:
    """Return a model of the convolution alone, one group a unit: [1, units there x positions] -> units there x y."""
    count, each, outs = chosen.shape[:3]
    if node.op_type == "Conv":
        weights = np.moveaxis(chosen, 2, 1).reshape(count * outs, each, *chosen.shape[3:])
    else:
        weights = chosen.reshape(count * each, outs, *chosen.shape[3:])
    alone = NodeProto()
    alone.CopyFrom(node)
    del alone.input[:], alone.attribute[:]
    stored = Names(GraphProto(node=[alone]), [site.tensor]).new("weights")
    alone.input.extend([site.tensor, stored])
    alone.attribute.extend(a for a in node.attribute if a.name != "group")
    alone.attribute.append(helper.make_attribute("group", count))
    source = traced.shaped.graph.model
    graph = helper.make_graph(
        [alone],
        "contributions",
        [helper.make_tensor_value_info(site.tensor, TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)],
        [tensor(stored, np.ascontiguousarray(weights, np.float32))],
    )
    return helper.make_model(graph, opset_imports=source.opset_import, ir_version=source.ir_version)
