"""Multiply-accumulates, parameters and weight bytes as functions of what stays."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from onnxshap.blocks import filled
from onnxshap.core import BoolArray, FloatArray
from onnxshap.graph.structure import graphs_of, used_names
from onnxshap.labels import AxisKey, Labels, Liveness, Weight
from onnxshap.labels.fixups import Refilled
from onnxshap.shapes import Shaped

_NOT_WEIGHTS = frozenset({TensorProto.BOOL, TensorProto.STRING, TensorProto.INT32, TensorProto.UINT32})
_NOT_WEIGHTS |= {TensorProto.INT64, TensorProto.UINT64}
_HALF_BYTES = frozenset({TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1})


@dataclass(frozen=True)
class _Widths:
    """The axes that can be cut, axes that are alike once: how many of their positions stay."""

    classes: NDArray[np.int32]
    starts: NDArray[np.intp]

    def __call__(self, live: Liveness | None) -> FloatArray:
        """Return float64[n_axes + 1]; the last is 1, for blocks of fewer axes."""
        stays = np.ones(len(self.classes)) if live is None else live.classes[self.classes].astype(np.float64)
        return np.append(np.add.reduceat(stays, self.starts) if len(self.starts) else [], 1.0)


@dataclass(frozen=True)
class _Blocks:
    """Dense blocks whose sizes are products of live widths: float64[n] factors, int[n, k] places of the widths."""

    factors: FloatArray
    axes: NDArray[np.intp]

    def size(self, widths: FloatArray) -> int:
        return round(float(self.factors @ widths[self.axes].prod(axis=1)))


@dataclass(frozen=True)
class _Copies:
    """Copies of one initializer that may be cut differently: its shape, and the classes of every axis of each.

    Those `staying` have zeros in the place of what they lose.
    """

    shape: tuple[int, ...]
    axes: Sequence[Sequence[NDArray[np.int32] | None]]
    staying: Sequence[bool]

    def size(self, live: Liveness | None) -> int:
        """Return the numbers that are stored: those that are cut alike once."""
        if live is None:
            return math.prod(self.shape)
        stored = {}
        for axes, whole in zip(self.axes, self.staying, strict=True):
            stay = [
                np.ones(n, np.bool_) if one is None else live.classes[one]
                for n, one in zip(self.shape, axes, strict=True)
            ]
            count = math.prod(self.shape if whole else (int(flags.sum()) for flags in stay))
            stored[tuple(flags.tobytes() for flags in stay), count] = count
        return sum(stored.values())


@dataclass(frozen=True)
class Split:
    """A linear op that stands in a graph as two (`factors`), of which a cut may make one again.

    Attributes:
        columns: the first one's weight, from what is read to the rank; of a Conv it has the kernel's column.
        rows: the second one's, from the rank to the outputs; of a Conv it has the kernel's row.
        between: the tensor between them.
        how: how both weights lie, as that of the one does.
    """

    columns: str
    rows: str
    between: str
    how: Weight


@dataclass(frozen=True)
class _Counts:
    """Multiply-accumulates, parameters and bytes of a part of a model."""

    macs: _Blocks
    params: _Blocks
    bytes: _Blocks


@dataclass(frozen=True)
class _Either:
    """What an op costs as two, and as one."""

    two: _Counts
    one: _Counts

    def pays(self, widths: FloatArray) -> bool:
        """Return whether two take fewer multiply-accumulates than one."""
        return self.two.macs.size(widths) < self.one.macs.size(widths)

    def cheaper(self, widths: FloatArray) -> _Counts:
        """Return the costs of how it is written."""
        return self.two if self.pays(widths) else self.one


@dataclass(frozen=True)
class Cost:
    """What a plan costs; `None` = the whole model as its file has it.

    MACs are what rules state (`Axes.macs`): those of convolutions, products of matrices, recurrent ops and attention,
    on floats or codes, one input image; parameters are the elements of constants that are floats or codes of at most 16
    bits; bytes are those of all constants. A constant that several nodes read counts once, if all that they lose is the
    same. An op that is split counts as two, or as one where that takes no more. Of an If, all bodies that are traced
    count, each as if it were taken; the body of a Loop or Scan as often as it ran when the shapes were found. What
    nothing reads counts in the file that stores it, and in no plan, for no cut model does.
    """

    _widths: _Widths
    _macs: _Blocks
    _params: _Blocks
    _bytes: _Blocks
    _copies: Sequence[tuple[_Copies, int]]
    _splits: Sequence[_Either] = ()
    _unread: Sequence[TensorProto] = ()

    def macs(self, live: Liveness | None = None) -> int:
        """Return multiply-accumulates per image."""
        return self._macs_at(self._widths(live))

    def work(self, live: Liveness | None = None) -> int:
        """Return the multiply-accumulates per image as they take time: in full blocks (`blocks`)."""
        return self._work_at(self._widths(live))

    def params(self, live: Liveness | None = None) -> int:
        """Return the number of parameters."""
        return self._params_at(self._widths(live), live, self._numbers(live))

    def bytes(self, live: Liveness | None = None) -> int:
        """Return the bytes of all constants."""
        return self._bytes_at(self._widths(live), live, self._numbers(live))

    def shares(self, live: Liveness) -> dict[str, float]:
        """Return what stays as shares of the whole: macs, work, params and bytes."""
        whole, widths, numbers = self._whole, self._widths(live), self._numbers(live)
        return {
            "macs": self._macs_at(widths) / max(1, whole["macs"]),
            "work": self._work_at(widths) / max(1, whole["work"]),
            "params": self._params_at(widths, live, numbers) / max(1, whole["params"]),
            "bytes": self._bytes_at(widths, live, numbers) / max(1, whole["bytes"]),
        }

    @cached_property
    def _whole(self) -> dict[str, int]:
        """What the file takes."""
        return {"macs": self.macs(), "work": self.work(), "params": self.params(), "bytes": self.bytes()}

    @property
    def copies(self) -> bool:
        """Whether nodes share constants that a cut may make them copies of."""
        return any(kind not in _NOT_WEIGHTS for _, kind in self._copies)

    def _numbers(self, live: Liveness | None) -> list[int]:
        """Return how many numbers are stored of every constant that several nodes read."""
        return [some.size(live) for some, _ in self._copies]

    def _macs_at(self, widths: FloatArray) -> int:
        return self._macs.size(widths) + sum(one.cheaper(widths).macs.size(widths) for one in self._splits)

    def _work_at(self, widths: FloatArray) -> int:
        full = filled(widths)
        return self._macs.size(full) + sum(one.cheaper(widths).macs.size(full) for one in self._splits)

    def _params_at(self, widths: FloatArray, live: Liveness | None, numbers: Sequence[int]) -> int:
        split = sum(one.cheaper(widths).params.size(widths) for one in self._splits)
        shared = sum(count for count, (_, kind) in zip(numbers, self._copies, strict=True) if kind not in _NOT_WEIGHTS)
        unread = numbers_of(self._unread) if live is None else 0
        return self._params.size(widths) + split + shared + unread

    def _bytes_at(self, widths: FloatArray, live: Liveness | None, numbers: Sequence[int]) -> int:
        split = sum(one.cheaper(widths).bytes.size(widths) for one in self._splits)
        shared = sum(_itemsize(kind) * count for count, (_, kind) in zip(numbers, self._copies, strict=True))
        unread = sum(_itemsize(t.data_type) * math.prod(t.dims) for t in self._unread) if live is None else 0
        return self._bytes.size(widths) + split + round(shared) + round(unread)

    def pays(self, live: Liveness | None = None) -> list[bool]:
        """Return of every op that is split, in their order, whether it takes fewer multiply-accumulates as two."""
        widths = self._widths(live)
        return [one.pays(widths) for one in self._splits]


def cost_of(shaped: Shaped, labels: Labels, beside: Sequence[TensorProto] = (), splits: Sequence[Split] = ()) -> Cost:
    """Return the cost functions of a graph at the shapes it was traced at.

    Args:
        shaped, labels: the graph.
        beside: what else its file stores.
        splits: those of its ops that are two in it, and may be one again.
    """
    axes, times = _Axes(shaped, labels), _runs(shaped)
    halves = {index for one in splits for index in _nodes(shaped, one)}
    every = [(index, axes.block(keys)) for index, keys in labels.trace.macs]
    macs = [(times[index] * whole, at) for index, (whole, at) in every if index not in halves]
    unread = unread_weights(shaped)
    apart = {name for one in splits for name in (one.columns, one.rows)} | {t.name for t in unread}
    stored, shared = _stored(shaped, labels, axes, apart)
    stored += [(math.prod(t.dims), [], t.data_type) for t in beside]
    params = [(float(whole), at) for whole, at, kind in stored if kind not in _NOT_WEIGHTS]
    size = [(_itemsize(kind) * whole, at) for whole, at, kind in stored]
    ways = [_ways(shaped, labels, one) for one in splits]
    for tensors, run in (way for both in ways for way in both):  # all axes are met before blocks are made of them
        for keys in (*tensors, *run):
            axes.block(keys)

    def counts(node: int, tensors: Sequence[Sequence[AxisKey]], run: Sequence[Sequence[AxisKey]]) -> _Counts:
        took = [(times[node] * whole, at) for whole, at in map(axes.block, run)]
        held = [(float(whole), at) for whole, at in map(axes.block, tensors)]
        item = _itemsize(shaped.kinds.get(tensors[0][0][0], TensorProto.FLOAT))
        return _Counts(axes.blocks(took), axes.blocks(held), axes.blocks([(item * whole, at) for whole, at in held]))

    nodes = [_nodes(shaped, one)[0] for one in splits]
    eithers = [_Either(counts(k, *two), counts(k, *whole)) for k, (two, whole) in zip(nodes, ways, strict=True)]
    blocks = axes.blocks(macs), axes.blocks(params), axes.blocks(size)
    return Cost(axes.widths(), *blocks, shared, eithers, unread)


def unread_weights(shaped: Shaped) -> list[TensorProto]:
    """Return the initializers that nothing reads."""
    used = used_names(shaped.graph.model.graph)
    return [t for t in shaped.graph.model.graph.initializer if t.name not in used]


_Way = tuple[Sequence[Sequence[AxisKey]], Sequence[Sequence[AxisKey]]]
"""How an op may be written: the axes of its weights, and those of its products."""


def _nodes(shaped: Shaped, one: Split) -> tuple[int, int]:
    """Return the two ops of a split one."""
    return shaped.producers[one.between], shaped.readers[one.between][0]


def _ways(shaped: Shaped, labels: Labels, one: Split) -> tuple[_Way, _Way]:
    """Return a split op as two, and as one."""
    nodes = _nodes(shaped, one)
    weights = [[(name, a) for a in range(len(shaped.shapes[name]))] for name in (one.columns, one.rows)]
    made, how = shaped.graph.nodes[nodes[1]].output[0], one.how
    taps = [axis for axis in range(len(shaped.shapes[one.rows])) if axis not in (how.sums, how.makes)]
    kernel = [(name, axis) for name in (one.columns, one.rows) for axis in taps]
    whole: list[AxisKey] = [(one.rows, how.makes), (one.columns, how.sums), *kernel]
    places = [(made, axis) for axis in range(len(shaped.shapes[made])) if axis != how.out]
    run = [keys for index, keys in labels.trace.macs if index in nodes]
    return (weights, run), ([whole], [[*whole, *places]])


class _Axes:
    """The axes of blocks that can be cut, axes that are alike once, in the order in which they are met."""

    def __init__(self, shaped: Shaped, labels: Labels) -> None:
        self._shaped, self._labels = shaped, labels
        self._frozen = np.asarray((labels.slots < 0).all(axis=1))
        self._places: dict[bytes, int] = {}
        self._met: list[NDArray[np.int32]] = []

    def block(self, keys: Sequence[AxisKey]) -> tuple[int, list[int]]:
        """Return the size of the axes of a block that stay whole, and the places of the others."""
        at = [(self._place(tensor, axis), _size(self._shaped, self._labels, tensor, axis)) for tensor, axis in keys]
        return math.prod(size for k, size in at if k is None), [k for k, _ in at if k is not None]

    def _place(self, tensor: str, axis: int) -> int | None:
        """Return the place of an axis among those that can be cut, None where it cannot."""
        classes = self._labels.axis(tensor, axis)
        if classes is None or self._frozen[classes].all():
            return None
        if (key := classes.tobytes()) not in self._places:
            self._places[key] = len(self._met)
            self._met.append(classes)
        return self._places[key]

    def widths(self) -> _Widths:
        """Return how many positions of the axes stay, once all are met."""
        starts = np.cumsum([0, *map(len, self._met)])[:-1].astype(np.intp)
        return _Widths(np.concatenate([*self._met, np.empty(0, np.int32)]), starts)

    def blocks(self, rows: Sequence[tuple[float, list[int]]]) -> _Blocks:
        """Return blocks of factors and places, once all axes are met: behind the last one is what is missing."""
        axes = np.full((len(rows), max((len(at) for _, at in rows), default=0)), len(self._met), np.intp)
        for row, (_, at) in zip(axes, rows, strict=True):
            row[: len(at)] = at
        return _Blocks(np.array([factor for factor, _ in rows], np.float64), axes)


def _stored(
    shaped: Shaped, labels: Labels, axes: _Axes, apart: Collection[str]
) -> tuple[list[tuple[int, list[int], int]], list[tuple[_Copies, int]]]:
    """Return blocks and element types of what is stored once, and copies of initializers that may be cut differently.

    Copies that are cut alike are one again in the file. Those `apart` are left out.
    """
    copies: dict[object, dict[tuple[int, tuple[int, ...], bool], tuple[str, int]]] = {}
    staying = _staying(shaped, labels)
    for name, kind in _constants(shaped):
        if name in apart:
            continue
        whole, at = axes.block([(name, axis) for axis in range(len(shaped.shapes[name]))])
        found = copies.setdefault(shaped.graph.sources.get(name, name), {})
        found[whole, tuple(at), name in staying] = name, kind
    stored, shared = list[tuple[int, list[int], int]](), list[tuple[_Copies, int]]()
    for found in copies.values():
        if len(found) == 1:
            (((whole, places, stays), (name, kind)),) = found.items()
            stored.append((math.prod(shaped.shapes[name]), [], kind) if stays else (whole, list(places), kind))
        else:
            names = [name for name, _ in found.values()]
            classes = [[labels.axis(name, axis) for axis in range(len(shaped.shapes[name]))] for name in names]
            some = _Copies(shaped.shapes[names[0]], classes, [name in staying for name in names])
            shared.append((some, next(iter(found.values()))[1]))
    return stored, shared


def _staying(shaped: Shaped, labels: Labels) -> set[str]:
    """Return constants that a cut leaves as large as they are: ops that see an axis as a whole get zeros in them."""
    found = [(shaped.graph.nodes[f.node], f.parameters) for f in labels.trace.fixups if isinstance(f, Refilled)]
    return {node.input[k] for node, numbers in found for k in numbers}


def costly_units(shaped: Shaped, labels: Labels) -> BoolArray:
    """Return bool[n_units]: without which there are fewer multiply-accumulates or parameters."""
    counted = [(name, axis) for name, kind in _constants(shaped) if kind not in _NOT_WEIGHTS
               for axis in range(len(shaped.shapes[name]))]  # fmt: skip
    found = np.zeros(labels.n_units + 1, np.bool_)
    for tensor, axis in dict.fromkeys([*counted, *(key for _, axes in labels.trace.macs for key in axes)]):
        found[labels.units(tensor, axis)] = True  # no unit is the last
    return found[:-1]


def _constants(shaped: Shaped) -> list[tuple[str, int]]:
    """Return the names and element types of what is stored, and of the constants that are filled in."""
    generated = [n.output[0] for n in shaped.graph.nodes if n.op_type == "ConstantOfShape"]
    stored = [(t.name, t.data_type) for t in shaped.graph.model.graph.initializer]
    return stored + [(name, shaped.kinds.get(name, 1)) for name in generated if name in shaped.constants]


def node_macs(shaped: Shaped, labels: Labels) -> FloatArray:
    """Return the multiply-accumulates of every node of the whole model, one image: float64[nodes]."""
    found, times = np.zeros(len(shaped.graph.nodes)), _runs(shaped)
    for index, axes in labels.trace.macs:
        found[index] += times[index] * math.prod(_size(shaped, labels, tensor, axis) for tensor, axis in axes)
    return found


def _size(shaped: Shaped, labels: Labels, tensor: str, axis: int) -> int:
    """Return the length of an axis, of a tensor or of none (heads: `Axes.factor`)."""
    return shaped.shapes[tensor][axis] if tensor in shaped.shapes else len(labels.trace.axes[tensor, axis])


def _runs(shaped: Shaped) -> list[float]:
    """Return how often every node runs for an image: in the body of a loop many times, else a batch at a time."""
    return [shaped.times.get(node.output[0], 1) / shaped.batch for node in shaped.graph.nodes]


def parameters(model: ModelProto) -> int:
    """Return the numbers of a model's initializers that count as parameters, those of bodies among them."""
    return numbers_of(item for graph in graphs_of(model.graph) for item in graph.initializer)


def numbers_of(stored: Iterable[TensorProto]) -> int:
    """Return the numbers of some initializers that count as parameters."""
    return sum(math.prod(item.dims) for item in stored if item.data_type not in _NOT_WEIGHTS)


def _itemsize(kind: int) -> float:
    return 0.5 if kind in _HALF_BYTES else np.dtype(helper.tensor_dtype_to_np_dtype(kind)).itemsize
