"""Which axes of what a node gives have sizes that are in doubt (`doubts`), given which of what it reads have.

Ops that are given their sizes as a vector are told entry by entry; of all others `alone` tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import NodeProto

from onnxshap.core import BoolArray
from onnxshap.graph import attributes, is_op
from onnxshap.shapes.alone import Alone, Given


def sizes_in_doubt(
    node: NodeProto,
    given: Sequence[Given | None],
    shapes: Mapping[str, tuple[int, ...]],
    alone: Alone,
) -> dict[str, BoolArray]:
    """Return the axes in doubt of every output, bool[rank] each; all of them where nothing is known.

    Args:
        node: the node.
        given: its inputs, None those left out.
        shapes: shapes of its outputs in a run.
        alone: infers what a node of the model gives.
    """
    wanted = [o for o in node.output if o]
    found = {name: np.ones(len(shapes.get(name, ())), np.bool_) for name in wanted}
    listed = _by_entries(node, given, shapes.get(wanted[0], ()) if wanted else ())
    if listed is not None:
        return {name: listed if len(listed) == len(found[name]) else found[name] for name in wanted}
    known = alone.shapes(node, given)
    for name in wanted:
        dims, sizes = known.get(name), shapes.get(name)  # the runtime gives a sequence dims, which has no shape
        if dims is not None and sizes is not None and len(dims) == len(sizes):
            found[name] = np.array([dim != size for dim, size in zip(dims, sizes, strict=True)], np.bool_)
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
    """Return the entries in doubt of a vector; all where its length is, or where the data tell them."""
    if one is None:
        return np.ones(0, np.bool_)
    if one.value is None:
        return np.ones(one.shape, np.bool_).reshape(-1)
    doubts = np.zeros(one.value.shape, np.bool_) if one.entries is None else one.entries
    return np.asarray(doubts | one.sizes.any()).reshape(-1)
