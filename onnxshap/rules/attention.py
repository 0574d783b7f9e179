"""Attention as one op, and what runtimes fuse around it. An axis of width heads x size is a product of the two.

Heads go as wholes: queries, keys and values of one, and its part of the output. So do positions of the values, the same
in every head, and those of queries and keys, unless biases are added inside or the op makes them itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxshap.core import IntArray
from onnxshap.labels import Axes, Op, Product, RuleError, Tensor
from onnxshap.labels.fixups import Default, HeadCount, Parts
from onnxshap.rules.norm import STATISTICS, as_a_whole, root_mean_square
from onnxshap.rules.registry import rule

_MS = "com.microsoft"
_INSIDE = "{} sums over it inside"
_SIZE = "size"
"""The factor that holds the features of a head."""
_Axis = tuple[Tensor, int]


def _product(ax: Axes, merged: IntArray, *factors: IntArray) -> None:
    shape = [len(f) for f in factors]
    if math.prod(shape) != merged.size:
        raise RuleError(f"{ax.op.type} has {merged.size} positions, not {' x '.join(map(str, shape))}")
    ax.trace.products.append(Product(merged.reshape(shape), factors, ax.op.type))


def _stuck(ax: Axes, size: int) -> IntArray:
    """Return atoms of a factor that stays."""
    atoms = ax.factor(_SIZE, size)
    ax.freeze(atoms, _INSIDE.format(ax.op.type))
    return atoms


def _over_positions(op: Op, ax: Axes, axis: int, *inputs: int) -> None:
    """Freeze the positions of queries, keys and values: shares sum to 1 over them, masks and angles go by their number.

    Args:
        op, ax: as in a rule.
        axis: of the positions.
        inputs: that have them.
    """
    ax.cross(axis)
    for number in inputs:
        ax.freeze(ax.input(number, axis), f"{op.type} divides by a sum over it")


def _products_inside(ax: Axes, rows: Sequence[_Axis], keys: _Axis, *widths: Sequence[_Axis]) -> None:
    """State the multiply-accumulates inside: every query meets every key, and every share of attention a value.

    Args:
        ax: as in a rule.
        rows: the axes of images and queries.
        keys: the axis of the positions of keys and values.
        widths: the axes that hold heads and features, of queries and of values.
    """
    for width in widths:
        ax.macs(*rows, keys, *width)


def _only_output(op: Op, *absent: int) -> None:
    if any(o is not None for o in op.outputs[1:]) or any(op.input(k) is not None for k in absent):
        raise RuleError(f"{op.type} with a cache or further outputs")


@rule(f"{_MS}.Attention")
def fused_attention(op: Op, ax: Axes) -> None:
    """Input, weights [in, q + k + v], bias, mask, past, addend: the projections are made inside."""
    _only_output(op, 4, 6)
    x, w, y = op.need(0), op.need(1), op.out()
    if not w.constant or op.attributes.get("do_rotary"):
        raise RuleError(f"{op.type} with computed weights or rotary positions")
    third = w.shape[1] // 3
    sizes = [int(s) for s in op.attributes.get("qkv_hidden_sizes", [third] * 3)]
    count = int(op.attributes["num_heads"])
    ax.same((0, 1))
    _over_positions(op, ax, 1, 0)
    ax.tie(ax.input(0, 2), ax.input(1, 0))
    ax.contract(0, 2)
    heads = ax.factor("heads", count)
    values = ax.trace.fresh(sizes[2] // count)
    parts = np.split(ax.input(1, 1), np.cumsum(sizes)[:-1])
    for part, size in zip(parts[:2], sizes, strict=False):
        _product(ax, part, heads, _stuck(ax, size // count))
    _product(ax, parts[2], heads, values)
    _product(ax, ax.output(0, 2), heads, values)
    if op.input(2) is not None:
        ax.tie(ax.input(2, 0), ax.input(1, 1))
    ax.make(2)
    _addend(op, ax, 5, heads)
    ax.macs((y, 0), (y, 1), (w, 0), (w, 1))
    queries = [(ax.factor_tensor(name, size), 0) for name, size in (("heads", count), (_SIZE, sizes[0] // count))]
    _products_inside(ax, [(y, 0), (y, 1)], (x, 1), queries, [(y, 2)])
    ax.fix(HeadCount(op.index, ax.factor_name("heads"), "num_heads"))
    ax.fix(Parts(op.index, w.name, 1, tuple(sizes), "qkv_hidden_sizes"))
    assert x.rank == 3


def _addend(op: Op, ax: Axes, k: int, heads: IntArray) -> None:
    """Relate what is added to the scores [batch, heads, queries, keys], if there is any: it may lack the first axes."""
    if (given := op.input(k)) is None:
        return
    if given.rank == 4 and given.shape[0] == op.out().shape[0]:
        ax.tie(ax.input(k, 0), ax.output(0, 0))
    if given.rank >= 3 and given.shape[-3] == len(heads):
        ax.tie(ax.input(k, -3), heads)


@rule(f"{_MS}.MultiHeadAttention")
def multi_head_attention(op: Op, ax: Axes) -> None:
    """Queries, keys, values [batch, positions, heads x size], bias, padding, addend.

    What is left of queries and keys meets as it did, but for biases that are added inside.
    """
    _only_output(op, 6, 7, 8, 9)
    q, k, v = op.need(0), op.need(1), op.need(2)
    if not q.rank == k.rank == v.rank == 3:
        raise RuleError(f"{op.type} with packed or cached keys")
    count = int(op.attributes["num_heads"])
    ax.same((0, 1))
    for number in (1, 2):
        ax.tie(ax.input(number, 0), ax.output(0, 0))
    _over_positions(op, ax, 1, 0, 1, 2)
    heads = ax.factor("heads", count)
    values, size = ax.trace.fresh(v.shape[2] // count), q.shape[2] // count
    if op.input(3) is None and op.attributes.get("scale") != 0:  # 0 stands for the default, too
        inner = ax.factor(_SIZE, size)
        ax.contract(0, 2, meets=1)
        ax.fix(Default(op.index, q.name, 2, "scale", 1 / math.sqrt(size)))
    else:
        inner = _stuck(ax, size)
    for number in (0, 1):
        _product(ax, ax.input(number, 2), heads, inner)
    _product(ax, ax.input(2, 2), heads, values)
    _product(ax, ax.output(0, 2), heads, values)
    if op.input(3) is not None:
        together = np.concatenate([ax.input(number, 2) for number in range(3)])
        ax.tie(ax.input(3, 0), together)
    _addend(op, ax, 5, heads)
    _products_inside(ax, [(op.out(), 0), (op.out(), 1)], (k, 1), [(q, 2)], [(op.out(), 2)])
    ax.fix(HeadCount(op.index, ax.factor_name("heads"), "num_heads"))


@rule(f"{_MS}.GroupQueryAttention")
def group_query_attention(op: Op, ax: Axes) -> None:
    """Queries [batch, positions, heads x size], keys, values, cache, lengths; every head of keys serves a run of heads.

    Queries, keys and values may come as one. The size of a head stays (rotary angles); with a cache, heads of keys are
    those of the cache.
    """
    if any(op.input(k) is not None for k in range(12, 16)) or (len(op.outputs) > 3 and op.outputs[3] is not None):
        raise RuleError(f"{op.type} with codes in its cache, norms inside or further outputs")
    q, y = op.need(0), op.out()
    many, few = int(op.attributes["num_heads"]), int(op.attributes["kv_num_heads"])
    size = y.shape[2] // many
    shared = ax.factor("kv", few)
    served = (shared,) if many == few else (shared, ax.trace.fresh(many // few))
    heads = shared if many == few else ax.factor("q", many)
    if many != few:
        _product(ax, heads, *served)
    inner = _stuck(ax, size)
    ax.same((0, 1))
    packed = op.input(1) is None
    _over_positions(op, ax, 1, *((0,) if packed else (0, 1, 2)))
    parts = np.split(ax.input(0, 2), np.cumsum([many, few]) * size) if packed else [ax.input(k, 2) for k in range(3)]
    for merged, factors in zip(parts, (served, (shared,), (shared,)), strict=True):
        _product(ax, merged, *factors, inner)
    _product(ax, ax.output(0, 2), *served, inner)
    for tensor in () if packed else (1, 2):
        for axis in (0, 1):
            ax.tie(ax.input(tensor, axis), ax.output(0, axis))
    for k in (3, 4):
        if op.input(k) is not None:
            ax.tie(ax.input(k, 0), ax.output(0, 0))
            ax.tie(ax.input(k, 1), shared)
    for out in (1, 2):
        if len(op.outputs) > out and op.outputs[out] is not None:
            ax.tie(ax.output(out, 0), ax.output(0, 0))
            ax.tie(ax.output(out, 1), shared)
    if (lengths := op.input(5)) is not None and lengths.rank and lengths.shape[0] == q.shape[0]:
        ax.tie(ax.input(5, 0), ax.output(0, 0))
    _addend(op, ax, 10, heads)
    if op.input(11) is not None:
        ax.tie(ax.input(11, 0), heads)
    cached = op.outputs[1] if len(op.outputs) > 1 else None
    keys = (cached, 2) if cached is not None else (q if packed else op.need(1), 1)
    _products_inside(ax, [(y, 0), (y, 1)], keys, [(y, 2)], [(y, 2)])
    ax.fix(HeadCount(op.index, ax.factor_name("q" if many != few else "kv"), "num_heads"))
    ax.fix(HeadCount(op.index, ax.factor_name("kv"), "kv_num_heads"))


@rule("Attention")
def attention(op: Op, ax: Axes) -> None:
    """Queries, keys, values, addend; [batch, heads, positions, size] or [batch, positions, heads x size].

    With fewer heads of keys and values than of queries, every one of theirs serves a run of queries' heads.
    """
    _only_output(op, 4, 5, 6)
    q, k, v = op.need(0), op.need(1), op.need(2)
    flat = q.rank == 3
    if not q.rank == k.rank == v.rank or q.rank not in (3, 4):
        raise RuleError("Attention with inputs of different ranks")
    many = int(op.attributes["q_num_heads"]) if flat else q.shape[1]
    few = int(op.attributes["kv_num_heads"]) if flat else k.shape[1]
    size = q.shape[2] // many if flat else q.shape[3]
    sequence = 1 if flat else 2
    ax.tie(ax.input(0, sequence), ax.output(0, sequence))
    _over_positions(op, ax, sequence, 0, 1, 2)
    for number in range(3):
        ax.tie(ax.input(number, 0), ax.output(0, 0))
    shared = (ax.factor("kv", few),)
    served = shared if many == few else (*shared, ax.trace.fresh(many // few))
    heads = shared[0] if many == few else ax.factor("q", many)
    if many != few:
        _product(ax, heads, *served)
    inner, values = ax.trace.fresh(size), ax.trace.fresh(v.shape[2] // few if flat else v.shape[3])
    if flat:
        for merged, factors in (
            (ax.input(0, 2), (*served, inner)),
            (ax.input(1, 2), (*shared, inner)),
            (ax.input(2, 2), (*shared, values)),
            (ax.output(0, 2), (*served, values)),
        ):
            _product(ax, merged, *factors)
        ax.fix(HeadCount(op.index, ax.factor_name("q" if many != few else "kv"), "q_num_heads"))
        ax.fix(HeadCount(op.index, ax.factor_name("kv"), "kv_num_heads"))
    else:
        for number, count, last in ((0, heads, inner), (1, shared[0], inner), (2, shared[0], values)):
            ax.tie(ax.input(number, 1), count)
            ax.tie(ax.input(number, 3), last)
        ax.tie(ax.output(0, 1), heads)
        ax.tie(ax.output(0, 3), values)
    ax.contract(0, -1, meets=1)
    _addend(op, ax, 3, heads)
    y, apart, features = op.out(), [] if flat else [(op.out(), 1)], q.rank - 1
    _products_inside(ax, [(y, 0), (y, sequence)], (k, sequence), [*apart, (q, features)], [*apart, (y, features)])
    ax.fix(Default(op.index, q.name, q.rank - 1, "scale", 1 / math.sqrt(size)))


@rule(f"{_MS}.RotaryEmbedding", "RotaryEmbedding")
def rotary(op: Op, ax: Axes) -> None:
    """Turns pairs of features of a head by angles from a table, by the numbers of positions: heads pass through."""
    x = op.need(0)
    ax.freeze(ax.input(0, x.rank - 2), f"{op.type} goes by its numbers")
    if x.rank == 4:
        ax.same((0, 1, 2))
        return
    table = op.need(2 if op.type.startswith(_MS) else 1)
    count = int(op.attributes.get("num_heads", 0)) or x.shape[2] // (2 * table.shape[-1])
    ax.same((0, 1))
    heads = ax.factor("heads", count)
    inner = _stuck(ax, x.shape[2] // count)
    _product(ax, ax.input(0, 2), heads, inner)
    _product(ax, ax.output(0, 2), heads, inner)
    if op.attributes.get("num_heads"):
        ax.fix(HeadCount(op.index, ax.factor_name("heads"), "num_heads"))


@rule(f"{_MS}.SkipLayerNormalization", f"{_MS}.SkipSimplifiedLayerNormalization")
def skip_layer_normalization(op: Op, ax: Axes) -> None:
    """Statistics over the last axis of a sum without a bias (`graph.fused`); the others keep apart."""
    for out, y in enumerate(op.outputs):
        if y is not None:
            for k in (0, 1):
                if op.need(k).rank == y.rank and op.need(k).shape[:-1] == y.shape[:-1]:
                    ax.same(range(y.rank - 1), k, out)
    last = op.need(0).rank - 1
    outputs = [out for out in (0, 3) if len(op.outputs) > out and op.outputs[out] is not None]
    if "Simplified" not in op.type:
        given = [k for k in (2, 3) if op.input(k) is not None]
        as_a_whole(op, ax, [last], STATISTICS, (0, 1), given, outputs)
    elif op.need(0).shape == op.need(1).shape:
        root_mean_square(op, ax, (0, 1), [last], scale=2)
        for out in outputs[1:]:
            ax.same([last], 0, out)


@rule(f"{_MS}.EmbedLayerNormalization")
def embed_layer_normalization(op: Op, ax: Axes) -> None:
    """Tables looked up and summed, statistics over the last axis: images and positions keep apart."""
    for out, y in enumerate(op.outputs):
        if y is not None:
            ax.same(range(2 if y.rank == 3 else 1), 0, out)
