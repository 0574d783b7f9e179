"""Applies the rules to a whole graph."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

import numpy as np
from onnx import NodeProto

from onnxshap.core import IntArray
from onnxshap.graph import array, attributes, is_op, op_of
from onnxshap.graph.lifting import entered, is_enter, is_loop, is_open
from onnxshap.graph.structure import outer_names, reads, subgraphs
from onnxshap.labels import Axes, Balance, Labels, Op, RuleError, Tensor, Trace, resolve
from onnxshap.labels.compare import unlike_units
from onnxshap.labels.fixups import Refilled
from onnxshap.rules.loops import trace_loop
from onnxshap.rules.registry import RULES
from onnxshap.rules.residue import add_residue
from onnxshap.rules.shuffles import MOVES, permutations, trace_permutation
from onnxshap.rules.zeros import Zeros
from onnxshap.shapes import Shaped
from onnxshap.shapes.folding import TABLE

_T = TypeVar("_T")
_FEW = 16
"""Elements up to which rules see the values of integers, and of floats (scales of a Resize)."""
_COMPUTED = "two computed tensors are summed over it, neither is zero there"
_SUMMED = "it is summed over, and it is not zero there"
_ELSEWHERE = "its units would be others at other sizes of the inputs"
_BLOCKED = "com.microsoft.nchwc."
"""Ops that onnxruntime's last optimizations write, whose weights are reordered in blocks."""
_NONE = np.empty(0, np.int64)
_NO_AXES, _NO_OPS = frozenset[int](), frozenset[str]()
_PARTS = ("Slice", "Split")
"""What takes parts of a weight: the gates of a recurrent layer, in torch's order, the projections of an attention."""


def trace_graph(shaped: Shaped) -> Labels:
    """Return the labels of every axis of a graph.

    Graph inputs, graph outputs, and whatever an op without a rule reads or writes stay as they are. So do units that
    are others at other sizes of the inputs (a Reshape that deals channels out to positions, as many as there are).
    """
    labels = _labels(shaped)
    if not shaped.elsewhere:
        return labels
    other = _labels(replace(shaped, shapes=shaped.elsewhere, elsewhere={}))
    wrong = unlike_units(labels, other, [t.name for t in shaped.graph.model.graph.initializer])
    return _labels(shaped, wrong) if len(wrong) else labels


def _labels(shaped: Shaped, stay: IntArray = _NONE) -> Labels:
    """Return the labels at the sizes that a graph was run at, some of the atoms frozen."""
    trace, ops = Trace(shaped.graph.names(), mixes_rows=shaped.apart or shaped.counted), _Ops(shaped)
    _trace_ends(trace, ops, shaped)
    _trace_nodes(trace, ops, shaped)
    trace.freeze(stay, _ELSEWHERE)
    labels = resolve(trace)
    if _tie_shared(trace, ops, shaped, labels):
        labels = resolve(trace)
    while _keep_what_leaks(trace, ops, shaped, labels):
        labels = resolve(trace)
    _keep_from_refits(trace, labels)
    return labels


def _keep_from_refits(trace: Trace, labels: Labels) -> None:
    """Take linear ops that go on seeing zeros from those that are refitted: the cut has no tensors for their rows."""
    refilled = {
        f.node for f in trace.fixups if isinstance(f, Refilled)
        if any((labels.units(f.source, axis) >= 0).any() for axis in f.axes)
    }  # fmt: skip
    trace.linear[:] = [site for site in trace.linear if site.node not in refilled]


def _trace_ends(trace: Trace, ops: _Ops, shaped: Shaped) -> None:
    """State that the inputs and the outputs of the model stay as they are."""
    graph = shaped.graph.model.graph
    for items, reason in ((graph.input, "it is a model input"), (graph.output, "it is a model output")):
        for item in items:
            if (tensor := ops.tensor(item.name)) is not None:
                trace.freeze_whole(tensor, reason)


def _trace_nodes(trace: Trace, ops: _Ops, shaped: Shaped) -> None:
    """State what every node does to its axes."""
    nodes = shaped.graph.model.graph.node
    chains = {chain.nodes[0]: chain for chain in permutations(shaped)}
    inside = {k for chain in chains.values() for k in chain.nodes}
    given = entered(nodes)
    for index, node in enumerate(nodes):
        if is_open(node, given):
            trace_loop(trace, ops.tensor, index, node)
        elif is_enter(node):
            pass  # what it stands for is told of the Loop
        elif index in chains:
            trace_permutation(trace, ops.tensor, chains[index])
        elif index not in inside:
            _trace_node(trace, ops, index, node)


def _keep_what_leaks(trace: Trace, ops: _Ops, shaped: Shaped, labels: Labels) -> bool:
    """Keep what constants that are zeroed would not express the cut of; return whether there was anything to keep.

    That are axes summed over without a weight, unless what is summed is zero there or a fixup can make up for it, and
    channels that groups of a Conv would lose at unequal places.
    """
    zeros = Zeros(shaped, labels)
    leaks = [(s, some) for s in trace.sites if s.weight is None and (some := zeros.leaks(s))]
    uneven = [b for b in trace.balances if labels.uneven(b) and not _removable(zeros, labels, b)]
    for site, some in leaks:
        op = ops.op(site.node, shaped.graph.nodes[site.node])
        if add_residue(trace, shaped, labels, zeros, site, op):
            continue
        atoms = labels.made_of(np.concatenate(some))
        trace.freeze(atoms, site.why or (_COMPUTED if len(op.inputs) > 1 else _SUMMED))
    for balance in uneven:
        trace.tie(*balance.equal_places)
    return bool(leaks or uneven)


def _tie_shared(trace: Trace, ops: _Ops, shaped: Shaped, labels: Labels) -> bool:
    """State that layers with one weight lose the same of it (heads on every level of a pyramid, towers, steps in time).

    Cut apart it would be stored once for each of them, and the file might grow. So it is where other positions stay for
    one layer than for another; what nothing makes (a state that starts as zeros) follows the others. Return whether
    there was anything to state.
    """
    frozen = np.zeros(len(labels.slots), np.bool_)
    frozen[list(labels.reasons)] = True
    frozen &= (labels.slots < 0).all(axis=1)
    first: dict[tuple[object, ...], Tensor] = {}
    before = len(trace.ties)
    for node in shaped.graph.nodes:  # each copy is read in part, and stays whole where it is not read
        own = ops.tensor(node.input[0]) if is_op(node, *_PARTS) and node.input[0] in shaped.graph.sources else None
        if own is not None and own.rank > 1:
            other = first.setdefault((shaped.graph.sources[own.name], own.shape, _PARTS), own)
            for axis in range(own.rank) if other.name != own.name else ():
                trace.tie(trace.axis(other, axis), trace.axis(own, axis))
    for index, k in dict.fromkeys(trace.weights):
        name = shaped.graph.nodes[index].input[k]
        while name in shaped.producers and is_op(mover := shaped.graph.nodes[shaped.producers[name]], *MOVES):
            name = mover.input[0]
        own = ops.tensor(name) if name in shaped.graph.sources else None
        classes = [] if own is None else [labels.axis(name, axis) for axis in range(own.rank)]
        if own is None or any(one is None for one in classes):
            continue
        stays = tuple(frozen[one].tobytes() for one in classes if one is not None)
        other = first.setdefault((shaped.graph.sources[name], own.shape, stays), own)
        for axis, one in enumerate(classes):
            if other.name != own.name and not frozen[one].all():
                trace.tie(trace.axis(other, axis), trace.axis(own, axis))
    return len(trace.ties) > before


def _removable(zeros: Zeros, labels: Labels, balance: Balance) -> bool:
    """Return whether the channels that groups of a Conv lose are zero there, if it has no slice of weights for them."""
    if balance.source is None:
        return True
    units = labels.slots[labels.classes[balance.blocks]]
    return zeros.gives_zero(balance.source, np.unique(units[units >= 0]))


class _Ops:
    """Makes the rules' view of nodes."""

    def __init__(self, shaped: Shaped) -> None:
        self._shaped = shaped
        self._initializers = shaped.graph.initializers
        self._told, self._free = _by_tensor(shaped.told), _by_tensor(shaped.varying)
        outputs = ((item.name, "output") for item in shaped.graph.model.graph.output)
        self._readers = _by_tensor(
            itertools.chain(((name, op_of(node)) for node in shaped.graph.nodes for name in reads(node)), outputs)
        )
        self._seen: dict[str, Tensor | None] = {}

    def tensor(self, name: str) -> Tensor | None:
        """Return a tensor, None where it has no shape (absent, or a sequence)."""
        if name not in self._seen:
            self._seen[name] = self._tensor(name)
        return self._seen[name]

    def _tensor(self, name: str) -> Tensor | None:
        shape = self._shaped.shapes.get(name)
        if not name or shape is None:
            return None
        value, size = None, math.prod(shape)
        if (stored := self._initializers.get(name)) is not None and size <= TABLE:
            small = stored.data_type in (stored.INT64, stored.INT32) or (
                stored.data_type == stored.FLOAT and size <= _FEW
            )
            value = array(stored) if small else None
        part = self._shaped.parts.get(name)
        return Tensor(
            name,
            shape,
            name in self._shaped.constants,
            value,
            stored is not None,
            None if part is None else part.values,
            self._told.get(name, _NO_AXES),
            self._free.get(name, _NO_AXES),
            self._shaped.kinds.get(name, 0),
            self._readers.get(name, _NO_OPS),
        )

    def whole(self, node: NodeProto) -> str | None:
        """Return why no cut goes through a node with bodies."""
        return self._shaped.whole.get(node.output[0])

    def op(self, index: int, node: NodeProto) -> Op:
        """Return a node as rules see it."""
        inputs, outputs = (tuple(self.tensor(n) for n in names) for names in (node.input, node.output))
        return Op(index, op_of(node), attributes(node), inputs, outputs, self._shaped.graph.opset)


def _by_tensor(pairs: Iterable[tuple[str, _T]]) -> dict[str, frozenset[_T]]:
    """Return what belongs to each tensor of some pairs; equal sets are one: there are few, of many tensors."""
    found, once = dict[str, frozenset[_T]](), dict[frozenset[_T], frozenset[_T]]()
    for name, item in pairs:
        more = found.get(name, frozenset()) | {item}
        found[name] = once.setdefault(more, more)
    return found


def _trace_node(trace: Trace, ops: _Ops, index: int, node: NodeProto) -> None:
    """State what a node does to its axes: what its rule says, and that what this leaves out stays whole."""
    op, why = ops.op(index, node), ops.whole(node)
    axes = Axes(trace, op)
    shaped = all(tensor is not None for name, tensor in _operands(op, node) if name)
    rule = RULES.get(op.type) if shaped and not any(subgraphs(node)) else None
    reason, mark = _reason(op, why, applied=rule is not None), trace.mark()
    if rule is not None:
        try:
            rule(op, axes)
        except RuleError as refusal:
            reason, rule = str(refusal), None
            axes.mentioned.clear()
            trace.forget(mark)
    if rule is None:
        _note_made(op, axes)
    for tensor in (t for _, t in _operands(op, node) if t is not None):
        for axis in range(tensor.rank):
            if (tensor.name, axis) not in axes.mentioned:
                trace.freeze(trace.axis(tensor, axis), reason)
                if rule is not None and tensor is op.input(0) and not tensor.constant:
                    trace.crossed.append((tensor.name, axis))
    for graph in subgraphs(node):
        for tensor in (t for name in outer_names(graph) if (t := ops.tensor(name)) is not None):
            part = "the body" if is_loop(node) else "a branch"
            trace.freeze_whole(tensor, f"{part} of {op.type} reads it" + ("" if why is None else f": {why}"))


def _operands(op: Op, node: NodeProto) -> list[tuple[str, Tensor | None]]:
    """Return the inputs and the outputs of a node by name, "" where one is left out."""
    return list(zip((*node.input, *node.output), (*op.inputs, *op.outputs), strict=True))


def _reason(op: Op, why: str | None, *, applied: bool) -> str:
    """Return why the axes of an op stay that no rule speaks of.

    Args:
        op: the op.
        why: why no cut goes through its bodies, if it has some.
        applied: whether its rule is.
    """
    if why is not None:
        return f"{op.type} gives it: {why}"
    if op.type in RULES and not applied:
        return f"{op.type} reads or gives what has no fixed shape"
    if op.type.startswith(_BLOCKED):
        return f"{op.type} is laid out for one kind of processor: save the model with ORT_ENABLE_EXTENDED at most"
    return f"{op.type} keeps this axis as a whole" if applied else f"{op.type} has no rule"


def _note_made(op: Op, axes: Axes) -> None:
    """State which axes an unknown op seems to make, by the sizes of its weights: the report says why they stay."""
    sizes = {size for t in op.inputs if t is not None and t.constant and t.rank > 1 for size in t.shape if size > 1}
    y = op.outputs[0] if op.outputs else None
    for axis in range(1, y.rank) if y is not None and not y.constant else ():
        if y is not None and y.shape[axis] in sizes:
            axes.make(axis)
