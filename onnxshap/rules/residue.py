"""What ops give at removed positions, where that is not zero but the same for all of them.

A variance is a mean of (x - mean(x))^2: where x is removed, mean(x)^2 is left, and counts. Between the tensors that
vanish and the mean, all ops go position by position (codes of one scale among them), so what they give for one zero
tells what each removed position adds: the cut graph computes that once and adds it as often as positions are gone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onnxshap.graph import op_of
from onnxshap.labels import Labels, Site, Trace
from onnxshap.labels.fixups import Divisor, Residue
from onnxshap.rules.pointwise import elementwise, unary
from onnxshap.rules.quantised import quantize
from onnxshap.rules.reduce import MEANS
from onnxshap.rules.registry import RULES
from onnxshap.rules.zeros import Zeros, is_positive
from onnxshap.shapes import Shaped


@dataclass
class _Chain:
    """Nodes that go position by position, in order, and the inputs of theirs that vanish."""

    nodes: list[int]
    zeros: dict[tuple[int, int], str]


def add_residue(trace: Trace, shaped: Shaped, labels: Labels, zeros: Zeros, site: Site, axes: tuple[int, ...]) -> bool:
    """Let a sum, mean or norm over `axes` count what stands at removed positions; return whether that can be written.

    The places to mask are then those where the tensors still vanish, in front of the ops that go position by position.
    """
    node = shaped.graph.nodes[site.node]
    others = [labels.units(site.tensor, axis) for axis in axes if axis != site.axis]
    if (others and node.op_type not in MEANS) or any((units >= 0).any() for units in others):
        return False
    units = labels.units(site.tensor, site.axis)
    chain = _chain(shaped, zeros, site, np.unique(units[units >= 0]))
    if chain is None:
        return False
    behind = len(shaped.shapes[site.tensor]) - site.axis
    trace.sites.remove(site)
    trace.sites += [
        Site(k, number, name, len(shaped.shapes[name]) - behind, None, stored=name in shaped.constants, why=site.why)
        for (k, number), name in chain.zeros.items()
    ]
    trace.fixups[:] = [f for f in trace.fixups if not (isinstance(f, Divisor) and f.node == site.node)]
    mean, norm = node.op_type in MEANS, node.op_type == "ReduceL2"
    trace.fixups.append(Residue(site.node, site.tensor, axes, tuple(chain.nodes), frozenset(chain.zeros), mean, norm))
    return True


def _chain(shaped: Shaped, zeros: Zeros, site: Site, units: np.ndarray) -> _Chain | None:
    """Return what lies between tensors that vanish and the one that is summed, None where anything else does."""
    found = _Chain([], {})
    behind = len(shaped.shapes[site.tensor]) - site.axis
    pending, seen = [site.tensor], set[str]()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        index = shaped.producers.get(name)
        if index is None or not _by_position(shaped, index):
            return None
        found.nodes.append(index)
        for k, source in enumerate(shaped.graph.nodes[index].input):
            axis = len(shaped.shapes.get(source, ())) - behind
            if not source or not zeros.holds(source, units):
                continue
            if not zeros.holds_on(source, units, axis):
                return None
            if zeros.gives_zero(source, units):
                if _has_pole(shaped, index, k):
                    return None
                found.zeros[index, k] = source
            else:
                pending.append(source)
    found.nodes.sort()
    return found


def _by_position(shaped: Shaped, index: int) -> bool:
    """Return whether an op goes position by position; codes do where all of a tensor have one scale and zero point."""
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


_POLES = {("Acosh", 0), ("Div", 1), ("Log", 0), ("Mod", 1), ("Reciprocal", 0)}
