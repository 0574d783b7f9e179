"""Which axes of what a node gives have sizes that are in doubt (`doubts`), given which of what it reads have.

Ops that are given their sizes as a vector are told entry by entry; of all others ONNX's own shape inference tells, of
that node alone, with axes of unknown size where there is doubt: what it still knows is sure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx.shape_inference
from onnx import NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto, helper

from onnxshap.core import Array, BoolArray
from onnxshap.graph import attributes, is_op, tensor

MOST = 64
"""Numbers of a constant that shape inference may want to see."""


@dataclass(frozen=True)
class Given:
    """An input of a node.

    Attributes:
        shape: its shape in a run.
        sizes: bool[rank], the axes whose sizes are in doubt.
        value: its values, where they are known; None = data.
        entries: bool[shape] of values, those that are in doubt.
    """

    shape: tuple[int, ...]
    sizes: BoolArray
    value: Array | None = None
    entries: BoolArray | None = None

    @property
    def sure(self) -> bool:
        """Whether nothing of it is in doubt."""
        return not self.sizes.any() and (self.entries is None or not self.entries.any())


def sizes_in_doubt(
    node: NodeProto,
    given: Sequence[Given | None],
    shapes: Mapping[str, tuple[int, ...]],
    opsets: Sequence[OperatorSetIdProto],
) -> dict[str, BoolArray]:
    """Return the axes in doubt of every output, bool[rank] each; all of them where nothing is known.

    Args:
        node: the node.
        given: its inputs, None those left out.
        shapes: shapes of its outputs in a run.
        opsets: of the model.
    """
    wanted = [o for o in node.output if o]
    found = {name: np.ones(len(shapes.get(name, ())), np.bool_) for name in wanted}
    listed = _by_entries(node, given, shapes.get(wanted[0], ()) if wanted else ())
    if listed is not None:
        return {name: listed if len(listed) == len(found[name]) else found[name] for name in wanted}
    known = _inferred(node, given, opsets)
    for name in wanted:
        dims = known.get(name)
        if dims is not None and len(dims) == len(found[name]):
            found[name] = np.array([dim != size for dim, size in zip(dims, shapes[name], strict=True)], np.bool_)
    return found


def _by_entries(node: NodeProto, given: Sequence[Given | None], out: tuple[int, ...]) -> BoolArray | None:
    """Return the axes in doubt of what an op gives that is told its sizes as a vector; None if it is no such op.

    `out` is the shape that it gave in a run.
    """
    attribute = attributes(node)
    if is_op(node, "ConstantOfShape"):
        return _entries(given[0])
    if is_op(node, "Pad") and len(given) in (2, 3) and given[0] is not None:
        before, after = np.array_split(_entries(given[1]), 2)
        return np.asarray(before | after | given[0].sizes) if len(before) == len(given[0].shape) else None
    if is_op(node, "Slice") and len(given) > 3 and given[0] is not None and given[3] is not None:
        axes, bounds = given[3].value, _entries(given[1]) | _entries(given[2])
        if axes is None or not given[3].sure or len(axes) != len(bounds):
            return None
        cut = np.zeros(len(given[0].shape), np.bool_)
        cut[axes.astype(np.int64)[bounds]] = True
        return given[0].sizes | cut
    here = [one for one in given if one is not None and one.shape != (0,)]
    if len(here) < 2 or here[-1].value is None or "axes" in attribute:
        return None
    data, vector = here[0], here[-1]
    entries, rank = _entries(vector), len(data.shape)
    if is_op(node, "Resize", "Upsample", "Tile") and len(entries) == rank:
        return entries | data.sizes
    if is_op(node, "Expand"):
        wide = np.zeros(max(rank, len(entries)), np.bool_)
        wide[len(wide) - rank :] |= data.sizes
        wide[len(wide) - len(entries) :] |= entries
        return wide
    if is_op(node, "Reshape"):
        target, copies = np.asarray(vector.value), not attribute.get("allowzero")
        copied = [bool(copies and t == 0 and (k >= rank or data.sizes[k])) for k, t in enumerate(target)]
        doubted = bool(entries.any() or data.sizes.any())
        taken = [t == -1 and doubted and not _stays(data, out, k) for k, t in enumerate(target)]
        return np.asarray(entries | np.array(copied, np.bool_) | np.array(taken, np.bool_))
    return None


def _stays(data: Given, out: tuple[int, ...], axis: int) -> bool:
    """Return whether an axis of a reshaped tensor is one of the data, sure, with all before it or all behind it."""
    from_end = axis - len(out) + len(data.shape)
    before = data.shape[: axis + 1] == out[: axis + 1] and not data.sizes[axis]
    behind = from_end >= 0 and data.shape[from_end:] == out[axis:] and not data.sizes[from_end]
    return before or behind


def _entries(one: Given | None) -> BoolArray:
    """Return the entries in doubt of a vector; all where its length is."""
    if one is None or one.value is None:
        return np.ones(0, np.bool_)
    doubts = np.zeros(one.value.shape, np.bool_) if one.entries is None else one.entries
    return np.asarray(doubts | one.sizes.any()).reshape(-1)


def _inferred(
    node: NodeProto, given: Sequence[Given | None], opsets: Sequence[OperatorSetIdProto]
) -> dict[str, list[int | None]]:
    """Return the shapes that ONNX infers of a node alone, None for what it does not know."""
    inputs, stored, seen = list[ValueInfoProto](), list[TensorProto](), set[str]()
    for k, (name, one) in enumerate(zip(node.input, given, strict=True)):
        if one is None or name in seen:
            continue
        seen.add(name)
        if one.value is not None and one.sure and one.value.size <= MOST:
            stored.append(tensor(name, one.value))
            continue
        kind = TensorProto.FLOAT if one.value is None else helper.np_dtype_to_tensor_dtype(one.value.dtype)
        dims = [
            f"d{k}.{axis}" if doubt else size
            for axis, (size, doubt) in enumerate(zip(one.shape, one.sizes, strict=True))
        ]
        inputs.append(helper.make_tensor_value_info(name, kind, dims))
    outputs = [ValueInfoProto(name=o) for o in node.output if o]
    graph = helper.make_graph([node], "one", inputs, outputs, stored)
    model = helper.make_model(graph, opset_imports=opsets)
    try:
        inferred = onnx.shape_inference.infer_shapes(model).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return {}
    return {
        o.name: [d.dim_value if d.HasField("dim_value") else None for d in o.type.tensor_type.shape.dim]
        for o in (*inferred.output, *inferred.value_info)
        if o.type.tensor_type.HasField("shape")
    }
