"""What is scored of a model that ends in choices: the real numbers that it chooses by.

The class of every pixel (ArgMax), the best boxes (TopK, NonMaxSuppression) or a yes or no are integers, or real numbers
that integers pick out: they say nothing of how near a removed unit comes to another choice, a tie puts others in their
place, and there may be more or fewer of them. So while a model is scored, cut and repaired, its last nodes are off: it
ends where they choose. They are put back, word for word, before a file is written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from onnxshap.cost import node_macs
from onnxshap.graph import attributes, is_op
from onnxshap.graph.structure import graphs_of, reads, subgraphs
from onnxshap.graph.tails import Tail, put_back, take_off
from onnxshap.payoffs.checked import class_axis
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

    It ends in choices where no output is a real number, or some are picked out by integers that are made of real
    numbers; nothing behind them is learned. The head ends in the nearest real tensors before them with an
    axis for the images.
    """
    nodes, kinds = _Nodes.of(traced), traced.shaped.kinds
    last = nodes.last([jumps(node, kinds) for node in nodes.all])
    outputs = traced.outputs
    ends = [name for name in outputs if nodes.producers.get(name) in last]
    real = {name for name in outputs if kinds.get(name) in REALS}
    others = {TensorProto.BOOL, None} | REALS
    picked = any(kinds.get(o) not in others for k in last for o in nodes.all[k].output)
    if not ends or not ((picked and real.intersection(ends)) or real.issubset(ends)):
        return None
    border = nodes.border(last, ends, traced)
    return None if not border else take_off(traced.source, ends, [(name, kinds[name] or 0) for name in border])


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

    def border(self, last: set[int], ends: Iterable[str], traced: Traced) -> list[str]:
        """Return the nearest real tensors before the last nodes, which cannot be told of images if they have no axis.

        What lies between goes with the last nodes. Nothing, where they need more of the others than real tensors.
        """
        sparse = {t.values.name for t in traced.source.graph.sparse_initializer}
        found, sized, seen, pending = list[str](), set[str](), set[str](), deque(ends)
        while pending:
            name = pending.popleft()
            k = self.producers.get(name)
            if name in sparse:
                return []
            if k is None or name in seen:
                continue
            seen.add(name)
            node, real = self.all[k], traced.shaped.kinds.get(name) in REALS
            if k in last:
                pending += reads(node)
            elif real and (traced.batch_axis(name) is not None or (traced.single and self.learned[k])):
                found.append(name)
            elif self.learned[k]:
                return []
            elif is_op(node, *OF_SIZES):
                sized.add(node.input[0])
            else:
                pending += reads(node)
        return found if sized.isdisjoint(self.producers.keys() - seen) else []


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
