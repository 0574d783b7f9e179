"""What ops give at removed positions, where that is not zero but the same for all of them.

A variance is a mean of (x - mean(x))^2: where x is removed, mean(x)^2 is left, and counts. A layer that mixes positions
(tokens, say) gives every removed channel what its biases make of zeros, and a norm over the channels sees that. Between
the tensors that vanish and the sum or norm, all ops do the same along the axis that is cut, position by position, so
what they give for one zero tells what each removed position adds: the cut graph computes that once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from onnx import NodeProto

from onnxshap.graph import array, attributes, op_of
from onnxshap.labels import Labels, Op, Site, Trace
from onnxshap.labels.fixups import Chain, Divisor, Refilled, Residue, Step
from onnxshap.rules.pointwise import elementwise, unary
from onnxshap.rules.quantised import quantize
from onnxshap.rules.reduce import MEANS, SUMS, reduced_axes
from onnxshap.rules.registry import RULES
from onnxshap.rules.zeros import Zeros, is_positive
from onnxshap.shapes import Shaped


@dataclass
class _Found:
    """Nodes that do the same along an axis, and the inputs of theirs that vanish -> the axis; `mixing` other axes."""

    nodes: list[int]
    zeros: dict[tuple[int, int], tuple[str, int]]
    mixing: bool = False


def add_residue(trace: Trace, shaped: Shaped, labels: Labels, zeros: Zeros, site: Site, op: Op) -> bool:
    """Let a sum, a mean or a norm count what stands at removed positions; return whether that can be written.

    The places to mask are then those where the tensors still vanish, in front of the ops that go position by position.
    """
    refilled = next((f for f in trace.fixups if isinstance(f, Refilled) and f.node == op.index), None)
    if op.type in SUMS:
        axes = tuple(sorted(reduced_axes(op)))
    elif refilled is not None:
        behind = len(shaped.shapes[refilled.source]) - len(shaped.shapes[site.tensor])
        axes = tuple(axis - behind for axis in refilled.axes if axis >= behind)
    else:
        return False
    others = [labels.units(site.tensor, axis) for axis in axes if axis != site.axis]
    if (others and op.type in SUMS and op.type not in MEANS) or any((units >= 0).any() for units in others):
        return False
    units = labels.units(site.tensor, site.axis)
    found = _chain(shaped, zeros, site, np.unique(units[units >= 0]))
    if found is None:
        return False
    chain = Chain(tuple(_step(shaped, found, index) for index in sorted(found.nodes)))
    trace.sites.remove(site)
    for (k, number), (name, own) in found.zeros.items():
        masked = Site(k, number, name, own, None, stored=name in shaped.constants, why=site.why)
        if masked not in trace.sites:
            trace.sites.append(masked)
    if refilled is None:
        trace.fixups[:] = [f for f in trace.fixups if not (isinstance(f, Divisor) and f.node == op.index)]
        trace.fixups.append(Residue(op.index, site.tensor, axes, chain, op.type in MEANS, op.type == "ReduceL2"))
    else:
        place = trace.fixups.index(refilled)
        trace.fixups[place] = replace(refilled, rest=(*refilled.rest, (site.input, chain)))
    return True


def _chain(shaped: Shaped, zeros: Zeros, site: Site, units: np.ndarray) -> _Found | None:
    """Return what lies between tensors that vanish and the one that is summed, None where anything else does."""
    found = _Found([], {})
    axes = {site.tensor: site.axis}
    pending, seen = [site.tensor], set[str]()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        index = shaped.producers.get(name)
        inputs = () if index is None else shaped.graph.nodes[index].input
        held = [(k, source) for k, source in enumerate(inputs) if source and zeros.holds(source, units)]
        if index is None or not held:
            return None  # given from outside, as a loop's state is to its body
        if not all(zeros.is_finite(source) for source in inputs):
            return None  # what is infinite at one removed position would be taken times 0 at all others
        found.nodes.append(index)
        for k, source in held:
            axis = _along(shaped, index, k, axes[name])
            if axis is None or not zeros.holds_on(source, units, axis) or axes.setdefault(source, axis) != axis:
                return None
            if zeros.gives_zero(source, units):
                if _has_pole(shaped, index, k):
                    return None
                found.zeros[index, k] = source, axis
            else:
                pending.append(source)
        found.mixing |= not _by_position(shaped, index) or shaped.graph.nodes[index].op_type in _AS_LONG
    nodes = [shaped.graph.nodes[index] for index in found.nodes]
    made = {name for node in nodes for name in node.input if name}.difference(shaped.constants, axes)
    # zeros are of length 1 on axes whose sizes follow the inputs: all but Concat stretch them there
    return None if made and any(node.op_type == "Concat" for node in nodes) else found


def _step(shaped: Shaped, found: _Found, index: int) -> Step:
    node, zeros = shaped.graph.nodes[index], dict[str, tuple[int, ...]]()
    for (k, _), (name, own) in found.zeros.items():
        if k == index:
            axes = (axis for axis in range(len(shaped.shapes[name])) if axis != own)
            zeros[name] = tuple(axis for axis in axes if found.mixing and (name, axis) not in shaped.varying)
    return Step(index, tuple(node.input), tuple(node.output), zeros)


def _along(shaped: Shaped, index: int, number: int, axis: int) -> int | None:
    """Return the axis of an input that becomes an axis of the output, where an op does the same all along it.

    None where it does not, or that is not known.
    """
    node = shaped.graph.nodes[index]
    before = axis + len(shaped.shapes[node.input[number]]) - (rank := len(shaped.shapes[node.output[0]]))
    if _by_position(shaped, index):
        return before
    if node.op_type == "Transpose":
        return int(attributes(node).get("perm", range(rank)[::-1])[axis])
    if named := _named(shaped, node):
        ends = [(name, a % rank) for a in named for name in (*node.input, *node.output)]
        return axis if (node.output[0], axis) not in ends and shaped.varying.isdisjoint(ends) else None
    if node.op_type == "MatMul" and node.input[1 - number] in shaped.constants:
        ranks = [len(shaped.shapes[name]) for name in node.input]
        return before if min(ranks) > 1 and axis != rank - 1 - number else None
    return None


def _named(shaped: Shaped, node: NodeProto) -> list[int]:
    """Return the axes that a node names, if it does the same along all others; nothing for other ops."""
    if node.op_type in _APART and (shaped.graph.opset > 12 or node.op_type != "Softmax"):
        return [int(attributes(node).get("axis", _APART[node.op_type]))]
    if node.op_type != "Slice":
        return []
    stored = shaped.graph.initializers.get(node.input[3]) if len(node.input) > 3 else None
    found = attributes(node).get("axes", range(len(shaped.shapes[node.output[0]]))) if stored is None else array(stored)
    return [int(axis) for axis in found]


def _by_position(shaped: Shaped, index: int) -> bool:
    """Return whether an op goes position by position on all axes; codes do that have one scale and zero point."""
    node = shaped.graph.nodes[index]
    rule = RULES.get(op_of(node))
    if rule is quantize:
        return all(math.prod(shaped.shapes.get(name, (0,))) == 1 for name in node.input[1:] if name)
    return rule in (unary, elementwise)


def _has_pole(shaped: Shaped, index: int, number: int) -> bool:
    """Return whether an op may give nothing finite where an input of it is zero."""
    node = shaped.graph.nodes[index]
    if node.op_type == "Pow":
        return number == 1 or not is_positive(shaped, node.input[1])
    return (node.op_type, number) in _POLES


_AS_LONG = {"BiasGelu", "FastGelu"}
"""Ops that do not stretch their first input along the others."""
_APART = {"Concat": 0, "Softmax": -1, "Split": 0}
"""Ops that do the same along all axes but the one they name -> which that is by default."""
_POLES = {("Acosh", 0), ("Div", 1), ("Log", 0), ("Mod", 1), ("Reciprocal", 0)}
