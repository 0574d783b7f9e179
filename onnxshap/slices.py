"""What a cut took from the constants, in the names and indices of the input file: enough for anybody to redo it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto

from onnxshap.arguments import checked
from onnxshap.codes import zero_point
from onnxshap.core import IntArray
from onnxshap.graph import Graph, attributes
from onnxshap.graph.structure import between, graphs_of
from onnxshap.labels import Liveness
from onnxshap.rules.zeros import Zeros
from onnxshap.shapes.constants import is_constant, static_values
from onnxshap.tracing import Keep, Traced

_NOT_ZEROABLE = {
    *(("QuantizeLinear", 1), ("QLinearConv", 4), ("QLinearMatMul", 4), ("QGemm", 4)),
    *(("Div", 1), ("Pow", 0), ("Pow", 1), ("Mod", 1), ("BatchNormalization", 4), ("Clip", 1), ("Clip", 2)),
    *(("Log", 0), ("Reciprocal", 0)),
}
"""Op and input: constants of which zeros would not be harmless."""
_DIVISORS = {("Div", 1), ("Mod", 1), ("Reciprocal", 0), ("Log", 0), ("MeanVarianceNormalization", 0)}
"""Op and input that must not be zero, in whole or where a deviation is taken that is divided by."""


@checked
def removed_slices(traced: Traced, keep: Keep) -> list[dict[str, Any]]:
    """Return what was cut from the constants, in the names and indices of the input file.

    Zeroing these slices in the input file computes the same as the cut file (without repair). Slices whose zeroing
    would not be harmless (the divisor of a Div, what makes up a divisor, an exponent) are left out: they act on
    channels that are zero anyway. So are those of constants that the input file computes from shapes, and the channels
    that a grouped Conv weighs group by group, each its own.

    Returns:
        One entry for every cut axis: {initializer, node, input, axis, indices}, and `value` where zero is written as
        another code (a zero point, broadcast over the slices); `node` is the first output of the node
        that reads the initializer at `input`, which tells the uses of a shared one apart; `body`, where that node
        is in the body of another, is `output.then_branch` by the first output of an If, `output.body` of a Loop or
        Scan (of bodies in bodies joined by `/`), which tells nodes of two bodies apart. A weight that the file computes
        out of initializers goes by the name of the tensor that the layer reads, where it mixes them (`constants`), or
        zeros in them would be no zeros in that tensor, or more than those.
    """
    live, graph = traced.alive(keep), traced.shaped.graph
    given = _given(traced)
    stored = _leaves(graph) & given
    apart, told = _apart(traced, live, given)
    found, harmful = [], _harmful(traced, keep, live, apart)
    for index, node in enumerate(graph.nodes):
        computed = node.output[0] in traced.shaped.constants
        for k, name in enumerate(node.input):
            known = not computed if name in apart else name in stored and (not computed or index in told)
            if not known or (node.op_type, k) in _NOT_ZEROABLE:
                continue
            for axis in range(len(traced.shaped.shapes[name])):
                if live.cut(name, axis) and (name, axis) not in traced.labels.blockwise:
                    indices = _zeroed(traced, keep, live, name, axis, harmful.get(name, set()))
                    if not len(indices):
                        continue
                    item = {
                        "initializer": graph.origin.get(name, name),
                        "node": graph.origin.get(node.output[0], node.output[0]),
                        "input": graph.places.get((node.output[0], k), k),
                        "axis": axis,
                        "indices": indices.tolist(),
                    }
                    if (value := _code_of_zero(traced, node, k, axis)) != 0:
                        item["value"] = value
                    if (branch := graph.bodies.get(node.output[0])) is not None:
                        item["body"] = branch
                    found.append(item)
    return found


def _given(traced: Traced) -> set[str]:
    """Return the tensors that the input file stores or computes of such alone."""
    graph, every = traced.shaped.graph, list(graphs_of(traced.source.graph))
    stored = graph.mixed | {t.name for part in every for t in part.initializer}
    known = _known([node for part in every for node in part.node], stored)
    names = _leaves(graph) | {o for node in graph.nodes for o in node.output if o}
    return {name for name in names if graph.origin.get(name, name) in known}


def _known(nodes: Sequence[NodeProto], given: Collection[str]) -> set[str]:
    """Return some constants, and what some nodes, in any order, compute of them alone."""
    found, count = set(given), -1
    while count < (count := len(found)):  # once more than it takes, twice where the nodes are in order
        for node in nodes:
            if is_constant(node, found):
                found.update(o for o in node.output if o)
    return found


def _leaves(graph: Graph) -> set[str]:
    """Return the constants that other constants are computed of."""
    return {t.name for t in graph.model.graph.initializer} | {
        n.output[0] for n in graph.nodes if n.op_type == "ConstantOfShape"
    }


def _apart(traced: Traced, live: Liveness, given: Collection[str]) -> tuple[set[str], set[int]]:
    """Return the computed constants that are zeroed as layers read them, and the nodes that make the other ones.

    Those others are zero once what they are computed of is. That is not so of what becomes another number (an
    exponential), and what goes into a mixture or a divisor, too, has to stay whole.
    """
    shaped, graph, leaves = traced.shaped, traced.shaped.graph, _leaves(traced.shaped.graph)
    computed, stored = shaped.constants - leaves, leaves.intersection(given)
    every, read = frozenset(range(traced.labels.n_units)), dict[str, None]()
    without, fixed = dict.fromkeys(leaves - stored, every), set(graph.mixers)
    for node in graph.nodes:
        for k, name in enumerate(node.input):
            if node.output[0] in computed and (node.op_type, k) in _NOT_ZEROABLE:
                without[name] = every
            elif node.output[0] not in computed and name in computed:
                if (node.op_type, k) in _NOT_ZEROABLE:
                    fixed.add(name)
                else:
                    read[name] = None
    zeros = Zeros(shaped, traced.labels, without)
    divided = {
        name
        for node in graph.nodes
        for k, name in enumerate(node.input)
        if (node.op_type, k) in _DIVISORS and name in computed and zeros.held(name)
    }
    whole = {o for node in between(graph.nodes, leaves, fixed) for o in node.output if o}
    whole = _with_what_follows(graph, whole, divided, computed)
    foreign = _with_what_follows(graph, set(), leaves - stored, computed).difference(given)
    apart = set()
    for name in read:
        axes = [a for a in range(len(shaped.shapes.get(name, ()))) if live.cut(name, a)]
        units = [traced.labels.units(name, a) for a in axes if (name, a) not in traced.labels.blockwise]
        zero = name not in whole and all(zeros.gives_zero(name, np.unique(some[some >= 0])) for some in units)
        if units and not zero and name not in foreign:
            apart.add(name)
    told = {node.output[0] for node in between(graph.nodes, leaves, read.keys() - apart)}
    return apart, {k for k, node in enumerate(graph.nodes) if node.output[0] in told}


def _with_what_follows(graph: Graph, made: set[str], read: set[str], computed: Collection[str]) -> set[str]:
    """Return some computed constants, and those that are computed of them or of others that are read."""
    found = set(made)
    for node in graph.nodes:
        follows = node.output[0] in computed and not (found.isdisjoint(node.input) and read.isdisjoint(node.input))
        if follows:
            found.update(o for o in node.output if o)
    return found


def _zeroed(traced: Traced, keep: Keep, live: Liveness, name: str, axis: int, harmful: set[int]) -> IntArray:
    """Return the positions of an axis that are removed, but for those that some units alone remove."""
    if harmful:
        stay = traced.units(keep)
        stay[sorted(harmful)] = True
        live = traced.labels.alive(stay)
    alive = live.axis(name, axis)
    assert alive is not None
    return np.flatnonzero(~alive)


def _harmful(traced: Traced, keep: Keep, live: Liveness, apart: Collection[str]) -> dict[str, set[int]]:
    """Return constants -> units whose slices of them would make a divisor zero, where the other slices are enough.

    0 / 0 is not zero, whatever it is multiplied with.
    """
    shaped, labels, found = traced.shaped, traced.labels, dict[str, set[int]]()
    gone, zeros = frozenset(np.flatnonzero(~traced.units(keep)).tolist()), Zeros(shaped, labels, apart=apart)
    for node in shaped.graph.nodes:
        for k, name in enumerate(node.input):
            computed = node.output[0] in shaped.constants or name in apart
            units = sorted(zeros.held(name) & gone) if (node.op_type, k) in _DIVISORS and not computed else []
            if units and name in shaped.producers and zeros.gives_zero(name, np.array(units)):
                for unit in units:
                    for constant in _makers(traced, zeros, name, unit, apart):
                        found.setdefault(constant, set()).add(unit)
    left = Zeros(shaped, labels, found, apart)
    for site in labels.trace.sites if found else ():
        if live.cut(site.tensor, site.axis):
            weight = "" if site.weight is None else shaped.graph.nodes[site.node].input[site.weight.input]
            if (not weight or weight in found) and left.leaks(site):
                return {}
    return found


def _makers(traced: Traced, zeros: Zeros, name: str, unit: int, apart: Collection[str]) -> set[str]:
    """Return the constants by whose slices a tensor is zero where a unit is removed; none where it is not."""
    shaped, pending, seen = traced.shaped, [name], set[str]()
    while pending:
        current = pending.pop()
        if current not in seen and unit in zeros.held(current) and zeros.gives_zero(current, np.array([unit])):
            seen.add(current)
            if current in shaped.producers and current not in apart:
                pending += [i for i in shaped.graph.nodes[shaped.producers[current]].input if i]
    return {one for one in seen if one in shaped.constants and (one not in shaped.producers or one in apart)}


def _code_of_zero(traced: Traced, node: NodeProto, k: int, axis: int) -> Any:
    """Return what stands for zero in a slice of input `k`: 0, or the zero point of codes, broadcast over the slice."""
    name = zero_point(traced.shaped, node, k)
    if name not in traced.shaped.constants:
        return 0
    zero = static_values(traced.shaped.graph.model, traced.backend, [name])[name].astype(np.int64)
    if zero.size == 1:
        return int(zero.ravel()[0])
    rank = len(traced.shaped.shapes[node.input[k]])
    by_type = {"DequantizeLinear": int(attributes(node).get("axis", 1)), "QLinearConv": 0, "ConvInteger": 0,
               "DynamicQuantizeLSTM": 0}  # fmt: skip
    own = by_type.get(node.op_type, -1) % rank
    if own == axis or zero.ndim > 1:  # cut with the codes: both become 0
        return 0
    if (zero == zero[:1]).all():
        return int(zero[0])
    return zero.reshape([-1 if a == own else 1 for a in range(rank)]).tolist()
