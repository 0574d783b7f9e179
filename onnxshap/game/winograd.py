"""Convolutions with fewer multiplications, where what is behind a mask runs for every row (`toomcook`).

A convolution becomes, along each of its axes, one small product of matrices that spreads tiles, then one
product over the channels for every place of a tile, and again one along each axis that gathers the tiles. All of it is
in the order [axes of space, images, channels], in which these are products of matrices as they lie; onnxruntime drops
the transpositions between one such convolution and the next. Deep layers, of many channels and small images, run two to
three times as fast on a processor. On a device, whose library takes plain convolutions where tensor cores must not
round, rows are some one and a half times as many.

What a row gives does not depend, to the last bit, on the rows beside it: rows are those of the matrix on the left.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from onnxshap.backend import Resident, Session
from onnxshap.core import Array, FloatArray
from onnxshap.game.halves import gathered
from onnxshap.game.toomcook import Tiling, tilings
from onnxshap.graph import Names, attributes, is_op, weights
from onnxshap.graph.structure import reads, refill
from onnxshap.shapes.constants import norm_affine, static_values
from onnxshap.shapes.images import Images
from onnxshap.taps import paddings
from onnxshap.tracing import Traced

_GAIN = 1.2
"""Times that a convolution has to be faster, reckoned: what else there is costs something too."""
_PRODUCT, _SPREAD, _MOVED = 1.5, 2.2, 75.0
"""What a multiplication takes in the products over channels and in those along an axis, and a number that is
transposed, in multiplications of onnxruntime's own convolution (measured with AVX-512, on one thread)."""
_NARROW = 4.0
"""Width of an output at which onnxruntime's own convolution takes twice as long for a multiplication."""
_CHANNELS = 64
"""Read or made below which rows were measured to gain nothing, whatever is reckoned: products of narrow matrices."""
_CHANNELS_THERE = 128
"""The same on a device (an H200)."""
_PACKED = 16.0
"""Numbers of a filter to those it is multiplied with and makes, of one image: above, it is put into the order in which
it is read once and for all. onnxruntime does that for matrices alone, and others it packs anew in every run; to take
the places of a tile apart for that costs two copies."""
_LEAST_PACKED = 2**15
"""Numbers of a filter below which that is no gain: every place of a tile is two nodes more, and onnxruntime takes more
than its share of time to open a model of thousands."""
_SHARE = 0.25
"""Of the memory, for filters: they are four times as large as they were."""


@dataclass(frozen=True)
class _Fast:
    """One convolution, y[n, outs, *outer] of x[n, ins, *size].

    Attributes:
        node: the Conv.
        norm: a BatchNormalization that alone reads it.
        ins: channels that it reads.
        outs: channels that it makes.
        axes: its axes of space in tiles.
    """

    node: NodeProto
    norm: NodeProto | None
    ins: int
    outs: int
    axes: Sequence[Tiling]

    @property
    def y(self) -> str:
        """What it makes."""
        return (self.norm or self.node).output[0]

    @property
    def bytes(self) -> int:
        """Of its filters."""
        return 4 * self.ins * self.outs * math.prod(axis.products for axis in self.axes)

    @property
    def packed(self) -> bool:
        """Whether every place of a tile is multiplied by a matrix of its own."""
        numbers = math.prod(axis.tiles for axis in self.axes) * (self.ins + self.outs)
        return self.ins * self.outs >= max(_LEAST_PACKED, _PACKED * numbers)

    @property
    def work(self) -> float:
        """What an image takes, in multiplications of a plain convolution."""
        before = [axis.size for axis in self.axes]
        after = [axis.out for axis in self.axes]
        tiled = [axis.products * axis.tiles for axis in self.axes]
        spread = sum(math.prod([*tiled[: k + 1], *before[k:]]) for k in range(len(tiled)))
        gathered = sum(math.prod([*after[: k + 1], *tiled[k:]]) for k in range(len(tiled)))
        along = spread * self.ins + gathered * self.outs
        moved = math.prod(before) * self.ins + math.prod(after) * self.outs
        products = math.prod(tiled) * self.ins * self.outs
        return float(_PRODUCT * products + _SPREAD * along + _MOVED * moved)


def quick_sessions(traced: Traced, parts: Sequence[ModelProto]) -> list[Session]:
    """Return sessions of parts of a model that run many times, their convolutions with fewer multiplications.

    Their numbers differ from the parts' by rounding, some 1e-6 of the largest.

    Args:
        traced: the model.
        parts: of it, masks in them or not, one behind the other.

    Raises:
        ModelError: a part does not load.
    """
    room = _room(traced)
    found = list[Session]()
    for part in reversed(parts):
        chosen = _chosen(traced, part, room)
        room -= sum(fast.bytes for fast in chosen)
        found.append(_session(traced, part, chosen))
    return found[::-1]


def quick_resident(traced: Traced, suffix: ModelProto, mask: str) -> tuple[Resident, str]:
    """Return a session of what is behind a mask, whose inputs stay on the device, likewise.

    The name is that of the input which tells of which image each row is (`halves.gathered`).

    Raises:
        ModelError: it does not load.
    """
    kept = weights.Kept()  # until the session has what is in it
    chosen = _chosen(traced, suffix, _room(traced))
    model, rows = gathered(traced, _Writer(traced, suffix, kept).write(chosen) if chosen else suffix, mask)
    return traced.backend.resident(model), rows


def _room(traced: Traced) -> int:
    """Return the bytes that filters may take."""
    return int(_SHARE * traced.backend.memory)


def _chosen(traced: Traced, part: ModelProto, room: int) -> list[_Fast]:
    """Return the convolutions of a part that are worth it and whose filters have room, the last one first."""
    chosen = list[_Fast]()
    for fast in _candidates(traced, part) if room else ():
        if fast.bytes <= room:
            room -= fast.bytes
            chosen.append(fast)
    return chosen


def _session(traced: Traced, part: ModelProto, chosen: Sequence[_Fast]) -> Session:
    """Return a session of a part, some of its convolutions with fewer multiplications."""
    if not chosen:
        return traced.backend.session(part)
    kept = weights.Kept()  # until the session has what is in it
    session = traced.backend.session(_Writer(traced, part, kept).write(chosen))
    alone = any(fast.axes[-1].tiles == 1 for fast in chosen)
    return _Pairs(traced, session) if alone else session


@dataclass(frozen=True)
class _Pairs:
    """A session that runs a lone row twice: matrices of one row have a kernel of their own, which rounds otherwise."""

    traced: Traced
    inner: Session

    @property
    def inputs(self) -> Sequence[str]:
        """Those of the session."""
        return self.inner.inputs

    @property
    def outputs(self) -> Sequence[str]:
        """Those of the session."""
        return self.inner.outputs

    @property
    def kinds(self) -> Sequence[int]:
        """Those of the session."""
        return self.inner.kinds

    @property
    def dims(self) -> Sequence[Sequence[int | None]]:
        """Those of the session."""
        return self.inner.dims

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Return the outputs in order."""
        places = {name: place for name in feeds if (place := self._place(name)) is not None}
        if any(place.count(feeds[name].shape) != 1 for name, place in places.items()):
            return self.inner.run(feeds)
        made = self.inner.run({**feeds, **{name: place.take(feeds[name], [0, 0]) for name, place in places.items()}})
        return [self.traced.rows(name).take(value, [0]) for name, value in zip(self.outputs, made, strict=True)]

    def _place(self, name: str) -> Images | None:
        """Return where the rows lie in an input; masks, no tensors of the model, have them on axis 0."""
        return self.traced.images(name) if name in self.traced.shaped.shapes else Images(0)


def _candidates(traced: Traced, part: ModelProto) -> Iterator[_Fast]:
    """Yield the convolutions of a part of a model that are worth it, the last one first."""
    graph = part.graph
    whole: dict[tuple[str, ...], list[NodeProto]] = {}
    for node in traced.shaped.graph.nodes:
        if is_op(node, "Conv"):
            whole.setdefault(tuple(node.input[1:]), []).append(node)
    readers: dict[str, list[NodeProto | None]] = {o.name: [None] for o in graph.output}
    for node in graph.node:
        for name in reads(node):
            readers.setdefault(name, []).append(node)
    for node in reversed(graph.node):
        same = whole.get(tuple(node.input[1:]), []) if is_op(node, "Conv") else []
        if len(same) > 1:  # masks give outputs other names; where filters are shared, only names tell
            same = [one for one in same if one.output[0] == node.output[0]]
        axes = _tiled(traced, same[0]) if same else []
        if not axes:
            continue
        outs, ins = traced.shaped.shapes[node.input[1]][:2]
        if min(outs, ins) < (_CHANNELS_THERE if traced.backend.on_device else _CHANNELS):
            continue
        after = readers.get(node.output[0], [])
        norm = after[0] if len(after) == 1 and after[0] is not None and _folds(traced, after[0]) else None
        found = min((_Fast(node, norm, ins, outs, a) for a in axes), key=lambda fast: fast.work)
        plain = ins * outs * math.prod(axis.kernel * axis.out for axis in axes[0])
        if plain * (1 + min(1.0, (_NARROW / axes[0][-1].out) ** 2)) >= _GAIN * found.work:
            yield found


def _tiled(traced: Traced, node: NodeProto) -> list[tuple[Tiling, ...]]:
    """Return the ways to take a convolution in tiles; none where it has groups, or computed weights."""
    shapes, kinds, (x, w), y = traced.shaped.shapes, traced.shaped.kinds, node.input[:2], node.output[0]
    given = attributes(node)
    known = all(name in shapes for name in (x, y)) and {*node.input[1:]} <= {*traced.shaped.constants, ""}
    plain = given.get("group", 1) == 1
    floats = {kinds.get(name, 0) for name in (x, y, w)} == {TensorProto.FLOAT}
    if not (known and plain and floats) or any(traced.batch_axis(name) != 0 for name in (x, y)):
        return []
    kernel = shapes[w][2:]
    dilations, strides = (given.get(name, [1] * len(kernel)) for name in ("dilations", "strides"))
    sizes = list(zip(shapes[x][2:], shapes[y][2:], kernel, strides, dilations, strict=True))
    pads = paddings(given, sizes)
    each = [tilings(i, o, k, d, pad, s) for (i, o, k, s, d), pad in zip(sizes, pads, strict=True)]
    return list(product(*each)) if max(kernel) > 1 else []


def _folds(traced: Traced, node: NodeProto) -> bool:
    """Return whether a node is a BatchNormalization of constant numbers."""
    return is_op(node, "BatchNormalization") and {*node.input[1:]} <= traced.shaped.constants


@dataclass
class _Writer:
    """Writes them into a copy of a part of a model."""

    traced: Traced
    part: ModelProto
    kept: weights.Kept
    _names: Names = field(init=False)
    _stored: list[TensorProto] = field(default_factory=list)
    _nodes: list[NodeProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._names = Names(self.part.graph)

    def write(self, chosen: Sequence[_Fast]) -> ModelProto:
        """Return the copy."""
        fast = {found.node.output[0]: found for found in chosen}
        gone = {found.y for found in chosen if found.norm is not None}
        for node in self.part.graph.node:
            if node.output[0] in fast:
                self._convolve(fast[node.output[0]])
            elif node.output[0] not in gone:
                self._nodes.append(node)
        made = ModelProto()
        made.CopyFrom(self.part)
        refill(made.graph.node, self._nodes)
        made.graph.initializer.extend(self._stored)
        return made

    def _convolve(self, fast: _Fast) -> None:
        rank = len(fast.axes)
        space = [*range(2, 2 + rank)]
        now = self._add("Transpose", [fast.node.input[0]], perm=[*space, 0, 1])
        sizes = [axis.size for axis in fast.axes]
        for k, axis in enumerate(fast.axes):
            now = self._along(now, sizes, k, axis.inputs.reshape(-1, sizes[k]))
        filters, bias = self._filters(fast)
        now = self._products(now, fast, filters)
        sizes = [axis.products * axis.tiles for axis in fast.axes]
        for k, axis in enumerate(fast.axes):
            now = self._along(now, sizes, k, axis.outputs.reshape(axis.out, -1))
        now = self._reshape(now, [*sizes, -1, fast.outs])
        if bias is not None:
            now = self._add("Add", [now, self._store(bias)])
        self._add("Transpose", [now], fast.y, perm=[rank, rank + 1, *range(rank)])

    def _products(self, x: str, fast: _Fast, filters: FloatArray) -> str:
        """Multiply the channels at every place of a tile, in the order [place, tile of each axis, images, channels]."""
        tiled = [size for axis in fast.axes for size in (axis.products, axis.tiles)]
        if not fast.packed:  # one filter for all tiles of the other axes: nothing has to be moved
            places = [size for axis in fast.axes for size in (axis.products, 1)][:-1]
            now = self._reshape(x, [*tiled[:-1], -1, fast.ins])
            return self._add("MatMul", [now, self._store(filters.reshape(*places, fast.ins, fast.outs))])
        apart = any(axis.tiles > 1 for axis in fast.axes[:-1])  # places of a tile first, then tiles and images
        perm = [*range(0, len(tiled), 2), *range(1, len(tiled), 2), len(tiled), len(tiled) + 1]
        now = self._reshape(x, [*tiled, -1, fast.ins])
        if apart:
            now = self._add("Transpose", [now], perm=perm)
        now = self._reshape(now, [len(filters), -1, fast.ins])
        made = []
        for k, each in enumerate(filters):
            place = self._add("Gather", [now, self._store(np.array(k))], axis=0)
            made.append(self._add("MatMul", [place, self._store(each)]))
        now = self._add("Concat", made, axis=0)
        if apart:
            now = self._reshape(now, [*(tiled[i] for i in perm[: len(tiled)]), -1, fast.outs])
            now = self._add("Transpose", [now], perm=[perm.index(i) for i in range(len(perm))])
        return now

    def _along(self, x: str, sizes: list[int], k: int, matrix: FloatArray) -> str:
        """Multiply the k-th axis by a matrix, and put down its new size."""
        if len(matrix) == sizes[k] and (matrix == np.eye(sizes[k])).all():
            return x
        flat = self._reshape(x, [*sizes[: k + 1], -1])
        sizes[k] = len(matrix)
        return self._add("MatMul", [self._store(matrix), flat])

    def _filters(self, fast: _Fast) -> tuple[FloatArray, FloatArray | None]:
        """Return the filters of every place of a tile, float64[places, ins, outs], and what is added to each output."""
        source, backend, node = self.traced.shaped.graph.model, self.traced.backend, fast.node
        values = static_values(source, backend, [name for name in node.input[1:] if name])
        found = values[node.input[1]].astype(np.float64)
        bias = values[node.input[2]].astype(np.float64) if len(values) > 1 else None
        if fast.norm is not None:
            scale, shift = norm_affine(source, backend, fast.norm)
            found *= scale.reshape(-1, *[1] * (found.ndim - 1))
            bias = shift if bias is None else bias * scale + shift
        taps = np.moveaxis(found, (0, 1), (-1, -2)).reshape(-1, fast.ins * fast.outs)
        spread: FloatArray = np.ones((1, 1))
        for axis in fast.axes:
            spread = np.asarray(np.kron(spread, axis.taps), np.float64)
        return np.asarray(spread @ taps).reshape(-1, fast.ins, fast.outs), bias

    def _reshape(self, x: str, shape: Sequence[int]) -> str:
        return self._add("Reshape", [x, self._store(np.array(shape, np.int64))])

    def _add(self, op: str, inputs: Sequence[str], y: str = "", **given: Any) -> str:
        y = y or self._names.new("fast")
        self._nodes.append(helper.make_node(op, inputs, [y], name=y, **given))
        return y

    def _store(self, values: Array) -> str:
        name = self._names.new("fast.of")
        kind = np.float32 if values.dtype.kind == "f" else np.int64
        self._stored.append(weights.initializer(name, values.astype(kind), self.kept))
        return name
