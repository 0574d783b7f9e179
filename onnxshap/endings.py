"""What is scored of a model that ends in choices: the real numbers that it chooses by.

The class of every pixel (ArgMax), the best boxes (TopK, NonMaxSuppression) or a yes or no are integers, or real numbers
that integers pick out: they say nothing of how near a removed unit comes to another choice, a tie puts others in their
place, and there may be more or fewer of them. So while a model is scored, cut and repaired, its last nodes are off: it
ends where they choose. They are put back, word for word, before a file is written; but sizes that they read off what
is cut, and that are always the same, are numbers there.

So are, beside choices or alone, outputs that are sequences or maps of numbers (scikit-learn's probabilities by class).
So are outputs that are constants (anchors, tables): no image has a part of them, and nothing changes them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from onnxshap.core import Array
from onnxshap.cost import node_macs
from onnxshap.graph import attributes, is_op
from onnxshap.graph.structure import between, graphs_of, reads, subgraphs
from onnxshap.graph.tails import Tail, put_back, take_off
from onnxshap.payoffs.checked import class_axis
from onnxshap.shapes import input_specs, placed
from onnxshap.tracing import Traced

REALS = frozenset((TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16))
"""Element types of real numbers."""
CHOICES = frozenset((TensorProto.BOOL, TensorProto.INT32, TensorProto.INT64))
"""Those of truths and of numbers of things; codes of fewer bits are rounded activations."""
OF_SIZES = ("EyeLike", "Shape", "Size")
"""Ops that give integers whatever the numbers are."""
_LIGHT = 0.01
"""Of a model's multiply-accumulates: what a node of a tail may have at most."""


def jumps(node: NodeProto, kinds: Mapping[str, int | None]) -> bool:
    """Return whether a node makes numbers of things or truths out of real numbers."""
    if is_op(node, *OF_SIZES) or not any(kinds.get(o) in CHOICES for o in node.output if o):
        return False
    return any(kinds.get(name) in REALS for name in node.input)


def ended(traced: Traced) -> tuple[ModelProto, Tail] | None:
    """Return a model without the choices that it ends in, and these; None where it does not, or not in these alone.

    Outputs that are constants go with them, or alone where others stay. It ends in choices where no other output is a
    real number, or some are picked out by integers that are made of real numbers; nothing behind them is learned.
    Outputs that are no tensors are like choices: no payoff reads them. The head ends in the nearest real tensors
    before them with an axis for the images.
    """
    nodes, kinds, outputs = _Nodes.of(traced), traced.shaped.kinds, traced.outputs
    still = _constant(traced)
    wrapped = _no_tensors(traced.source)
    last = nodes.last([jumps(node, kinds) or not wrapped.isdisjoint(node.output) for node in nodes.all])
    ends = [name for name in outputs if nodes.producers.get(name) in last]
    real = {name for name in outputs if kinds.get(name) in REALS and name not in still}
    others = {TensorProto.BOOL, None} | REALS
    picked = any(kinds.get(o) not in others for k in last for o in nodes.all[k].output)
    if ends and ((picked and real.intersection(ends)) or real.issubset(ends)):
        border, sizes = nodes.border(last, ends, traced)
        told = {name: size for name, size in sizes.items() if size is not None}
        if border and len(told) == len(sizes):
            return take_off(traced.source, [*ends, *still], [_declared(name, traced) for name in border], told)
    return take_off(traced.source, still, [], {}) if 0 < len(still) < len(outputs) else None


def _no_tensors(model: ModelProto) -> set[str]:
    """Return the outputs that are sequences or maps: numbers by their classes (ZipMap), which no payoff reads."""
    return {item.name for item in model.graph.output if item.type.WhichOneof("value") not in (None, "tensor_type")}


def _constant(traced: Traced) -> list[str]:
    """Return the outputs that are constants; where other nodes read a weight that is one, they have their own copy."""
    return [name for name in traced.outputs if name in traced.shaped.constants]


@dataclass(frozen=True)
class _Nodes:
    """The nodes of a file; those that are learned make or take units, or multiply much."""

    all: Sequence[NodeProto]
    producers: Mapping[str, int]
    learned: Sequence[bool]

    @classmethod
    def of(cls, traced: Traced) -> _Nodes:
        graph, shaped, labels = traced.source.graph, traced.shaped, traced.labels
        macs = node_macs(shaped, labels)
        found = {int(k) for k in np.flatnonzero(macs > _LIGHT * macs.sum())}
        found |= {site.node for site in traced.sites(traced.groups)}
        found |= {labels.trace.producers[key] for key in labels.trace.made if (labels.units(*key) >= 0).any()}
        names = {shaped.graph.origin.get(o, o) for k in found for o in shaped.graph.nodes[k].output if o}
        functions = {(f.domain, f.name) for f in traced.source.functions}
        learned = [(node.domain, node.op_type) in functions or not names.isdisjoint(_made(node)) for node in graph.node]
        return cls(graph.node, {name: k for k, node in enumerate(graph.node) for name in node.output if name}, learned)

    def _numbers(self) -> set[int]:
        """Return the nodes that read numbers that are learned or made of such, not their sizes alone."""
        after: list[list[int]] = [[] for _ in self.all]
        for k, node in enumerate(self.all):
            for name in reads(node) if not is_op(node, *OF_SIZES) else ():
                if name in self.producers:
                    after[self.producers[name]].append(k)
        return _reached(after, {k for k, learned in enumerate(self.learned) if learned})

    def last(self, jumping: Sequence[bool]) -> set[int]:
        """Return the nodes that jump by what is learned, and all behind them: nothing learned is there."""
        heavy = {k for k, learned in enumerate(self.learned) if learned}
        before = [[self.producers[name] for name in reads(node) if name in self.producers] for node in self.all]
        after: list[list[int]] = [[] for _ in self.all]
        for k, sources in enumerate(before):
            for source in sources:
                after[source].append(k)
        behind, ahead = _reached(after, heavy), _reached(before, heavy)
        return _reached(after, {k for k in behind - ahead if jumping[k]})

    def border(self, last: set[int], ends: Iterable[str], traced: Traced) -> tuple[list[str], dict[str, Array | None]]:
        """Return the nearest real tensors before the last nodes, which cannot be told of images if they have no axis.

        What lies between goes with the last nodes. Nothing, where they need more of the others than real tensors and
        sizes: those are returned by the output of the node that reads them off what is learned, None where they differ
        from run to run.
        """
        sparse = {t.values.name for t in traced.source.graph.sparse_initializer}
        found, sized, seen, pending = list[str](), list[NodeProto](), set[str](), deque(ends)
        numbers = self._numbers()
        while pending:
            name = pending.popleft()
            k = self.producers.get(name)
            if name in sparse:
                return [], {}
            if k is None or name in seen:
                continue
            seen.add(name)
            node, real = self.all[k], traced.shaped.kinds.get(name) in REALS
            if k in last:
                pending += reads(node)
            elif real and (traced.batch_axis(name) is not None or (traced.single and self.learned[k])):
                found.append(name)
            elif self.learned[k]:
                return [], {}
            elif is_op(node, *OF_SIZES) and self.producers.get(node.input[0]) in numbers:
                sized.append(node)
            else:
                pending += reads(node)
        weighty = {name for name, k in self.producers.items() if self.learned[k]}
        known = [*found, *(node.output[0] for node in sized)]
        behind = [n for n in sized if any(weighty.intersection(o.output) for o in between(self.all, known, n.input))]
        return found, {node.output[0]: _always(node, traced) for node in behind}


def _declared(name: str, traced: Traced) -> ValueInfoProto:
    """Return a tensor as an output; a first axis of fixed size is told, for it may say where the images lie."""
    shape = traced.shaped.shapes[name]
    fixed = traced.single and not _open(traced) and shape and (name, 0) not in traced.shaped.varying
    return helper.make_tensor_value_info(
        name, traced.shaped.kinds[name], [shape[0], *(None for _ in shape[1:])] if fixed else None
    )


def _open(traced: Traced) -> bool:
    """Return whether other sizes of the inputs are open than how many images there are."""
    specs = placed(input_specs(traced.source), traced.shaped.batch_axes).values()
    return any(size is None and axis != spec.batch for spec in specs for axis, size in enumerate(spec.shape))


def _always(node: NodeProto, traced: Traced) -> Array | None:
    """Return the sizes that a node gives, whatever the images are and as many as they are; None where they differ."""
    shaped, name = traced.shaped, node.input[0]
    shape, given = shaped.shapes.get(name), attributes(node)
    if shape is None or is_op(node, "EyeLike") or (shaped.counted and not shaped.varying):  # which ones is not known
        return None
    axes = range(len(shape))[given.get("start", 0) : given.get("end")]
    if _open(traced) or any((name, axis) in shaped.varying for axis in axes):
        return None
    sizes = np.array([shape[axis] for axis in axes], np.int64)
    return sizes if is_op(node, "Shape") else np.array(sizes.prod())


def _made(node: NodeProto) -> list[str]:
    """Return what a node and the nodes in its bodies make."""
    inside = (inner for body in subgraphs(node) for graph in graphs_of(body) for inner in graph.node)
    return [name for one in (node, *inside) for name in one.output if name]


def _reached(edges: Sequence[Sequence[int]], start: set[int]) -> set[int]:
    found, pending = set(start), list(start)
    while pending:
        for k in edges[pending.pop()]:
            if k not in found:
                found.add(k)
                pending.append(k)
    return found


def gives_classes(traced: Traced) -> bool:
    """Return whether the one real output of a model is scores of which the model itself takes the largest."""
    real = [name for name in traced.outputs if traced.shaped.kinds.get(name) in REALS]
    rank = len(traced.shaped.shapes[real[0]]) if len(real) == 1 else 0
    nodes = [*traced.shaped.graph.nodes, *(traced.tail.nodes if traced.tail else ())]
    return rank > 1 and any(
        is_op(node, "ArgMax")
        and node.input[0] == real[0]
        and attributes(node).get("axis", 0) % rank == class_axis(rank, None)
        and traced.shaped.shapes[real[0]][class_axis(rank, None)] > 1
        for node in nodes
    )


def complete(traced: Traced, model: ModelProto) -> ModelProto:
    """Return a form of a model with the choices that it ends in; of the model itself, what it was given as."""
    if traced.tail is None:
        return model
    return traced.tail.model if model is traced.source else put_back(model, traced.tail)
