"""Applies the rules to a whole graph."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from onnx import NodeProto

from onnxshap.core import IntArray
from onnxshap.graph import array, attributes, is_op, op_of
from onnxshap.graph.lifting import entered, is_enter, is_loop, is_open
from onnxshap.graph.structure import outer_names, reads, subgraphs
from onnxshap.labels import Axes, Balance, Labels, Op, RuleError, Tensor, Trace, resolve
from onnxshap.labels.compare import unlike_units
from onnxshap.labels.fixups import Selection
from onnxshap.rules.loops import trace_loop
from onnxshap.rules.reduce import SUMS, reduced_axes
from onnxshap.rules.registry import RULES
from onnxshap.rules.residue import add_residue
from onnxshap.rules.zeros import Zeros
from onnxshap.shapes import Shaped
from onnxshap.shapes.folding import TABLE, Shape

_FEW = 16
"""Elements up to which rules see the values of integers, and of floats (scales of a Resize)."""
_COMPUTED = "two computed tensors are summed over it, neither is zero there"
_SUMMED = "it is summed over, and it is not zero there"
_ELSEWHERE = "its units would be others at other sizes of the inputs"
_BLOCKED = "com.microsoft.nchwc."
"""Ops that onnxruntime's last optimizations write, whose weights are reordered in blocks."""
_NONE = np.empty(0, np.int64)
_PARTS = ("Slice", "Split")
"""What takes parts of a weight: the gates of a recurrent layer, in torch's order, the projections of an attention."""
_MOVES = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity")


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
    graph = shaped.graph.model.graph
    for names, reason in (
        ([i.name for i in graph.input], "model input"),
        ([o.name for o in graph.output], "model output"),
    ):
        for name in names:
            if (tensor := ops.tensor(name)) is not None:
                trace.freeze_whole(tensor, f"it is a {reason}")
    chains = {chain.nodes[0]: chain for chain in _permutations(shaped)}
    inside = {k for chain in chains.values() for k in chain.nodes}
    given = entered(graph.node)
    for index, node in enumerate(graph.node):
        if is_open(node, given):
            trace_loop(trace, ops.tensor, index, node)
        elif is_enter(node):
            pass  # what it stands for is told of the Loop
        elif index in chains:
            _trace_permutation(trace, ops, chains[index])
        elif index not in inside:
            _trace_node(trace, ops, index, node)
    trace.freeze(stay, _ELSEWHERE)
    labels = resolve(trace)
    if _tie_shared(trace, ops, shaped, labels):
        labels = resolve(trace)
    while True:
        zeros = Zeros(shaped, labels)
        leaks = [s for s in trace.sites if s.weight is None and not zeros.vanishes(s)]
        uneven = [b for b in trace.balances if labels.uneven(b) and not _removable(zeros, labels, b)]
        if not leaks and not uneven:
            return labels
        # zeroing the constants would not express the cut: stay on the safe side
        for site in leaks:
            op = ops.op(site.node, shaped.graph.nodes[site.node])
            if op.type in SUMS and add_residue(trace, shaped, labels, zeros, site, tuple(sorted(reduced_axes(op)))):
                continue
            atoms = trace.axes[site.tensor, site.axis]
            trace.freeze(np.arange(atoms.start, atoms.stop), site.why or (_COMPUTED if len(op.inputs) > 1 else _SUMMED))
        for balance in uneven:
            trace.tie(*balance.equal_places)
        labels = resolve(trace)


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
        while name in shaped.producers and is_op(mover := shaped.graph.nodes[shaped.producers[name]], *_MOVES):
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
        self._told = {name for name, _ in shaped.told}
        self._free = {name for name, _ in shaped.varying}
        self._readers = defaultdict[str, set[str]](set)
        for node in shaped.graph.nodes:
            for name in reads(node):
                self._readers[name].add(op_of(node))
        for item in shaped.graph.model.graph.output:
            self._readers[item.name].add("output")
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
        told, free = (
            frozenset(axis for axis in range(len(shape)) if name in names and (name, axis) in known)
            for names, known in ((self._told, self._shaped.told), (self._free, self._shaped.varying))
        )
        return Tensor(
            name,
            shape,
            name in self._shaped.constants,
            value,
            stored is not None,
            None if part is None else part.values,
            told,
            free,
            self._shaped.kinds.get(name, 0),
            frozenset(self._readers.get(name, ())),
        )

    def whole(self, node: NodeProto) -> str | None:
        """Return why no cut goes through a node with bodies."""
        return self._shaped.whole.get(node.output[0])

    def op(self, index: int, node: NodeProto) -> Op:
        """Return a node as rules see it."""
        inputs, outputs = (tuple(self.tensor(n) for n in names) for names in (node.input, node.output))
        return Op(index, op_of(node), attributes(node), inputs, outputs, self._shaped.graph.opset)


def _trace_node(trace: Trace, ops: _Ops, index: int, node: NodeProto) -> None:
    op = ops.op(index, node)
    axes = Axes(trace, op)
    tensors = [t for t in (*op.inputs, *op.outputs) if t is not None]
    unshaped = any(n and t is None for names, ts in ((node.input, op.inputs), (node.output, op.outputs))
                   for n, t in zip(names, ts, strict=True))  # fmt: skip
    known = RULES.get(op.type) if not unshaped and not any(subgraphs(node)) else None
    reason = f"{op.type} has no rule" if known is None else f"{op.type} keeps this axis as a whole"
    if op.type.startswith(_BLOCKED):
        reason = f"{op.type} is laid out for one kind of processor: save the model with ORT_ENABLE_EXTENDED at most"
    if known is None and op.type in RULES:
        reason = f"{op.type} reads or gives what has no fixed shape"
    if (why := ops.whole(node)) is not None:
        reason = f"{op.type} gives it: {why}"
    mark, related = trace.mark(), known is not None
    if known is not None:
        try:
            known(op, axes)
        except RuleError as refusal:
            reason, related = str(refusal), False
            axes.mentioned.clear()
            trace.forget(mark)
    if not related:
        _note_made(op, axes)
    for tensor in tensors:
        for axis in range(tensor.rank):
            if (tensor.name, axis) not in axes.mentioned:
                trace.freeze(trace.axis(tensor, axis), reason)
                if related and tensor is op.input(0) and not tensor.constant:
                    trace.crossed.append((tensor.name, axis))
    for graph in subgraphs(node):
        for tensor in (t for name in outer_names(graph) if (t := ops.tensor(name)) is not None):
            part = "the body" if is_loop(node) else "a branch"
            trace.freeze_whole(tensor, f"{part} of {op.type} reads it" + ("" if why is None else f": {why}"))


def _note_made(op: Op, axes: Axes) -> None:
    """State which axes an unknown op seems to make, by the sizes of its weights: the report says why they stay."""
    sizes = {size for t in op.inputs if t is not None and t.constant and t.rank > 1 for size in t.shape if size > 1}
    y = op.outputs[0] if op.outputs else None
    for axis in range(1, y.rank) if y is not None and not y.constant else ():
        if y is not None and y.shape[axis] in sizes:
            axes.make(axis)


# --- chains of movements that permute one axis (channel shuffle) -----------------------------------------------------


def _permutations(shaped: Shaped) -> Iterator[Selection]:
    """Yield chains Reshape - Transpose - ... - Reshape that permute the positions of one axis and nothing else.

    Taken one by one, the two Reshapes would split the axis into factors and tie whole groups of channels; taken
    together they are a Gather, which any cut can follow.
    """
    graph = shaped.graph.model.graph
    readers = Counter(name for node in graph.node for name in reads(node))
    readers.update(o.name for o in graph.output)
    following = {name: k for k, node in enumerate(graph.node) for name in node.input[:1]}
    taken: set[int] = set()
    for start, node in enumerate(graph.node):
        if start in taken or not is_op(node, "Reshape"):
            continue
        chain = [start]
        while (found := _permutation(shaped, chain)) is None:
            last = graph.node[chain[-1]].output[0]
            after = following.get(last)
            if after is None or readers[last] != 1 or not is_op(graph.node[after], *_MOVES) or len(chain) > 8:
                break
            chain.append(after)
        if found is not None:
            taken.update(chain)
            yield found


def _permutation(shaped: Shaped, chain: Sequence[int]) -> Selection | None:
    nodes = [shaped.graph.model.graph.node[k] for k in chain]
    names = [nodes[0].input[0], *(n.output[0] for n in nodes)]
    shapes: list[Shape | None] = [shaped.shapes.get(n) for n in names]
    if len(chain) < 2 or None in shapes or shapes[0] != shapes[-1] or not shapes[0] or 0 in shapes[0]:
        return None
    before = np.arange(np.prod(shapes[0]), dtype=np.int64).reshape(shapes[0])
    after = before
    for node, shape in zip(nodes, shapes[1:], strict=True):
        if is_op(node, "Transpose"):
            after = after.transpose(attributes(node).get("perm"))
        else:
            after = after.reshape(shape or ())
    for axis in reversed(range(before.ndim)):
        if (names[0], axis) in shaped.varying:
            continue  # a constant index would fix its size
        first = tuple(slice(None) if a == axis else 0 for a in range(before.ndim))
        step = int(np.prod(before.shape[axis + 1 :]))
        index = after[first] // step
        if index.max() < before.shape[axis] and np.array_equal(before.take(index, axis), after):
            others = tuple(a for a in range(before.ndim) if a != axis)
            return Selection(tuple(chain), names[0], names[-1], axis, index, others)
    return None


def _trace_permutation(trace: Trace, ops: _Ops, chain: Selection) -> None:
    source, target = ops.tensor(chain.source), ops.tensor(chain.target)
    assert source is not None
    assert target is not None
    for axis in chain.others:
        trace.tie(trace.axis(source, axis), trace.axis(target, axis))
    trace.tie(trace.axis(source, chain.axis)[chain.index], trace.axis(target, chain.axis))
    trace.fixups.append(chain)
