"""Which ops give zero for zero: whether a tensor vanishes where a removed unit's weights are gone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxshap.graph import array, attributes, op_of
from onnxshap.labels import Labels, Site
from onnxshap.labels.equations import terms_of
from onnxshap.shapes import Shaped

ALL = frozenset(("Add", "Max", "Min", "SkipSimplifiedLayerNormalization", "Sub", "Sum"))
"""Zero where all of their inputs are; one that is stretched over the units is not."""
PRODUCTS = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm"), ((0, 1), (2,))),
    **dict.fromkeys(("ConvInteger", "Einsum", "FusedMatMul", "MatMul", "MatMulInteger", "Mul"), ((0, 1), ())),
    **dict.fromkeys(("RMSNormalization", "SimplifiedLayerNormalization"), ((0, 1), ())),
    **dict.fromkeys(("GroupNormalization", "InstanceNormalization", "LayerNormalization"), ((1,), (2,))),
    "DeformConv": ((0, 1), (3,)),
    "SkipLayerNormalization": ((2,), (3,)),
    "Attention": ((2,), ()),  # a sum of values: queries and keys are shares alone
    "com.microsoft.Attention": ((1,), (2,)),
    "GroupQueryAttention": ((2,), (4,)),
    "MultiHeadAttention": ((2,), (3,)),
    "MatMulIntegerToFloat": ((0, 1), (6,)),
    "DynamicQuantizeMatMul": ((0, 1), (4,)),
    **dict.fromkeys(("QLinearMatMul", "QLinearMul"), ((0, 3), ())),
    "QLinearConv": ((0, 3), (8,)),
    "QGemm": ((0, 3), (6,)),
    "MatMulNBits": ((0, 2), (5,)),  # a code of zero is none, a scale is
    "GatherBlockQuantized": ((2,), ()),
    "QLinearAdd": ((), (0, 3)),
    **dict.fromkeys(("BiasGelu", "FastGelu"), ((), (0, 1))),
    **dict.fromkeys(("ScatterElements", "ScatterND"), ((), (0, 2))),
    "Where": ((), (1, 2)),
}
"""Zero where one of their factors (inputs) is, if they have such, and all of their addends (inputs).

Ops of other domains stand by their type alone, but where an op of ONNX has that name.
"""
JOINED = {"Concat": (0, None), "QLinearConcat": (2, None, 3)}
"""Op -> where those of its inputs stand that are laid side by side: zero where all are that hold the units."""
RECURRENT = {"GRU": (2, 1), "LSTM": (3, 1, 2), "RNN": (1, 0)}
"""Op -> how many functions it has a direction, and which of them the states go through: these have to be zero at zero,
then states stay zero where weights of gates, biases and the first states are."""
_THROUGH_ZERO = frozenset(("elu", "leakyrelu", "relu", "scaledtanh", "softsign", "tanh", "thresholdedrelu"))
FIRST: frozenset[str] = frozenset([
    *("Abs", "Asin", "Atan", "AveragePool", "Cast", "CastLike", "Ceil", "Celu", "Col2Im", "CumSum"),
    *("DFT", "DepthToSpace", "DequantizeLinear", "Div", "Dropout", "DynamicQuantizeLinear", "Elu", "Erf"),
    *("Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Gelu", "GlobalAveragePool", "GlobalLpPool"),
    *("GlobalMaxPool", "GridSample", "HardSwish", "Identity", "LRN", "LeakyRelu", "LpNormalization", "LpPool"),
    *("MaxPool", "MaxUnpool", "Mish", "Neg", "PRelu", "QLinearAveragePool", "QLinearGlobalAveragePool"),
    *("QLinearLeakyRelu", "QuantizeLinear", "QuickGelu", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean"),
    *("ReduceMin", "ReduceSum"),
    *("Relu", "Reshape", "Resize", "ReverseSequence", "RoiAlign", "Round", "Selu", "Sign", "Sin", "Sinh"),
    *("Slice", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Swish", "Tan", "Tanh"),
    *("Transpose", "Trilu", "Unsqueeze", "Upsample"),
])  # fmt: skip
"""Zero where their first input is; of codes, the zero point is zero."""
UNLESS: Mapping[str, Callable[[Shaped, NodeProto], bool]] = {
    "Clip": lambda shaped, node: not _clips_around_zero(shaped, node),
    "Pad": lambda shaped, node: not _pads_with_zeros(shaped, node),
    "Pow": lambda shaped, node: not is_positive(shaped, node.input[1]),
    "Shrink": lambda shaped, node: attributes(node).get("lambd", 0.5) < 0,
}
"""Zero where their first input is, unless a parameter makes something else of it."""
_STRETCHES = frozenset(("Expand", "Tile"))
"""Zero where their first input is, unless it is stretched over an axis of the units from other positions of theirs."""
_COPIES = frozenset(("Cast", "Expand", "Identity", "Tile"))
"""Nothing but zeros where their first input is nothing else, however many."""


class Zeros:
    """Whether tensors vanish where units are removed, found out once for every set of units.

    Args:
        shaped, labels: the graph and its relations.
        without: constant -> units whose slices of it are not zero.
        apart: constants whose slices are zero, whatever they are computed of.
    """

    def __init__(
        self,
        shaped: Shaped,
        labels: Labels,
        without: Mapping[str, Collection[int]] | None = None,
        apart: Collection[str] = (),
    ) -> None:
        self.shaped = shaped
        self._labels, self._nonzero, self._apart = labels, without or {}, apart
        self._units: dict[range, frozenset[int]] = {}
        self._known: dict[frozenset[int], dict[str, bool]] = {}
        self._stored, self._finite = shaped.graph.initializers, dict[str, bool]()

    def gives_zero(self, name: str, units: NDArray[np.intp]) -> bool:
        """Return whether a tensor is zero at every position that depends on a unit, once that unit's slices are zero.

        False where that is not known.
        """
        return self.without(frozenset(units.tolist())).gives_zero(name)

    def without(self, units: frozenset[int]) -> _Verdicts:
        """Return the verdicts on tensors once the slices of some units are zero."""
        return _Verdicts(self, units, self._known.setdefault(units, {}))

    def leaks(self, site: Site) -> list[NDArray[np.intp]]:
        """Return the units of a site's axis at which none of the tensors that meet there is zero once they are removed.

        There is no weight at the site to be cut: the sum loses exactly the removed positions only if what makes them
        up, without its removed slices, gives zeros. Of a merged axis each factor is one item.
        """
        units = self._labels.units(site.tensor, site.axis)
        inputs = self.shaped.graph.nodes[site.node].input
        others = inputs if site.meets is None else [inputs[site.meets]]
        factors = (site.tensor,) if site.why else dict.fromkeys((site.tensor, *others))
        kinds = [np.unique(column[column >= 0]) for column in units.T]
        return [some for some in kinds if len(some) and not any(self.gives_zero(n, some) for n in factors if n)]

    def holds(self, name: str, units: NDArray[np.intp]) -> bool:
        """Return whether a tensor has positions of some of the units."""
        return not self.held(name).isdisjoint(units.tolist())

    def holds_on(self, name: str, units: NDArray[np.intp], axis: int) -> bool:
        """Return whether a tensor has positions of some of the units on this axis alone."""
        wanted, found = frozenset(units.tolist()), self.by_axis(name)
        return [k for k, some in enumerate(found) if wanted & some] == [axis]

    def held(self, name: str) -> frozenset[int]:
        """Return the units that have positions on a tensor's axes."""
        some = [units for units in self.by_axis(name) if units]
        return some[0] if len(some) == 1 else frozenset().union(*some)

    def by_axis(self, name: str) -> list[frozenset[int]]:
        """Return the units that have positions on each of a tensor's axes."""
        axes = [a for a in range(len(self.shaped.shapes.get(name, ()))) if (name, a) not in self._labels.blockwise]
        return [self._on_axis(name, axis) for axis in axes]

    def reaches_others(self, node: NodeProto, units: frozenset[int]) -> bool:
        """Return whether the taps of a Conv, at a position of a unit that lies on an axis of space, reach others."""
        x, taps = node.input[0], self.shaped.shapes[node.input[1]][2:]
        return any(size > 1 and not units.isdisjoint(self._on_axis(x, axis)) for axis, size in enumerate(taps, 2))

    def _on_axis(self, name: str, axis: int) -> frozenset[int]:
        """Return the units that have positions on an axis; most axes are those of other tensors, too."""
        atoms = self._labels.trace.axes.get((name, axis), range(0))
        if atoms not in self._units:
            units = self._labels.units(name, axis)
            self._units[atoms] = frozenset(units[units >= 0].tolist())
        return self._units[atoms]

    def is_finite(self, name: str) -> bool:
        """Return whether a tensor is computed, or has no entry that is infinite or no number."""
        if name not in self._finite:
            values = array(self._stored[name]) if name in self._stored else np.zeros(())
            self._finite[name] = values.dtype.kind != "f" or bool(np.isfinite(values).all())
        return self._finite[name]

    def is_given(self, name: str) -> bool:
        """Return whether nothing has to be known of other tensors for the verdict on this one."""
        return name not in self.shaped.producers or name in self._apart

    def of_given(self, name: str, units: frozenset[int]) -> bool:
        """Return whether such a tensor is zero once the slices of some units are."""
        stored = name in self.shaped.constants and units.isdisjoint(self._nonzero.get(name, ()))
        return stored and (units <= self.held(name) or _is_zero(self.shaped, name))


class _Verdicts:
    """Whether tensors are zero at every position that depends on a unit, once the slices of some units are zero."""

    def __init__(self, zeros: Zeros, units: frozenset[int], known: dict[str, bool]) -> None:
        """Take what tells, the units, and the verdicts so far, to be added to."""
        self._zeros, self._shaped, self._units, self._known = zeros, zeros.shaped, units, known

    def gives_zero(self, name: str) -> bool:
        """Return the verdict on a tensor, those on its inputs first."""
        pending = [name]
        while pending:
            current = pending[-1]
            verdict = self._known[current] if current in self._known else self._verdict(current)
            if verdict is None:
                pending.append(next(i for i in self._maker(current).input if i and self._so_far(i) is None))
            else:
                self._known[current] = verdict
                pending.pop()
        return self._known[name]

    def _maker(self, name: str) -> NodeProto:
        return self._shaped.graph.nodes[self._shaped.producers[name]]

    def _so_far(self, name: str) -> bool | None:
        """Return the verdict on a tensor, None where there is none so far."""
        return self._zeros.of_given(name, self._units) if self._zeros.is_given(name) else self._known.get(name)

    def _verdict(self, name: str) -> bool | None:
        """Return the verdict on a tensor, None where that hangs on an input without one."""
        if self._zeros.is_given(name):
            return self._so_far(name)
        if _is_nothing(self._shaped, name):
            return True
        node = self._maker(name)
        kind = node.op_type
        if kind in _STRETCHES:
            return self._addend(node.input[0], name)
        if kind in FIRST:
            return self._product(name, [node.input[0]], [i for i in node.input[1:] if i])
        if kind in UNLESS:
            return False if UNLESS[kind](self._shaped, node) else self._so_far(node.input[0])
        if kind in JOINED:
            return self._joined(node.input[slice(*JOINED[kind])])
        if kind in ALL:
            return _all(self._addend(i, name) for i in node.input if i)
        if kind == "BatchNormalization":
            x, scale, shift, mean = map(self._so_far, node.input[:4])  # (x - mean) scale + shift
            return _all((shift, _any((scale, _all((mean, x))))))
        if kind in RECURRENT:
            return self._recurrent(node)
        if kind == "Conv" and self._zeros.reaches_others(node, self._units):
            return False
        return self._sum_of_products(name, node) if kind in PRODUCTS else False

    def _joined(self, inputs: Iterable[str]) -> bool | None:
        """Return the verdict on what is laid side by side: each part tells of the units that it holds."""
        parts = {i: self._units & self._zeros.held(i) for i in inputs}
        found = [
            self._so_far(i) if part == self._units else self._zeros.without(part).gives_zero(i)
            for i, part in parts.items()
            if part
        ]
        return bool(found) and _all(found)

    def _recurrent(self, node: NodeProto) -> bool | None:
        """Return the verdict on what a recurrent layer gives: its weights, biases and first states have to be zero."""
        count, *through = RECURRENT[node.op_type]
        functions = [name.lower() for name in attributes(node).get("activations", ())]
        states = [name for place, name in enumerate(functions) if place % count in through]
        rows = all(self._units <= self._zeros.by_axis(i)[1] for i in node.input[1:4] if i)
        if not rows or not _THROUGH_ZERO.issuperset(states):
            return False
        starts = [_is_nothing(self._shaped, i) or self._so_far(i) for i in node.input[5:7] if i]
        return _all([*(self._so_far(i) for i in node.input[1:4] if i), *starts])

    def _sum_of_products(self, name: str, node: NodeProto) -> bool | None:
        """Return the verdict on what an op of `PRODUCTS` gives."""
        places, others = PRODUCTS.get(op_of(node)) or PRODUCTS[node.op_type]
        factors, added = ([node.input[k] for k in some if k < len(node.input)] for some in (places, others))
        addends = [self._addend(i, name) for i in added if i]
        if not places:
            return _all(addends)
        rest = [i for k, i in enumerate(node.input) if i and k not in (*places, *others)]
        return _all((*addends, self._product(name, [i for i in factors if i], rest)))

    def _addend(self, source: str, name: str) -> bool | None:
        """Return whether what an input adds to a tensor is zero, and not stretched from other positions.

        A mask of minus infinity, times 0, is no zero.
        """
        verdict = self._so_far(source)
        if verdict and not self._zeros.is_finite(source):
            return False
        return verdict and (self._spans(source, name) or _is_nothing(self._shaped, source))

    def _product(self, name: str, factors: Sequence[str], others: Sequence[str]) -> bool | None:
        """Return whether a tensor is zero that is a sum of products, or vanishes where a factor of it does.

        Args:
            name: the tensor.
            factors: inputs that it vanishes with.
            others: inputs that it does not vanish with.
        """
        verdicts = {i: self._so_far(i) for i in factors}
        there = [i for i in factors if verdicts[i]]
        rest = [i for i in (*factors, *others) if i not in there and not self._units.isdisjoint(self._zeros.held(i))]
        if there and not rest:
            return True
        if not _sums_alone(self._maker(name)) and any(all(self._covers(i, o, name) for o in rest) for i in there):
            return True
        return None if None in verdicts.values() else False

    def _covers(self, zero: str, other: str, name: str) -> bool:
        """Return whether all positions of a product that depend on a unit have zeros of one factor in them.

        Of the axes that hold a unit, s of both factors are summed over against each other, m of both meet in one of the
        product's, and f of this one, g of the other alone become the product's. This one has f + m + s, the other
        g + m + s, the product f + g + m: the last two less the first are 2 g + m, and g is 0 where that is at most 1.
        """
        mine, theirs, made = (self._axes_of(i) for i in (zero, other, name))
        return all(theirs[u] + made[u] - mine[u] <= 1 for u in made)

    def _spans(self, source: str, name: str) -> bool:
        """Return whether an addend has an axis for every one of the sum's that has a unit; else it is stretched."""
        mine, made = self._axes_of(source), self._axes_of(name)
        return all(mine[u] >= made[u] for u in made)

    def _axes_of(self, name: str) -> Counter[int]:
        """Return on how many axes of a tensor each unit has positions."""
        return Counter(u for some in self._zeros.by_axis(name) for u in self._units & some)


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    found = set(verdicts)
    return False if False in found else None if None in found else True


def _any(verdicts: Iterable[bool | None]) -> bool | None:
    found = set(verdicts)
    return True if True in found else None if None in found else False


def _sums_alone(node: NodeProto) -> bool:
    """Return whether an Einsum sums over an axis of one input, against no other's."""
    if node.op_type != "Einsum":
        return False
    terms, out = terms_of(attributes(node))
    counts = Counter(letter for term in terms for letter in set(term))
    return any(count == 1 and letter not in (out or "") for letter, count in counts.items() if letter.isalpha())


def _is_nothing(shaped: Shaped, name: str) -> bool:
    """Return whether a tensor is zeros as far as it goes, filled in as the model runs."""
    while (node := _maker(shaped, name)) is not None and node.op_type in _COPIES:
        name = node.input[0]
    if node is None:
        stored = shaped.graph.initializers.get(name)
        return stored is not None and math.prod(stored.dims) == 1 and not array(stored).any()
    fill = attributes(node).get("value")
    return node.op_type == "ConstantOfShape" and (fill is None or not array(fill).any())


def _is_zero(shaped: Shaped, name: str) -> bool:
    """Return whether a stored tensor is the number zero, wherever it is stretched to; codes are zero elsewhere."""
    stored = shaped.graph.initializers.get(name)
    return stored is not None and math.prod(stored.dims) == 1 and array(stored).dtype.kind == "f" and not array(stored)


def _maker(shaped: Shaped, name: str) -> NodeProto | None:
    return shaped.graph.nodes[shaped.producers[name]] if name in shaped.producers else None


def is_positive(shaped: Shaped, name: str) -> bool:
    """Return whether a tensor is stored and has no entry below or equal to zero."""
    stored = shaped.graph.initializers.get(name)
    return stored is not None and bool((array(stored) > 0).all())


def _pads_with_zeros(shaped: Shaped, node: NodeProto) -> bool:
    given = attributes(node)
    stored = shaped.graph.initializers.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if len(node.input) > 2 and node.input[2] and stored is None:
        return False
    value = given.get("value", 0.0) if stored is None else array(stored)
    return given.get("mode", "constant") != "constant" or not np.any(value)


def _clips_around_zero(shaped: Shaped, node: NodeProto) -> bool:
    given, stored = attributes(node), shaped.graph.initializers
    if any(i and i not in stored for i in node.input[1:]):
        return False
    low, high = (
        array(stored[node.input[k]]) if len(node.input) > k and node.input[k] else given.get(name, 0.0)
        for k, name in ((1, "min"), (2, "max"))
    )
    return bool(np.all(np.less_equal(low, 0)) and np.all(np.greater_equal(high, 0)))
